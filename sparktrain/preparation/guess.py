"""Guessing: which features and which target fit a DataFrame that nobody has declared anything about.

A guess is a start for a person to correct: each column is a feature or is left out with a reason, and what
looks wrong with it is said.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from pyspark.sql import DataFrame

from sparktrain.errors import FeaturesInvalid, TargetUnusable, nearest
from sparktrain.features import (
    Boolean,
    Categorical,
    Feature,
    Numeric,
    Target,
    Timestamp,
    Vector,
    output_names,
)
from sparktrain.preparation.check import RESERVED_NAMES, source_clashes
from sparktrain.preparation.glance import Glance, Seen, glance

MAX_GUESSED_CLASSES = 20  # of whole numbers; more are taken as an amount
_MIN_ROWS_PER_VALUE = 5  # below, a category has too few rows to learn anything of it
_MAX_SMALL_VOCABULARY = 20  # which a category may always have
_RARE_FROM = 1000  # vocabularies beyond leave values out that are seen less than five times
_FEWEST_OF_A_CLASS = 20  # of whom a split of a tenth may well have none
_LONG_TEXT = 50  # characters, on average
_MOSTLY = 0.95  # of the values
_LARGE = 30.0  # numbers beyond drown those that were normalized
_SURELY = 0.9999  # a correlation
_DAY = 86400.0
_NAMELESS = re.compile(r"_c\d+|Unnamed: \d+")  # as Spark and pandas call a column without a name
_CODE_WORDS = {"id", "code", "type", "kind", "class", "category", "status", "group", "cluster", "region"}
_CODE_WORDS |= {"zip", "zipcode", "postcode"}


@dataclass(frozen=True)
class Guess:
    """What was guessed.

    Attributes:
        features: in the order of the columns. One whose column's name is no Python name has a name of its
            own, and `column`.
        target: of the kind that its values suggest.
        notes: what was left out and why, what looks as if it gave the target away, what a person should look
            at.
        left_out: why, by column.
        warnings: what looks wrong, by column; these columns are features all the same.
        casts: SQL type by column: text that is numbers, say. Cast (`cast_columns`) and guess again for more.
        key: a column that seems to identify rows; empty: none does.
        rows: of the DataFrame.
        columns: what was seen of each column that was looked at, by name.
    """

    features: list[Feature]
    target: Target
    notes: list[str]
    left_out: Mapping[str, str] = field(default_factory=dict)
    warnings: Mapping[str, str] = field(default_factory=dict)
    casts: Mapping[str, str] = field(default_factory=dict)
    key: Sequence[str] = ()
    rows: int = 0
    columns: Mapping[str, Seen] = field(default_factory=dict)


def guess_features(df: DataFrame, target: str, *, exclude: Collection[str] = ()) -> Guess:
    """Guess the features of all columns but `target` and those in `exclude`, by one aggregate pass.

    Raises:
        TargetUnusable: no such column, of a type that nothing can be predicted of, without a value, or with
            only one.
        FeaturesInvalid: names of columns that preparation refuses; no column that could be a feature, not
            even one of `casts`.
    """
    if problems := list(source_clashes(df.columns)):
        raise FeaturesInvalid(problems)
    if target not in df.columns:
        hint = nearest(target, df.columns)
        way_out = f"did you mean `{hint}`? " if hint else ""
        raise TargetUnusable(
            target, "there is no such column", f"{way_out}there are: {', '.join(df.columns)}"
        )
    looked = glance(df, target, [name for name in df.columns if name not in exclude])
    return _guess(looked, target)


def _guess(looked: Glance, target: str) -> Guess:
    text_target = _cast_of_target(looked.columns[target])
    declared, of_target = _target(looked.columns[target], looked.rows, is_cast=text_target is not None)
    names = _names(looked.columns)
    declared = declared.model_copy(update={"name": names[target], "column": _column(names, target)})
    features: list[Feature] = []
    left_out: dict[str, str] = {}
    warnings: dict[str, str] = {}
    casts = {target: "int"} if _is_whole_float_of_classes(looked.columns[target]) else {}
    casts |= {target: text_target} if text_target else {}
    taken = set(output_names(declared))
    for name, seen in looked.columns.items():
        if name == target:
            continue
        if cast := _cast(seen):
            casts[name] = cast
        found = _feature(seen, names[name])
        if not isinstance(found, str) and (reason := _copy_of(seen, looked.columns[target])):
            found = reason
        if isinstance(found, str):
            left_out[name] = found
            continue
        found = found.model_copy(update={"column": _column(names, name)})
        if clash := taken & set(output_names(found)):
            left_out[name] = f"it would hand `{min(clash)}` to the model, as another feature does"
            continue
        taken |= set(output_names(found))
        features.append(found)
        said = _warning(seen, looked.columns[target], declared), _unscaled(seen)
        if told := [warning for warning in said if warning]:
            warnings[name] = "; ".join(told)
    if not features and not casts.keys() - {target}:
        raise FeaturesInvalid([f"`{name}` is left out: {why}" for name, why in left_out.items()] or ["none"])
    notes = [
        *of_target,
        *(f"`{name}` is left out: {reason}" for name, reason in left_out.items()),
        *(f"`{name}`: {warning}" for name, warning in warnings.items()),
    ]
    key = _key(looked.columns.values(), target)
    return Guess(features, declared, notes, left_out, warnings, casts, key, looked.rows, looked.columns)


# --- the target -------------------------------------------------------------------------------------------


def _cast_of_target(seen: Seen) -> str | None:
    """The type that a target should have which is text, but numbers."""
    if _cast(seen) != "double":
        return None
    return "bigint" if seen.whole_texts == seen.numeric_texts else "double"


def _target(seen: Seen, rows: int, *, is_cast: bool = False) -> tuple[Target, list[str]]:
    """The target as its values suggest, and what is to be said of it.

    Args:
        is_cast: it is text that will be numbers when it is looked at again.
    """
    if seen.kind not in ("boolean", "string", "long", "double"):
        raise TargetUnusable(seen.column, f"it is {seen.type}", "give a boolean, a number or text")
    if seen.distinct < 2:
        what = "no row has a value of it" if not seen.rows else "all rows have the same value of it"
        raise TargetUnusable(seen.column, what, "there is nothing to learn: give another column")
    notes = []
    if missing := rows - seen.rows:
        notes.append(
            f"`{seen.column}`, the target, is missing in {missing:,} of {rows:,} rows: they are quarantined"
        )
    is_number = seen.kind in ("long", "double")
    if seen.kind == "boolean" or (is_number and seen.distinct == 2 and (seen.low, seen.high) == (0, 1)):
        if note := _rarity(seen):
            notes.append(note)
        return Target(name=seen.column, kind="binary"), notes
    if is_cast:
        return Target(name=seen.column, kind="regression"), notes
    if seen.kind == "string":
        if seen.distinct > max(_MAX_SMALL_VOCABULARY, seen.rows / 2):
            what = f"it is text of some {seen.distinct:,} values in {seen.rows:,} rows"
            raise TargetUnusable(
                seen.column, what, "give text of fewer values, or cast it to a number for a regression"
            )
        return Target(name=seen.column, kind="multiclass"), notes
    if seen.kind == "long" and _has_few_values(seen):
        notes.append(
            f"`{seen.column}`, the target, has {seen.distinct} whole numbers, taken as classes: "
            'kind="regression" if they are amounts'
        )
        return Target(name=seen.column, kind="multiclass"), notes
    if _is_whole_float_of_classes(seen):
        notes.append(
            f"`{seen.column}`, the target, has {seen.distinct} whole numbers: cast it to int and say "
            'kind="multiclass" if they are classes'
        )
    return Target(name=seen.column, kind="regression"), notes


def _rarity(seen: Seen) -> str | None:
    """What is to be said of a binary target that is nearly always the same."""
    if seen.mean is None or (rarer := round(min(seen.mean, 1 - seen.mean) * seen.rows)) >= _FEWEST_OF_A_CLASS:
        return None
    what = "true, or 1" if seen.mean <= 0.5 else "false, or 0"
    return (
        f"`{seen.column}`, the target, is {what}, in only {rarer:,} of {seen.rows:,} rows: a split may have "
        "none of them, and figures such as the area under the curve mean little"
    )


def _has_few_values(seen: Seen) -> bool:
    return seen.distinct <= MAX_GUESSED_CLASSES and seen.rows >= 2 * _MIN_ROWS_PER_VALUE * seen.distinct


def _is_whole_float_of_classes(seen: Seen) -> bool:
    """Classes whose numbers came as floats, because some were missing; 0 and 1 need no cast."""
    is_binary = seen.distinct == 2 and (seen.low, seen.high) == (0, 1)
    return seen.kind == "double" and seen.whole and not is_binary and _has_few_values(seen)


# --- features ---------------------------------------------------------------------------------------------


_Found: TypeAlias = Feature | str


def _feature(seen: Seen, name: str) -> _Found:
    """The feature that a column becomes, or why it is left out."""
    if seen.kind is None:
        if seen.type == "vector":
            return "it is an ML vector; make an array of it in read(): pyspark.ml.functions.vector_to_array"
        return f"{seen.type} is no type that features read"
    if not seen.count:
        return "it has no value"
    if seen.distinct == 1 and not seen.nulls:
        return "it has the same value in all rows"
    if seen.kind in ("longs", "doubles"):
        return _of_arrays(seen, name)
    if seen.kind == "boolean":
        return Boolean(name=name, null_flag=_wants_flag(seen))
    if seen.kind in ("timestamp", "date"):
        return _of_times(seen, name)
    if seen.kind == "string":
        return _of_texts(seen, name)
    if seen.kind in ("long", "double"):
        return _of_numbers(seen, name)
    return "binary may be an Image or a Vector, of a shape that only you know"


def _of_arrays(seen: Seen, name: str) -> _Found:
    if seen.low != seen.high:
        return f"arrays of {seen.low:g} to {seen.high:g} numbers; a Vector has one size"
    if not seen.low:
        return "all its arrays are empty"
    return Vector(name=name, shape=(int(seen.low),))


def _unscaled(seen: Seen) -> str | None:
    """What is to be said of an array whose numbers a network can't take as they are."""
    if seen.kind not in ("longs", "doubles") or (seen.largest or 0.0) <= _LARGE:
        return None
    return (
        f"its numbers reach {seen.largest:.3g}, and a Vector is handed on as it is: scale them in read(), "
        "to about -1 to 1, or the model may learn nothing"
    )


