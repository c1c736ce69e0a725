"""One pass over the rows counts everything: rules, splits, vocabularies and moments; JSON comes out.

Runs column-wise on Arrow batches in Spark's Python workers. Every statistic is a sum of integers (see
`exact_sum`), so the same rows give the same bytes in any partitioning, and the number of Spark jobs does not
grow with the columns.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from sparktrain.errors import ValueTooLarge
from sparktrain.features import (
    Categorical,
    Feature,
    FittedCategorical,
    FittedFeatures,
    FittedNumeric,
    Numeric,
    Target,
)
from sparktrain.features.fitted import InputType, read_as
from sparktrain.preparation.exact_sum import Bins, exact_bins, exact_square_bins, merge_bins, total
from sparktrain.preparation.rules import RULE_COLUMN
from sparktrain.preparation.split import SPLIT_COLUMN

LARGEST = 1e150  # the variance of larger values leaves float64
LARGEST_FLOAT32 = float(np.finfo(np.float32).max)

_SCHEMA = "topic string, key string, count bigint, moments array<string>"
_BATCH_SCHEMA = pa.schema(
    [("topic", pa.string()), ("key", pa.string()), ("count", pa.int64()), ("moments", pa.list_(pa.string()))]
)


@dataclass
class Moments:
    """What mean and deviation need, exactly, of the finite values.

    Attributes:
        count, sum, square_sum: of the training rows.
        largest: absolute value, in any split.
    """

    count: int = 0
    sum: Bins = field(default_factory=dict)
    square_sum: Bins = field(default_factory=dict)
    largest: float = 0.0

    def add(self, column: pa.Array, is_training: NDArray[np.bool_]) -> None:
        values = read_as(column, "double").to_numpy(zero_copy_only=False)
        finite = np.isfinite(values)
        largest = float(np.abs(values[finite]).max(initial=0.0))
        values = values[finite & is_training]
        self.merge(Moments(len(values), exact_bins(values), exact_square_bins(values), largest))

    def merge(self, other: Moments) -> None:
        self.count += other.count
        self.sum = merge_bins(self.sum, other.sum)
        self.square_sum = merge_bins(self.square_sum, other.square_sum)
        self.largest = max(self.largest, other.largest)

    def mean(self) -> float:
        return float(total(self.sum) / self.count) if self.count else 0.0

    def deviation(self) -> float:
        """Population standard deviation."""
        if not self.count:
            return 0.0
        mean = total(self.sum) / self.count
        return _square_root(total(self.square_sum) / self.count - mean * mean)

    def to_text(self) -> str:
        # Python's integers outgrow 64 bits, so that they travel as text.
        return json.dumps([self.count, list(self.sum.items()), list(self.square_sum.items()), self.largest])

    @classmethod
    def from_text(cls, text: str) -> Moments:
        count, sums, squares, largest = json.loads(text)
        return cls(count, dict(sums), dict(squares), largest)


def _square_root(value: Fraction) -> float:
    if value <= 0:
        return 0.0
    # Brought near 1 first: the variance of small numbers can be smaller than any float64.
    shift = (value.denominator.bit_length() - value.numerator.bit_length()) // 2
    return math.ldexp(math.sqrt(value * Fraction(4) ** shift), -shift)


@dataclass(frozen=True)
class Fit:
    """What one pass found.

    Attributes:
        features: the fitted features.
        rows_in: rows of the source.
        quarantined: rows by the rule that they broke, rules that broke none left out.
        split_rows: rows kept, by split.
    """

    features: FittedFeatures
    rows_in: int
    quarantined: dict[str, int]
    split_rows: dict[str, int]


def fit(
    marked: DataFrame,
    features: Sequence[Feature],
    target: Target,
    input_types: Mapping[str, InputType],
    rules: Sequence[str],
) -> Fit:
    """Fit `features` on the training rows that are kept; count all rows.

    Args:
        marked: rows with `_broken_rule` and `_split`.
        input_types: type of each raw column.
        rules: names of the rules, in the order to report.

    Raises:
        ValueTooLarge: numbers that float32 can't hold once they are normalized, in any split.
    """
    counts, moments = _count(marked, features)
    too_large = {f.source: m.largest for f in features if (m := moments.get(f.name)) and m.largest > LARGEST}
    if too_large:
        raise ValueTooLarge(too_large, LARGEST, LARGEST_FLOAT32)
    fitted = [
        _fit_numeric(f, moments[f.name], input_types[f.source])
        if isinstance(f, Numeric)
        else _fit_categorical(f, counts.get(f"value:{f.name}", {}), input_types[f.source])
        for f in features
    ]
    _check_outputs([f for f in fitted if isinstance(f, FittedNumeric)], moments)
    quarantined = counts.get("rule", {})
    kept = counts.get("split", {})
    return Fit(
        features=FittedFeatures(features=tuple(fitted), target=target),
        rows_in=sum(quarantined.values()) + sum(kept.values()),
        quarantined={rule: quarantined[rule] for rule in rules if rule in quarantined},
        split_rows=kept,
    )


def _count(
    marked: DataFrame, features: Sequence[Feature]
) -> tuple[dict[str, dict[str, int]], dict[str, Moments]]:
    """Run the one job: counts by topic and key, moments by numeric feature."""
    # By number, because mapInArrow takes the dot in a name for a field of a struct.
    numbers = {name: f"_{number}" for number, name in enumerate(dict.fromkeys(f.source for f in features))}
    columns = [F.col(f"`{name}`").alias(number) for name, number in numbers.items()]
    counter = partial(
        count_partition,
        numeric={f.name: numbers[f.source] for f in features if isinstance(f, Numeric)},
        categorical={f.name: numbers[f.source] for f in features if isinstance(f, Categorical)},
    )
    partials = marked.select(RULE_COLUMN, SPLIT_COLUMN, *columns).mapInArrow(counter, _SCHEMA)
    rows = partials.groupBy("topic", "key").agg(
        F.sum("count").alias("count"), F.flatten(F.collect_list("moments")).alias("moments")
    )
    counts: dict[str, dict[str, int]] = {}
    moments = {f.name: Moments() for f in features if isinstance(f, Numeric)}
    for row in rows.collect():
        if row["topic"] == "moments":
            for text in row["moments"]:
                moments[row["key"]].merge(Moments.from_text(text))
        else:
            counts.setdefault(row["topic"], {})[row["key"]] = row["count"]
    return counts, moments


def _check_outputs(fitted: Sequence[FittedNumeric], moments: Mapping[str, Moments]) -> None:
    """Refuse what would be written as an infinity, which a model can't learn from."""
    too_large = {}
    for feature in fitted:
        largest = max(moments[feature.name].largest, abs(feature.fill))
        if (largest + abs(feature.offset)) / feature.scale > LARGEST_FLOAT32:
            too_large[feature.column] = largest
    if too_large:
        raise ValueTooLarge(too_large, LARGEST, LARGEST_FLOAT32)


