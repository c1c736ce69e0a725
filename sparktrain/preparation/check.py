"""Holding the declared features against the source's columns, before any row is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import get_args

from pyspark.sql import DataFrame
from pyspark.sql.types import (
    ArrayType,
    BinaryType,
    BooleanType,
    DataType,
    DateType,
    IntegralType,
    NumericType,
    StringType,
    TimestampNTZType,
    TimestampType,
)

from sparktrain.dataset.layout import Dtype, Layout
from sparktrain.dataset.manifest import WEIGHT_COLUMN
from sparktrain.errors import FeaturesInvalid, SchemaMismatch
from sparktrain.features import (
    MALFORMED_COLUMN,
    UNCASTABLE_COLUMN,
    Feature,
    FittedFeatures,
    InputType,
    Target,
    Tokens,
    output_names,
)
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
        The type of each raw column that a feature, a target or the weight is made of.

    Raises:
        FeaturesInvalid: names that clash. SchemaMismatch: columns that the source lacks or has otherwise.
    """
    if problems := [*_clashes(features, targets, weight), *source_clashes(df.columns)]:
        raise FeaturesInvalid(problems)
    types = {field.name: field.dataType for field in df.schema.fields}
    sources = [*(f.source for f in features), *(t.source for t in targets)]
    retyped = {
        f.source: wrong for f in features if f.source in types and (wrong := _wrong(f, types[f.source]))
    }
    for target in targets:
        if target.source in types and (expected := _wrong_target(target, types[target.source])):
            retyped[target.source] = (types[target.source].simpleString(), expected)
    if weight in types and not isinstance(types[weight], NumericType):
        retyped[weight] = (types[weight].simpleString(), "a number, the row's weight")
    of_weight = [weight] if weight else []
    _refuse(types, [*sources, *key, *of_weight], retyped, split)
    return {name: kind for name in [*sources, *of_weight] if (kind := input_type(types[name])) is not None}


def _refuse(
    types: Mapping[str, DataType],
    wanted: Sequence[str],
    retyped: dict[str, tuple[str, str]],
    split: SplitConfig | None,
) -> None:
    """Raise SchemaMismatch if a wanted column is missing, or one is retyped, that of the split included."""
    if split and (column := split.column):
        wanted = [*wanted, column]
        if column in types and (expected := _wrong_split(split, types[column])):
            retyped[column] = (types[column].simpleString(), expected)
    missing = [name for name in dict.fromkeys(wanted) if name not in types]
    if missing or retyped:
        way_out = f"the source has {', '.join(types)}"
        raise SchemaMismatch("the source", missing=missing, retyped=retyped, way_out=way_out)


def _clashes(features: Sequence[Feature], targets: Sequence[Target], weight: str | None) -> Iterable[str]:
    if not features:
        yield "there is none; declare at least one Numeric or Categorical"
    packed = [f.name for f in features if isinstance(f, Tokens) and f.pack]
    if packed and (len(features) > 1 or targets or weight):
        yield f"`{packed[0]}` packs texts into blocks; leave out other features, the target and the weight"
    if not targets and not packed:
        yield "there is no target; declare what the model predicts"
    names = [name for declared in (*features, *targets) for name in output_names(declared)]
    names += [weight] if weight else []
    if doubled := _doubled(names):
        yield f"declared twice: {_quoted(doubled)}"
    if reserved := [name for name in dict.fromkeys(names) if name.lower() in RESERVED_NAMES]:
        yield f"names that sparktrain uses itself: {_quoted(reserved)}"
    of_targets = {target.source.lower(): target.name for target in targets}
    for feature in features:
        target = of_targets.get(feature.source.lower())
        if target is not None and target != feature.name and feature.kind != "passthrough":
            yield f"`{feature.name}` is made of the target `{target}`: a model would only repeat it"
    if weight is not None and weight.lower() in of_targets:
        yield f"the weight `{weight}` is the target's column: weigh rows by another one"


