"""Cleaning: each row either passes every rule or is quarantined under the first one that it breaks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pyspark.errors import AnalysisException
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from sparktrain.errors import DataError
from sparktrain.features import Target
from sparktrain.preparation.source import MALFORMED_COLUMN

RULE_COLUMN = "_broken_rule"


@dataclass(frozen=True)
class Rule:
    """A named condition that a row must meet to be kept.

    Attributes:
        name: what the counts and the quarantine call it.
        keep: a SQL expression over the raw columns; false and null both quarantine the row.
    """

    name: str
    keep: str


def mark_broken_rules(df: DataFrame, rules: Sequence[Rule], target: Target) -> DataFrame:
    """Add `_broken_rule`: the name of the first rule that the row breaks, or null for a row to keep.

    Order: unparsable text first (its other fields mean nothing), then the declared rules, then the target's own.

    Raises:
        DataError: a rule is not valid SQL over these columns; names every such rule.
    """
    _check_rules(df, rules)
    conditions = [(rule.name, F.expr(rule.keep)) for rule in rules] + _target_rules(target)
    if MALFORMED_COLUMN in df.columns:
        conditions.insert(0, ("malformed", F.col(MALFORMED_COLUMN).isNull()))
    broken = [F.when(F.coalesce(keep, F.lit(False)), None).otherwise(F.lit(name)) for name, keep in conditions]
    return df.withColumn(RULE_COLUMN, F.coalesce(*broken))


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
    problems = []
    for rule in rules:
        try:
            kind = df.select(F.expr(rule.keep)).schema.fields[0].dataType.simpleString()
        except AnalysisException as error:
            problems.append(f"`{rule.name}` ({rule.keep}): {str(error).splitlines()[0]}")
        else:
            if kind != "boolean":
                problems.append(f"`{rule.name}` ({rule.keep}): gives {kind}, a rule must be true or false")
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise DataError(f"These cleaning rules can't be evaluated:\n{listed}\nColumns there are: {', '.join(df.columns)}.")
