"""How Spark resolves expressions: without ANSI mode, and with faults that are told in one line."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from pyspark.errors import AnalysisException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql.types import DataType


@contextmanager
def without_ansi(spark: SparkSession) -> Iterator[None]:
    """Expressions that are resolved within give null where ANSI mode would fail the whole job for one row."""
    before = spark.conf.get("spark.sql.ansi.enabled")
    spark.conf.set("spark.sql.ansi.enabled", "false")
    try:
        yield
    finally:
        spark.conf.set("spark.sql.ansi.enabled", before or "false")


def resolve(df: DataFrame, column: Column) -> tuple[DataType | None, str]:
    """The type that an expression has beside all columns of `df`; or None, and what is wrong in one line.

    Beside all columns, so that an aggregate, which is no expression on one row, is a fault.
    """
    try:
        with _quiet():
            return df.select("*", column).schema.fields[-1].dataType, ""
    except AnalysisException as error:
        return None, str(error).strip().splitlines()[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """PySpark 4 logs the JVM's stack for every SQL error, also for those that are caught."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