def check_block_names(names: Iterable[str], layout: Layout) -> None:
    """Refuse columns of a dataset that are called as the blocks that others are packed into.

    Raises:
        FeaturesInvalid: with every such name.
    """
    taken = {f"block_{dtype}" for dtype in get_args(Dtype)} if layout == "blocks" else set()
    if clashing := [name for name in names if name.lower() in taken]:
        raise FeaturesInvalid([f"names that the layout `blocks` uses itself: {_quoted(clashing)}"])


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


def source_clashes(columns: Sequence[str]) -> Iterable[str]:
    """What is wrong with the names of a source's columns."""
    if doubled := _doubled(columns):
        yield f"the source has these columns twice: {_quoted(doubled)}; drop or rename one of each"
    if quotes := [name for name in columns if "`" in name]:
        yield f"the source has columns with a backtick in their name: {', '.join(quotes)}; rename them"
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
    found = input_type(given)
    allowed, words = _ALLOWED[feature.kind]
    if isinstance(feature, Tokens) and feature.tokenizer is None:
        allowed, words = ("longs",), "an array of integers, as there is no tokenizer"
    return None if found in allowed else (given.simpleString(), words)


_ALLOWED: dict[str, tuple[tuple[InputType, ...], str]] = {
    "numeric": (("double", "long"), "a number"),
    "categorical": (("string", "long", "boolean"), "text, an integer or a boolean"),
    "boolean": (("boolean",), "a boolean"),
    "timestamp": (("timestamp", "date"), "a timestamp or a date"),
    "vector": (("doubles", "longs", "binary"), "an array of numbers, or binary"),
    "image": (("binary",), "binary"),
    "tokens": (("string",), "text"),
    "passthrough": (
        ("long", "double", "boolean", "string", "timestamp", "date"),
        "a number, a boolean, text, a timestamp or a date",
    ),
}


def input_type(given: DataType) -> InputType | None:
    """What features read a column of this type as; None: nothing that they know."""
    if isinstance(given, ArrayType):
        inner = input_type(given.elementType)
        return {"long": "longs", "double": "doubles"}.get(str(inner))  # type: ignore[return-value]
    for kinds, found in _INPUT_TYPES:
        if isinstance(given, kinds):
            return found
    return None


_INPUT_TYPES: tuple[tuple[tuple[type[DataType], ...], InputType], ...] = (
    ((StringType,), "string"),
    ((BooleanType,), "boolean"),
    ((IntegralType,), "long"),
    ((NumericType,), "double"),
    ((TimestampType, TimestampNTZType), "timestamp"),
    ((DateType,), "date"),
    ((BinaryType,), "binary"),
)


def check_again(
    df: DataFrame, fitted: FittedFeatures, key: Sequence[str], split: SplitConfig
) -> dict[str, InputType]:
    """Hold rows that earlier statistics are to be applied to against what these were fitted on.

    Returns:
        The type of each raw column that is needed, as it is here.

    Raises:
        FeaturesInvalid, SchemaMismatch: as `check_columns`.
    """
    if problems := list(source_clashes(df.columns)):
        raise FeaturesInvalid(problems)
    types = {field.name: field.dataType for field in df.schema.fields}
    needed = dict(fitted.input_types)
    needed |= {target.column: target.input_type for target in fitted.targets}
    if fitted.weight is not None:
        needed[fitted.weight.column] = fitted.weight.input_type
    found = {name: input_type(types[name]) for name in needed if name in types}
    retyped = {
        name: (types[name].simpleString(), f"{needed[name]}, as when the features were fitted")
        for name, kind in found.items()
        if kind != needed[name] and (kind, needed[name]) not in _READABLE
    }
    _refuse(types, [*needed, *key], retyped, split)
    return {name: kind for name, kind in found.items() if kind is not None}


_READABLE = {("long", "double"), ("longs", "doubles"), ("date", "timestamp")}
