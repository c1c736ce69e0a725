"""Cleaning: each row either passes every rule or is quarantined under the first one that it breaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from pyspark.errors import AnalysisException
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from sparktrain.errors import RulesInvalid, first_line
from sparktrain.features import MALFORMED_COLUMN, UNCASTABLE_COLUMN, FittedFeatures, Target
from sparktrain.preparation.analysis import resolve, without_ansi
from sparktrain.preparation.cast import UNCASTABLE_RULE, uncastable_columns
from sparktrain.preparation.rules import RULE_COLUMN, Rule, Unique
from sparktrain.preparation.split import comparable, split_is_known
from sparktrain.splitting import SplitConfig

ALREADY_THERE = "already_there"  # in a dataset that grows
RESERVED_RULES = (
    "malformed",
    "target_missing",
    "target_not_binary",
    "target_not_finite",
    "target_class_unknown",
    "weight_invalid",
    "split_unknown",
    ALREADY_THERE,
)


@dataclass(frozen=True)
class Demands:
    """What a row must meet that no rule declares.

    Attributes:
        targets: it has a value of each, of the kind.
        weight: raw column of the rows' weights; None: there is none.
        split: the method that must be able to place the row; None: no row is held against one.
        classes: those that multiclass targets may have, by target's name; any where it names none.
    """

    targets: Sequence[Target] = ()
    weight: str | None = None
    split: SplitConfig | None = None
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, fitted: FittedFeatures, split: SplitConfig) -> Self:
        """Those of rows that earlier statistics are to be applied to."""
        return cls(
            targets=[Target(name=t.name, column=t.column, kind=t.kind) for t in fitted.targets],
            weight=fitted.weight.column if fitted.weight else None,
            split=split,
            classes={target.name: target.classes for target in fitted.targets if target.classes},
        )


def mark_broken_rules(df: DataFrame, rules: Sequence[Rule], demands: Demands) -> DataFrame:
    """Add `_broken_rule`: the name of the first rule that the row breaks, or null for a row to keep.

    Order: unparsable text first (its other fields mean nothing), then what could not be cast, the declared
    rules, the targets', the weight's and the split's. Last come the declared `Rule.unique`, for rows that
    break no other.

    Raises:
        RulesInvalid: a rule has no name of its own, or is no condition over these columns; names every one.
    """
    with without_ansi(df.sparkSession):
        _check_rules(df, rules)
        before, after = _fixed_rules(df, demands)
        conditions = [*before, *_declared(df, rules), *after]
        broken = [F.when(F.coalesce(keep, F.lit(False)), None).otherwise(F.lit(n)) for n, keep in conditions]
        marked = df.withColumn(RULE_COLUMN, F.coalesce(*broken, F.lit(None).cast("string")))
        for rule in rules:
            if isinstance(rule.keep, Unique):
                marked = marked.withColumn(RULE_COLUMN, _copies(marked, rule.name, rule.keep))
        return marked


def rule_names(df: DataFrame, rules: Sequence[Rule], demands: Demands) -> list[str]:
    """Every name that `_broken_rule` can hold, in the order of precedence."""
    before, after = _fixed_rules(df, demands)
    of_one_row = [rule.name for rule in rules if not isinstance(rule.keep, Unique)]
    unique = [rule.name for rule in rules if isinstance(rule.keep, Unique)]
    return [*(name for name, _ in before), *of_one_row, *(name for name, _ in after), *unique]


def _fixed_rules(
    df: DataFrame, demands: Demands
) -> tuple[list[tuple[str, Column]], list[tuple[str, Column]]]:
    """Rules that nobody declares, with their conditions: those before the declared ones, those after."""
    before = [("malformed", F.col(MALFORMED_COLUMN).isNull())] if MALFORMED_COLUMN in df.columns else []
    for name in uncastable_columns(df):
        before.append((UNCASTABLE_RULE + name, F.col(UNCASTABLE_COLUMN).getField(name).isNull()))
    after = _target_rules(demands)
    known = split_is_known(df, demands.split) if demands.split else None
    if known is not None:
        after.append(("split_unknown", known))
    return before, after


def _target_rules(demands: Demands) -> list[tuple[str, Column]]:
    """What targets and weight must meet. A NaN is missing; text and integers of classes have none."""
    present: list[Column] = []
    binary: list[Column] = []
    finite: list[Column] = []
    known: list[Column] = []
    for target in demands.targets:
        column = F.col(f"`{target.source}`")
        present.append(column.isNotNull())
        if target.kind == "multiclass":
            if target.name in demands.classes:
                known.append(column.cast("string").isin(list(demands.classes[target.name])))
            continue
        number = column.cast("double")
        present.append(~F.isnan(number))
        if target.kind == "binary":
            binary.append(number.isin(0.0, 1.0))
        else:  # the loss is given float32
            finite.append(F.abs(number.cast("float")) < F.lit(float("inf")))
    found = {
        "target_missing": present,
        "target_not_binary": binary,
        "target_not_finite": finite,
        "target_class_unknown": known,
    }
    if demands.weight is not None:
        number = F.col(f"`{demands.weight}`").cast("double")
        found["weight_invalid"] = [~F.isnan(number), number >= 0, number < F.lit(float("inf"))]
    return [(name, _all(conditions)) for name, conditions in found.items() if conditions]


def _all(conditions: Sequence[Column]) -> Column:
    met = conditions[0]
    for condition in conditions[1:]:
        met = met & condition
    return met


def _declared(df: DataFrame, rules: Sequence[Rule]) -> list[tuple[str, Column]]:
    return [(rule.name, column) for rule in rules if (column := _condition(df, rule)) is not None]


def _condition(df: DataFrame, rule: Rule) -> Column | None:
    """The rule's Column, made without ANSI mode, which Spark 3.5 fixes then; None: the rule makes none."""
    keep: Any = rule.keep
    if isinstance(keep, str):
        return F.expr(keep)
    made = keep(df) if callable(keep) and not isinstance(keep, Column) else keep
    return made if isinstance(made, Column) else None