def _fit_numeric(feature: Numeric, moments: Moments, input_type: InputType) -> FittedNumeric:
    mean = moments.mean()
    standard = feature.normalize == "standard"
    return FittedNumeric(
        name=feature.name,
        column=feature.source,
        input_type=input_type,
        fill=mean if feature.fill == "mean" else feature.fill,
        offset=mean if standard else 0.0,
        scale=(moments.deviation() or 1.0) if standard else 1.0,  # a constant column has deviation 0
    )


def _fit_categorical(
    feature: Categorical, counts: Mapping[str, int], input_type: InputType
) -> FittedCategorical:
    frequent = [(value, count) for value, count in counts.items() if count >= feature.min_count]
    frequent.sort(key=lambda item: (-item[1], item[0]))
    vocabulary = tuple(value for value, _ in frequent[: feature.max_size])
    return FittedCategorical(
        name=feature.name, column=feature.source, input_type=input_type, vocabulary=vocabulary
    )


def count_partition(
    batches: Iterable[pa.RecordBatch], numeric: Mapping[str, str], categorical: Mapping[str, str]
) -> Iterator[pa.RecordBatch]:
    """Count one Spark partition; runs on an executor.

    Args:
        numeric, categorical: column of the batches by feature.

    Yields one batch of (topic, key, count, moments): rows by rule and by split, training rows by value of
    each categorical column, and the moments of each numeric column.
    """
    counts: Counter[tuple[str, str]] = Counter()
    moments = {name: Moments() for name in numeric}
    for batch in batches:
        _count_values(counts, "rule", batch.column(RULE_COLUMN))
        kept = batch.filter(pc.is_null(batch.column(RULE_COLUMN)))
        _count_values(counts, "split", kept.column(SPLIT_COLUMN))
        is_training = pc.equal(kept.column(SPLIT_COLUMN), "train")
        training = kept.filter(is_training)
        for name, column in categorical.items():
            _count_values(counts, f"value:{name}", training.column(column).cast(pa.string()))
        for name, column in numeric.items():
            moments[name].add(kept.column(column), is_training.to_numpy(zero_copy_only=False))
    rows = [
        {"topic": topic, "key": key, "count": count, "moments": []} for (topic, key), count in counts.items()
    ]
    rows += [
        {"topic": "moments", "key": name, "count": m.count, "moments": [m.to_text()]}
        for name, m in moments.items()
    ]
    yield pa.RecordBatch.from_pylist(rows, schema=_BATCH_SCHEMA)


def _count_values(counts: Counter[tuple[str, str]], topic: str, column: pa.Array) -> None:
    for item in pc.value_counts(column):
        value = item["values"].as_py()
        if value is not None:
            counts[topic, value] += item["counts"].as_py()
