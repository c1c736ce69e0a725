"""Rules: what a row must meet to be kept. Plain declarations; `clean` applies them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from sparktrain.errors import RulesInvalid
from sparktrain.features import Feature, FittedFeature, FittedVector, InputType, Vector

RULE_COLUMN = "_broken_rule"


@dataclass(frozen=True)
class Unique:
    """Keep one row of each key: see `Rule.unique`."""

    key: tuple[str, ...]
    latest: str | None = None


@dataclass(frozen=True, eq=False)  # Columns can't be compared
class Rule:
    """A named condition that a row must meet to be kept.

    Attributes:
        name: what the counts and the quarantine call it.
        keep: a condition on the raw columns of one row; false and null both quarantine the row. What can't be
            computed (a division by zero, text that is no number) is null, in ANSI mode, too. Arithmetic on
            integers wraps beyond their type: write `try_multiply(price, quantity)`, or cast to decimal first.
            SQL text, a function that is given the DataFrame and returns a Column, or a Column. A Column is
            made before `prepare` runs: Spark 4 resolves it as the others, but Spark 3.5 gives it the ANSI
            mode of the moment when it was made, so that text or a function is safer there.
    """

    name: str
    keep: str | Column | Callable[[DataFrame], Column] | Unique

    @classmethod
    def between(cls, column: str, low: Any, high: Any, *, name: str | None = None) -> Rule:
        """Keep rows with `low <= column <= high`; null and NaN break the rule.

        Args:
            column: a raw column.
            low, high: numbers, dates, or text; for one side only, the other is `float("-inf")` or
                `float("inf")`.
            name: of the rule; None: made of the column and the bounds.

        Raises:
            RulesInvalid: `low` is above `high`, or they can't be compared.
        """
        name = name or f"{column}_between_{low}_and_{high}"
        try:
            in_order = bool(low <= high)
        except TypeError:
            in_order = False
        if not in_order:
            raise RulesInvalid([f"`{name}`: no value lies between {low!r} and {high!r}"])
        return cls(name, _Between(column, low, high))

    @classmethod
    def not_null(cls, *columns: str, name: str | None = None) -> Rule:
        """Keep rows that have a value in each of the columns; NaN is a value."""
        name = name or f"{'_and_'.join(columns)}_not_null"
        if not columns:
            raise RulesInvalid([f"`{name}`: no column is named"])
        return cls(name, " AND ".join(f"`{column}` IS NOT NULL" for column in columns))

    @classmethod
    def one_of(cls, column: str, values: Iterable[Any], *, name: str | None = None) -> Rule:
        """Keep rows whose column has one of the values; null breaks the rule unless None is among them."""
        name = name or f"{column}_one_of"
        allowed = () if isinstance(values, str) else tuple(values)
        if not allowed:
            raise RulesInvalid([f"`{name}`: {values!r} is no list of values; give at least one"])
        return cls(name, _OneOf(column, allowed))

    @classmethod
    def unique(cls, *key: str, latest: str | None = None, name: str | None = None) -> Rule:
        """Keep one row of each key, quarantine its copies.

        Rows that break another rule take no part in it: they are quarantined under that one, and their copies
        are not. A null in the key is a value like others.

        Args:
            key: raw columns that tell rows apart.
            latest: the row with the largest value of this column stays (a null is the smallest); among
                equals, and for None, the one with the smallest values in all columns, one after the other.
            name: of the rule; None: made of the key.
        """
        name = name or f"unique_{'_'.join(key)}"
        if not key:
            raise RulesInvalid([f"`{name}`: no column is named"])
        return cls(name, Unique(key, latest))


@dataclass(frozen=True)
class _Between:
    column: str
    low: Any
    high: Any

    def __call__(self, df: DataFrame) -> Column:
        # NaN is the largest number to Spark: above every bound but itself.
        return F.col(f"`{self.column}`").between(self.low, self.high)


@dataclass(frozen=True)
class _OneOf:
    column: str
    values: tuple[Any, ...]

    def __call__(self, df: DataFrame) -> Column:
        column = F.col(f"`{self.column}`")
        found = column.isin([value for value in self.values if value is not None])
        return (column.isNull() | found) if None in self.values else found


def size_rules(features: Iterable[Feature | FittedFeature], types: Mapping[str, InputType]) -> list[Rule]:
    """Rules that quarantine rows whose array, or bytes, are not of a vector's size; a null passes."""
    rules: dict[str, Rule] = {}
    for feature in features:
        if not isinstance(feature, (Vector, FittedVector)):
            continue
        column, size = feature.column or feature.name, math.prod(feature.shape)
        if types[column] == "binary":
            fits = f"octet_length(`{column}`) = {size * np.dtype(feature.dtype).itemsize}"
        else:
            fits = f"size(`{column}`) = {size}"
        keep = f"`{column}` IS NULL OR {fits}"
        rules[keep] = Rule(f"{column}_wrong_size", keep)
    return list(rules.values())