def _of_times(seen: Seen, name: str) -> _Found:
    assert seen.low is not None and seen.high is not None
    days = (seen.high - seen.low) / _DAY
    parts = [
        *(["hour"] if seen.has_hours else []),
        *(["minute"] if seen.has_hours and days < 1 else []),
        *(["day_of_week"] if days >= 7 else []),
        *(["month"] if days >= 60 else []),
        *(["day"] if 7 <= days < 60 else []),
    ]
    if not parts:
        return "all its days lie within a week"
    return Timestamp(name=name, parts=parts, null_flag=_wants_flag(seen))


def _of_texts(seen: Seen, name: str) -> _Found:
    if cast := _cast(seen):
        return f"its text is {'numbers' if cast == 'double' else 'times'}; cast it: cast_columns in read()"
    rows_per_value = seen.count / seen.distinct
    if seen.mean_length > _LONG_TEXT and rows_per_value < _MIN_ROWS_PER_VALUE:
        return f"long text, of {seen.mean_length:.0f} characters on average; Tokens would cut it into tokens"
    is_many = seen.distinct > _MAX_SMALL_VOCABULARY
    if is_many and seen.numeric_texts > seen.count / 2 and not _is_code_of_digits(seen):
        share = f"{seen.numeric_texts / seen.count:.0%}"
        return (
            f"{share} of its texts are numbers; cast_columns in read() takes these, and loses the other rows"
        )
    if seen.distinct > _MAX_SMALL_VOCABULARY and rows_per_value < 1 / 0.9:
        return "nearly every row has a value of its own"
    if seen.distinct > _MAX_SMALL_VOCABULARY and rows_per_value < _MIN_ROWS_PER_VALUE:
        return f"{seen.distinct:,} values, {rows_per_value:.1f} rows each, are too many to learn them"
    return _categorical(seen, name)


