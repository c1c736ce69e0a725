"""Spark's settings for a while, and how it resolves expressions: faults are told in one line."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pyspark.errors import AnalysisException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import DataType

from sparktrain.errors import first_line


@contextmanager
def without_ansi(spark: SparkSession) -> Iterator[None]:
    """Expressions that are resolved within give null where ANSI mode would fail the whole job for one row."""
    with spark_settings(spark, {"spark.sql.ansi.enabled": "false"}):
        yield


@contextmanager
def spark_settings(spark: SparkSession, wanted: Mapping[str, str]) -> Iterator[None]:
    """Set options that Spark itself knows, and so has a value for; set them back at the end."""
    before = {name: str(spark.conf.get(name)) for name in wanted}
    try:
        for name, value in wanted.items():
            spark.conf.set(name, value)
        yield
    finally:
        for name, value in before.items():
            spark.conf.set(name, value)


def quoted(name: str) -> str:
    """A column's name as SQL, whatever it holds."""
    return "`" + name.replace("`", "``") + "`"


def resolve(df: DataFrame, column: Column | str) -> tuple[DataType | None, str]:
    """The type that an expression, or its SQL, has beside all columns of `df`; or None, and what is wrong.

    Beside all columns, so that an aggregate, which is no expression on one row, is a fault.
    """
    try:
        with _quiet():
            column = F.expr(column) if isinstance(column, str) else column
            return df.select("*", column).schema.fields[-1].dataType, ""
    except AnalysisException as error:
        return None, first_line(error)


@contextmanager
def _quiet() -> Iterator[None]:
    """PySpark 4 logs the JVM's stack for every SQL error, also for those that are caught."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
