"""From what was counted to fitted features: pure arithmetic on the driver."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa

from sparktrain.errors import TooManyClasses, ValuesRefused, ValueTooLarge
from sparktrain.features import (
    Boolean,
    Categorical,
    Feature,
    FittedBoolean,
    FittedCategorical,
    FittedFeature,
    FittedFeatures,
    FittedImage,
    FittedNumeric,
    FittedPassthrough,
    FittedTarget,
    FittedTimestamp,
    FittedTokens,
    FittedVector,
    FittedWeight,
    Image,
    InputType,
    Numeric,
    Passthrough,
    Target,
    Timestamp,
    Tokens,
    Vector,
)
from sparktrain.features.fitted_columns.numeric import Replacement
from sparktrain.features.sketch import CARD_BITS, FINE_BITS
from sparktrain.preparation.counting import Numbers
from sparktrain.preparation.spooling import PLAIN, View, Wanted
from sparktrain.preparation.survey import Survey

logger = logging.getLogger(__name__)

LARGEST = 1e150  # the variance of larger values leaves float64
LARGEST_FLOAT32 = float(np.finfo(np.float32).max)
MAX_CLASSES = 100_000
_NUM_SHOWN = 1000  # values of a column whose vocabulary is no longer to be made


def wanted_columns(
    features: Sequence[Feature], targets: Sequence[Target], weight: str | None, types: Mapping[str, InputType]
) -> list[Wanted]:
    """What has to be counted to fit these features, one entry for each raw column.

    Args:
        types: of every raw column that a feature, a target or the weight is made of.
    """
    wanted: dict[str, Wanted] = {}
    for feature in features:
        if isinstance(feature, Numeric):
            _want(wanted, types, feature.source, view=PLAIN)
            _want(wanted, types, feature.source, view=view_of(feature))
        elif isinstance(feature, Boolean):
            _want(wanted, types, feature.source, max_values=_NUM_SHOWN)
        elif isinstance(feature, Categorical) and feature.encoding == "vocabulary":
            _want(wanted, types, feature.source, max_values=feature.max_size, min_count=feature.min_count)
        else:
            _want(wanted, types, feature.source)
    for target in targets:
        classes = target.kind == "multiclass"
        _want(
            wanted, types, target.source, max_values=MAX_CLASSES + 1 if classes else None, all_splits=classes
        )
    if weight is not None:
        _want(wanted, types, weight, view=PLAIN)
    return list(wanted.values())


def wanted_again(fitted: FittedFeatures, types: Mapping[str, InputType]) -> list[Wanted]:
    """What to count of rows that earlier statistics are applied to: enough for the card and for drift."""
    wanted: dict[str, Wanted] = {}
    for feature in fitted.features:
        if isinstance(feature, FittedNumeric):
            _want(wanted, types, feature.column, view=PLAIN)
        elif isinstance(feature, FittedBoolean) or (
            isinstance(feature, FittedCategorical) and feature.num_buckets is None
        ):
            _want(wanted, types, feature.column, max_values=_NUM_SHOWN)
        else:
            _want(wanted, types, feature.column)
    for column in [*(t.column for t in fitted.targets), *([fitted.weight.column] if fitted.weight else [])]:
        _want(wanted, types, column)
    return list(wanted.values())


def _want(
    wanted: dict[str, Wanted],
    types: Mapping[str, InputType],
    column: str,
    view: View | None = None,
    max_values: int | None = None,
    min_count: int = 1,
    all_splits: bool = False,
) -> None:
    """Add to what is wanted of a column, for it may be the source of several features."""
    before = wanted.get(column, Wanted(column, types[column], min_count=min_count))
    views = before.views if view is None or view in before.views else (*before.views, view)
    if before.max_values is not None:
        min_count = min(min_count, before.min_count) if max_values is not None else before.min_count
        max_values = max(max_values or 0, before.max_values)
    wanted[column] = Wanted(
        column, types[column], views, max_values, min_count, before.all_splits or all_splits
    )


def view_of(feature: Numeric) -> View:
    """How the numbers of a feature look when its statistics are taken: clipped, as the feature clips them."""
    by_quantiles = feature.normalize == "robust" or feature.fill == "median"
    low, high = bounds_of(feature)
    return View(low, high, FINE_BITS if by_quantiles else CARD_BITS)


def bounds_of(feature: Numeric) -> tuple[float | None, float | None]:
    low, high = feature.clip or (None, None)
    return (0.0 if feature.normalize == "log1p" and low is None else low), high


def fit_features(
    found: Survey,
    features: Sequence[Feature],
    targets: Sequence[Target],
    weight: str | None,
    types: Mapping[str, InputType],
) -> FittedFeatures:
    """Fit on the training rows that were counted.

    Raises:
        ValuesRefused: nulls, NaN or infinities, in any split, where a feature allows none.
        ValueTooLarge: numbers that float32 can't hold once they are normalized, in any split.
    """
    refused = {f.source: what for f in features if (what := ", ".join(_refused(f, found)))}
    if refused:
        raise ValuesRefused(refused)
    _check_raw_sizes([f.source for f in features if isinstance(f, Numeric)], found)  # or no fit is finite
    fitted = [_fit(feature, found, types[feature.source]) for feature in features]
    result = FittedFeatures(
        features=tuple(fitted),
        targets=tuple(_fit_target(target, found, types[target.source]) for target in targets),
        weight=_fit_weight(weight, found, types) if weight is not None else None,
    )
    check_sizes(result, found)
    return result


def _refused(feature: Feature, found: Survey) -> Iterable[str]:
    if getattr(feature, "fill", None) == "fail" and (nulls := found.nulls[feature.source]):
        yield f"{nulls:,} nulls"
    if isinstance(feature, Numeric):
        numbers = found.numbers[feature.source, PLAIN]
        as_null = feature.fill == "fail" and feature.nan == "null"
        if numbers.nans and (feature.nan == "fail" or as_null):
            yield f"{numbers.nans:,} NaN"
        as_null = feature.fill == "fail" and feature.infinity == "null"
        if numbers.infinities and (feature.infinity == "fail" or as_null):
            yield f"{numbers.infinities:,} infinities"


def check_sizes(fitted: FittedFeatures, found: Survey) -> None:
    """Refuse what would be written as an infinity, which a model can't learn from.

    Raises:
        ValueTooLarge: for numbers of any split, and for what a feature would put in their place.
    """
    features = [feature for feature in fitted.features if isinstance(feature, FittedNumeric)]
    _check_raw_sizes([feature.column for feature in features], found)
    too_large: dict[str, float] = {}
    for feature in features:
        instead = (feature.fill, feature.nan, feature.positive_infinity, feature.negative_infinity)
        given = [*_extremes(feature.column, found), *(x for x in instead if isinstance(x, float))]
        made = feature.transform(pa.array(given, pa.float64()))[feature.name]
        if lost := [abs(x) for x, is_sound in zip(given, np.isfinite(made), strict=True) if not is_sound]:
            too_large[feature.column] = max(lost)
    if too_large:
        raise ValueTooLarge(too_large, LARGEST, LARGEST_FLOAT32)


def _check_raw_sizes(columns: Iterable[str], found: Survey) -> None:
    largest = {column: max(map(abs, _extremes(column, found))) for column in columns}
    if too_large := {column: value for column, value in largest.items() if value > LARGEST}:
        raise ValueTooLarge(too_large, LARGEST, LARGEST_FLOAT32)


def _extremes(column: str, found: Survey) -> tuple[float, float]:
    """The smallest and the largest finite value, of all splits."""
    numbers = found.numbers[column, PLAIN]
    return numbers.smallest or 0.0, numbers.largest or 0.0


def _fit(feature: Feature, found: Survey, input_type: InputType) -> FittedFeature:
    named = {"name": feature.name, "column": feature.source, "input_type": input_type}
    if isinstance(feature, Numeric):
        return _fit_numeric(feature, found.numbers[feature.source, view_of(feature)], named)
    if isinstance(feature, Categorical):
        if feature.encoding == "hash":
            return FittedCategorical(**named, num_buckets=feature.num_buckets)
        counts = found.values[feature.source].counts
        frequent = [value for value, count in counts if count >= feature.min_count]
        return FittedCategorical(**named, vocabulary=tuple(frequent[: feature.max_size]))
    if isinstance(feature, Boolean):
        fill = None if feature.fill == "fail" else feature.fill
        return FittedBoolean(**named, fill=fill, null_flag=feature.null_flag)
    if isinstance(feature, Timestamp):
        options = {"parts": feature.parts, "cyclic": feature.cyclic, "null_flag": feature.null_flag}
        return FittedTimestamp(**named, time_zone=feature.time_zone, **options)
    if isinstance(feature, Vector):
        zeros = None if feature.fill == "fail" else feature.fill
        return FittedVector(**named, shape=feature.shape, dtype=feature.dtype, fill=zeros)
    if isinstance(feature, Image):
        zeros = None if feature.fill == "fail" else feature.fill
        return FittedImage(**named, shape=feature.shape, dtype=feature.dtype, fill=zeros)
    if isinstance(feature, Tokens):
        sizes = {"block_size": feature.block_size, "pad_id": feature.pad_id}
        return FittedTokens(**named, tokenizer=feature.tokenizer, pack=feature.pack, **sizes)
    assert isinstance(feature, Passthrough)
    return FittedPassthrough(**named, fill=None if feature.fill == "fail" else feature.fill)


def _fit_numeric(feature: Numeric, numbers: Numbers, named: Mapping[str, str]) -> FittedNumeric:
    bits = view_of(feature).bits
    mean = numbers.mean()
    offset, scale = 0.0, 1.0
    if feature.normalize == "standard":
        offset, scale = mean, numbers.deviation()
    elif feature.normalize == "minmax":
        offset = numbers.train_smallest or 0.0
        scale = (numbers.train_largest or 0.0) - offset
    elif feature.normalize == "robust":
        offset = numbers.quantile(0.5, bits)
        scale = numbers.quantile(0.75, bits) - numbers.quantile(0.25, bits)
        if not scale and numbers.values is None and numbers.train_smallest != numbers.train_largest:
            logger.warning(
                "`%s`: both quartiles are %g to within 2**-10 of their size, so that it is only centred; "
                "subtract a constant in the source if it varies more finely",
                named["column"],
                offset,
            )
    fills = {"mean": mean, "median": numbers.quantile(0.5, bits) if feature.fill == "median" else None}
    fill = fills.get(feature.fill) if isinstance(feature.fill, str) else feature.fill  # None: refused
    low, high = bounds_of(feature)
    above: Replacement = "null" if feature.infinity == "null" else None
    below = above
    if feature.infinity == "clip":
        above = high if high is not None else numbers.train_largest or 0.0
        below = low if low is not None else numbers.train_smallest or 0.0
    return FittedNumeric(
        **named,
        fill=fill,
        nan=None if feature.nan == "fail" else feature.nan,
        positive_infinity=above,
        negative_infinity=below,
        low=low,
        high=high,
        log1p=feature.normalize == "log1p",
        offset=offset,
        scale=scale or 1.0,  # a constant column has deviation 0
        null_flag=feature.null_flag,
    )


def _fit_target(target: Target, found: Survey, input_type: InputType) -> FittedTarget:
    classes: tuple[str, ...] = ()
    if target.kind == "multiclass":
        if (distinct := found.values[target.source].distinct) > MAX_CLASSES:
            raise TooManyClasses(target.name, distinct, MAX_CLASSES)
        values = [value for value, _ in found.values[target.source].counts]
        # by value, so that a class keeps its number when the counts change
        classes = tuple(
            sorted(values, key=lambda text: (int(text), "") if input_type == "long" else (0, text))
        )
    named = {"name": target.name, "column": target.source, "input_type": input_type}
    return FittedTarget(**named, kind=target.kind, classes=classes)


def _fit_weight(weight: str, found: Survey, types: Mapping[str, InputType]) -> FittedWeight:
    mean = found.numbers[weight, PLAIN].mean()
    return FittedWeight(name=weight, column=weight, input_type=types[weight], scale=mean or 1.0)