def _of_numbers(seen: Seen, name: str) -> _Found:
    if seen.low is None or seen.high is None:
        return "it has no finite value"
    if not seen.whole:
        return Numeric(name=name, null_flag=_wants_flag(seen))
    rows_per_value, range_ = seen.count / seen.distinct, seen.high - seen.low + 1
    if rows_per_value < 1.02 and _NAMELESS.fullmatch(seen.column):
        return "it has no name and numbers the rows, as an index that pandas wrote"
    names_rows = rows_per_value < 1.02 and seen.distinct > _MAX_SMALL_VOCABULARY
    if names_rows and (_is_code(seen.column) or range_ <= 1.05 * seen.count):
        return "it numbers the rows"
    if seen.kind == "long" and seen.distinct > 2 and rows_per_value >= _MIN_ROWS_PER_VALUE:
        is_sparse = seen.distinct <= 50 and range_ >= 10 * seen.distinct and rows_per_value >= 20
        if _is_code(seen.column) or is_sparse:
            return _categorical(seen, name)
    return Numeric(name=name, null_flag=_wants_flag(seen))


def _categorical(seen: Seen, name: str) -> Categorical:
    return Categorical(name=name, min_count=_MIN_ROWS_PER_VALUE if seen.distinct > _RARE_FROM else 1)