def _copies(marked: DataFrame, name: str, unique: Unique) -> Column:
    """`_broken_rule` with `name` for all rows of a key but one; rows that break a rule are left apart."""
    broken = F.col(RULE_COLUMN)
    ordered = [F.col(f"`{unique.latest}`").desc_nulls_last()] if unique.latest else []
    # By every column, so that the choice does not depend on where the rows happen to lie.
    ordered += [comparable(field).asc_nulls_first() for field in marked.schema.fields]
    same = Window.partitionBy(*[F.col(f"`{column}`") for column in unique.key], broken.isNotNull())
    is_copy = F.row_number().over(same.orderBy(*ordered)) > 1
    return F.when(broken.isNull() & is_copy, F.lit(name)).otherwise(broken)


def _check_rules(df: DataFrame, rules: Sequence[Rule]) -> None:
    problems = []
    for name, count in Counter(rule.name for rule in rules).items():
        if not name:
            problems.append("a rule has an empty name; the counts need one")
        elif count > 1:
            problems.append(f"`{name}`: {count} rules have this name; give each its own (name=…)")
        if name in RESERVED_RULES or name.startswith(UNCASTABLE_RULE):
            problems.append(f"`{name}`: preparation gives this name to rows itself; choose another")
    problems += [f"`{rule.name}` ({rule.keep}): {fault}" for rule in rules if (fault := _fault(df, rule))]
    if problems:
        raise RulesInvalid(problems, df.columns)


def _fault(df: DataFrame, rule: Rule) -> str | None:
    """What is wrong with a rule, in one line."""
    if isinstance(rule.keep, Unique):
        marked = df.withColumn(RULE_COLUMN, F.lit(None).cast("string"))
        return resolve(marked, _copies(marked, rule.name, rule.keep))[1] or None
    try:
        condition = _condition(df, rule)
    except AnalysisException as error:  # text that is no SQL
        return first_line(error)
    if condition is None:
        return "give SQL text, a Column, or a function that makes a Column of the DataFrame"
    kind, fault = resolve(df, condition)
    if kind is None or kind.simpleString() == "boolean":
        return fault or None
    return f"gives {kind.simpleString()}, a rule must be true or false"
