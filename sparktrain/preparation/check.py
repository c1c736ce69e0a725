"""Holding the declared features against the source's columns, before any row is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from pyspark.sql import DataFrame
from pyspark.sql.types import BooleanType, DataType, IntegralType, NumericType, StringType

from sparktrain.dataset.manifest import WEIGHT_COLUMN
from sparktrain.errors import FeaturesInvalid, SchemaMismatch
from sparktrain.features import Feature, Numeric, Target
from sparktrain.features.fitted import InputType
from sparktrain.preparation.clean import RULE_COLUMN
from sparktrain.preparation.source import MALFORMED_COLUMN
from sparktrain.preparation.split import ORDER_COLUMN, ROW_ID_COLUMN, SPLIT_COLUMN

ADDED_COLUMNS = (ROW_ID_COLUMN, RULE_COLUMN, SPLIT_COLUMN, ORDER_COLUMN)
RESERVED_NAMES = (*ADDED_COLUMNS, MALFORMED_COLUMN, WEIGHT_COLUMN)


def check_columns(
    df: DataFrame, features: Sequence[Feature], target: Target, key: Sequence[str]
) -> dict[str, InputType]:
    """Find every column that is missing, declared twice or of a type that its feature can't take.

    Returns:
        The type of each raw column that a feature is made of.

    Raises:
        FeaturesInvalid: names that clash. SchemaMismatch: columns that the source lacks or has otherwise.
    """
    if problems := [*_clashes(features, target), *_source_clashes(df.columns)]:
        raise FeaturesInvalid(problems)
    types = {field.name: field.dataType for field in df.schema.fields}
    wanted = [*(f.source for f in features), target.name, *key]
    missing = [name for name in dict.fromkeys(wanted) if name not in types]
    retyped = {
        f.source: wrong for f in features if f.source in types and (wrong := _wrong(f, types[f.source]))
    }
    if target.name in types and not isinstance(types[target.name], (NumericType, BooleanType)):
        retyped[target.name] = (types[target.name].simpleString(), "a number or a boolean")
    if missing or retyped:
        way_out = f"the source has {', '.join(df.columns)}"
        raise SchemaMismatch("the source", missing=missing, retyped=retyped, way_out=way_out)
    return _input_types(features, types)


def _clashes(features: Sequence[Feature], target: Target) -> Iterable[str]:
    if not features:
        yield "there is none; declare at least one Numeric or Categorical"
    names = [*(f.name for f in features), target.name]
    if doubled := _doubled(names):
        yield f"declared twice: {_quoted(doubled)}"
    if reserved := [name for name in dict.fromkeys(names) if name.lower() in RESERVED_NAMES]:
        yield f"names that sparktrain uses itself: {_quoted(reserved)}"
    for feature in features:
        if feature.source == target.name != feature.name:
            yield f"`{feature.name}` is made of the target `{target.name}`: a model would only repeat it"


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
