"""Cleaning: each row either passes every rule or is quarantined under the first one that it breaks."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pyspark.errors import AnalysisException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from sparktrain.errors import RulesInvalid
from sparktrain.features import Target
from sparktrain.preparation.source import MALFORMED_COLUMN

RULE_COLUMN = "_broken_rule"


@dataclass(frozen=True)
class Rule:
    """A named condition that a row must meet to be kept.

    Attributes:
        name: what the counts and the quarantine call it.
        keep: a SQL condition on the raw columns of one row; false and null both quarantine the row. What
            can't be computed (a division by zero, an overflow, text that is no number) is null, in ANSI mode,
            too.
    """

    name: str
    keep: str


def mark_broken_rules(df: DataFrame, rules: Sequence[Rule], target: Target) -> DataFrame:
    """Add `_broken_rule`: the name of the first rule that the row breaks, or null for a row to keep.

    Order: unparsable text first (its other fields mean nothing), then the declared rules, then the target's.

    Raises:
        RulesInvalid: a rule is not valid SQL over these columns; names every such rule.
    """
    with _without_ansi(df.sparkSession):
        _check_rules(df, rules)
        return df.withColumn(RULE_COLUMN, _first_broken(df, rules, target))


def _first_broken(df: DataFrame, rules: Sequence[Rule], target: Target) -> Column:
    conditions = [(rule.name, F.expr(rule.keep)) for rule in rules] + _target_rules(target)
    if MALFORMED_COLUMN in df.columns:
        conditions.insert(0, ("malformed", F.col(MALFORMED_COLUMN).isNull()))
    broken = [
        F.when(F.coalesce(keep, F.lit(False)), None).otherwise(F.lit(name)) for name, keep in conditions
    ]
    return F.coalesce(*broken)


@contextmanager
def _without_ansi(spark: SparkSession) -> Iterator[None]:
    """Expressions that are resolved within give null where ANSI mode would fail the whole job for one row."""
    before = spark.conf.get("spark.sql.ansi.enabled")
    spark.conf.set("spark.sql.ansi.enabled", "false")
    try:
        yield
    finally:
        spark.conf.set("spark.sql.ansi.enabled", before or "false")


def rule_names(df: DataFrame, rules: Sequence[Rule], target: Target) -> list[str]:
    """Every name that `_broken_rule` can hold, in the order of precedence."""
    malformed = ["malformed"] if MALFORMED_COLUMN in df.columns else []
    return malformed + [rule.name for rule in rules] + [name for name, _ in _target_rules(target)]


def _target_rules(target: Target) -> list[tuple[str, Column]]:
    column = F.col(f"`{target.name}`")
    return [
        ("target_missing", column.isNotNull()),
        ("target_not_binary", column.cast("double").isin(0.0, 1.0)),
    ]


def _check_rules(df: DataFrame, rules: Sequence[Rule]) -> None:
    problems = [f"`{rule.name}` ({rule.keep}): {fault}" for rule in rules if (fault := _fault(df, rule))]
    if problems:
        raise RulesInvalid(problems, df.columns)


def _fault(df: DataFrame, rule: Rule) -> str | None:
    """What is wrong with a rule, in one line."""
    try:
        with _quiet():
            # Beside all columns, so that an aggregate, which is no condition on one row, fails here.
            kind = df.select("*", F.expr(rule.keep)).schema.fields[-1].dataType.simpleString()
    except AnalysisException as error:
        return str(error).strip().splitlines()[0]
    return None if kind == "boolean" else f"gives {kind}, a rule must be true or false"


@contextmanager
def _quiet() -> Iterator[None]:
    """PySpark 4 logs the JVM's stack for every SQL error, also for those that are caught."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
