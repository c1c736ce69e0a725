"""Holding the declared features against the source's columns, before any row is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime

from pyspark.sql import DataFrame
from pyspark.sql.types import (
    BooleanType,
    DataType,
    DateType,
    IntegralType,
    NumericType,
    StringType,
    TimestampNTZType,
    TimestampType,
)

from sparktrain.dataset.manifest import WEIGHT_COLUMN
from sparktrain.errors import FeaturesInvalid, SchemaMismatch
from sparktrain.features import Feature, Numeric, Target
from sparktrain.features.fitted import InputType
from sparktrain.preparation.cast import UNCASTABLE_COLUMN
from sparktrain.preparation.source import MALFORMED_COLUMN
from sparktrain.preparation.split import ADDED_COLUMNS, SPLITS
from sparktrain.splitting import SplitConfig, instant

RESERVED_NAMES = (*ADDED_COLUMNS, MALFORMED_COLUMN, UNCASTABLE_COLUMN, WEIGHT_COLUMN)


def check_columns(
    df: DataFrame,
    features: Sequence[Feature],
    targets: Sequence[Target],
    key: Sequence[str],
    *,
    weight: str | None = None,
    split: SplitConfig | None = None,
) -> dict[str, InputType]:
    """Find every column that is missing, declared twice or of a type that its feature can't take.

    Args:
        weight: raw column of the rows' weights.
        split: how rows are split, maybe by a column.

    Returns:
        The type of each raw column that a feature is made of.

    Raises:
        FeaturesInvalid: names that clash. SchemaMismatch: columns that the source lacks or has otherwise.
    """
    if problems := [*_clashes(features, targets, weight), *_source_clashes(df.columns)]:
        raise FeaturesInvalid(problems)
    types = {field.name: field.dataType for field in df.schema.fields}
    sources = [*(f.source for f in features), *(t.source for t in targets), *key]
    wanted = [*sources, *(name for name in (weight, split and split.column) if name)]
    missing = [name for name in dict.fromkeys(wanted) if name not in types]
    retyped = {
        f.source: wrong for f in features if f.source in types and (wrong := _wrong(f, types[f.source]))
    }
    for target in targets:
        if target.source in types and (expected := _wrong_target(target, types[target.source])):
            retyped[target.source] = (types[target.source].simpleString(), expected)
    if weight in types and not isinstance(types[weight], NumericType):
        retyped[weight] = (types[weight].simpleString(), "a number, the row's weight")
    if split and split.column in types and (expected := _wrong_split(split, types[split.column])):
        retyped[split.column] = (types[split.column].simpleString(), expected)
    if missing or retyped:
        way_out = f"the source has {', '.join(df.columns)}"
        raise SchemaMismatch("the source", missing=missing, retyped=retyped, way_out=way_out)
    return _input_types(features, types)


def _clashes(features: Sequence[Feature], targets: Sequence[Target], weight: str | None) -> Iterable[str]:
    if not features:
        yield "there is none; declare at least one Numeric or Categorical"
    if not targets:
        yield "there is no target; declare what the model predicts"
    names = [*(f.name for f in features), *(t.name for t in targets)]
    if doubled := _doubled(names):
        yield f"declared twice: {_quoted(doubled)}"
    if reserved := [name for name in dict.fromkeys(names) if name.lower() in RESERVED_NAMES]:
        yield f"names that sparktrain uses itself: {_quoted(reserved)}"
    of_targets = {target.source.lower(): target.name for target in targets}
    for feature in features:
        target = of_targets.get(feature.source.lower())
        if target is not None and target != feature.name:
            yield f"`{feature.name}` is made of the target `{target}`: a model would only repeat it"
    if weight is not None and weight.lower() in of_targets:
        yield f"the weight `{weight}` is the target's column: weigh rows by another one"


def _wrong_target(target: Target, given: DataType) -> str | None:
    """What a target's column must be, when it is not."""
    if target.kind == "multiclass":
        allowed = (StringType, IntegralType, BooleanType)
        return None if isinstance(given, allowed) else "classes as text, integers or booleans"
    return None if isinstance(given, (NumericType, BooleanType)) else "a number or a boolean"


def _wrong_split(split: SplitConfig, given: DataType) -> str | None:
    """What the column that rows are split by must be, when it is not."""
    if split.method == "column" and not isinstance(given, StringType):
        return f"text, one of {', '.join(SPLITS)}, for prepare.split.method=column"
    if split.method == "time":
        start = instant(split.test_from if split.validation_from is None else split.validation_from)
        if isinstance(start, datetime):
            is_time = isinstance(given, (TimestampType, TimestampNTZType, DateType))
            return None if is_time else "a timestamp or a date, as prepare.split's boundaries are"
        return None if isinstance(given, NumericType) else "a number, as prepare.split's boundaries are"
    return None


def _source_clashes(columns: Sequence[str]) -> Iterable[str]:
    if doubled := _doubled(columns):
        yield f"the source has these columns twice: {_quoted(doubled)}; drop or rename one of each"
    if added := [name for name in columns if name.lower() in ADDED_COLUMNS]:
        yield f"the source has columns of names that preparation adds itself: {_quoted(added)}; rename them"


def _doubled(names: Sequence[str]) -> list[str]:
    """Names that occur twice, for Spark, which does not tell `a` from `A`."""
    counts = Counter(name.lower() for name in names)
    return [name for name in dict.fromkeys(names) if counts[name.lower()] > 1]


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _wrong(feature: Feature, given: DataType) -> tuple[str, str] | None:
    """The given and the allowed types of a feature's column, when they differ."""
    if isinstance(feature, Numeric):
        return None if isinstance(given, NumericType) else (given.simpleString(), "a number")
    if isinstance(given, (StringType, BooleanType, IntegralType)):
        return None
    return given.simpleString(), "text, an integer or a boolean"


def _input_types(features: Sequence[Feature], types: dict[str, DataType]) -> dict[str, InputType]:
    found: dict[str, InputType] = {}
    for feature in features:
        found[feature.source] = _input_type(types[feature.source])
    return found


def _input_type(given: DataType) -> InputType:
    if isinstance(given, StringType):
        return "string"
    if isinstance(given, BooleanType):
        return "boolean"
    return "long" if isinstance(given, IntegralType) else "double"