def _is_code(column: str) -> bool:
    """Whether the last word of a name says that its numbers are names of something."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", column)
    return bool(words) and words[-1].lower() in _CODE_WORDS


def _is_code_of_digits(seen: Seen) -> bool:
    """Whether text that is numbers names something, as 01067 does a place."""
    return _is_code(seen.column) or seen.padded_texts > (1 - _MOSTLY) * seen.count


def _wants_flag(seen: Seen) -> bool:
    """Whether it can be learnt what a value's being missing tells: of a hundredth of the rows."""
    return seen.nulls_fraction >= 0.01


def _cast(seen: Seen) -> str | None:
    """The type that a column of text should have."""
    if seen.kind != "string" or seen.distinct < 2:
        return None
    if _is_code_of_digits(seen):
        return None
    if seen.numeric_texts >= _MOSTLY * seen.count:
        return "double"
    return "timestamp" if seen.time_texts >= _MOSTLY * seen.count else None


# --- what gives the target away ---------------------------------------------------------------------------


def _copy_of(seen: Seen, target: Seen) -> str | None:
    """Why a column is the target itself."""
    if seen.same and seen.same == target.count:
        return f"it is the target `{target.column}` itself"
    is_one_to_one = seen.distinct == seen.pairs == target.distinct and not seen.nulls
    if is_one_to_one and seen.count >= _MIN_ROWS_PER_VALUE * seen.distinct:
        return f"it is the target `{target.column}` in other words: each value goes with one of its values"
    return None


def _warning(seen: Seen, target: Seen, declared: Target) -> str | None:
    """What makes a column look as if nobody could know it before the target."""
    way_out = "is it known beforehand? If not, take it out"
    if seen.count < 10 * _MIN_ROWS_PER_VALUE:
        return None
    if declared.kind == "binary" and seen.separates:
        return f"its numbers alone separate the target's two classes; {way_out}"
    if seen.correlation is not None and abs(seen.correlation) > _SURELY and seen.count > 2:
        return f"it is the target times a constant, nearly; {way_out}"
    is_known = seen.distinct > 1 and seen.pairs == seen.distinct
    if is_known and seen.count >= 10 * _MIN_ROWS_PER_VALUE and seen.count >= 10 * seen.distinct:
        return f"each of its {seen.distinct:,} values goes with only one value of the target; {way_out}"
    return None


# --- names ------------------------------------------------------------------------------------------------


def _names(columns: Iterable[str]) -> dict[str, str]:
    """A Python name for each column: its own where it is one, and no two alike."""
    given = list(columns)
    taken = {name.lower() for name in given if name.isidentifier()} | set(RESERVED_NAMES)
    names = {}
    for column in given:
        name = column
        if not column.isidentifier() or column.lower() in RESERVED_NAMES:
            words = "".join(c if f"a{c}".isidentifier() else " " for c in column).split()
            legal = "_".join(words) or "column"
            legal = legal if legal.isidentifier() else f"column_{legal}"
            ways = [legal, *(f"{legal}_{number}" for number in range(2, len(given) + len(taken) + 3))]
            name = next(way for way in ways if way.lower() not in taken)
            taken.add(name.lower())
        names[column] = name
    return names


def _column(names: Mapping[str, str], column: str) -> str | None:
    return None if names[column] == column else column


def _key(columns: Iterable[Seen], target: str) -> list[str]:
    """A column that is called like a key, and has a value of its own in each row."""
    for seen in columns:
        is_own = not seen.nulls and seen.distinct >= 0.98 * seen.rows and seen.kind in ("long", "string")
        if is_own and seen.column != target and re.search(r"(?i)(^|_| )(id|key|uuid)$|Id$|ID$", seen.column):
            return [seen.column]
    return []
