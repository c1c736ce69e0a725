"""What is counted of a column while its rows go by; counts of two sets of rows add up, in any order.

Everything is whole numbers (counts, and the exact sums of `exact_sum`), so that the same rows give the same
statistics in any partitioning.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sparktrain.features.sketch import Sketch, bucket_of, quantile
from sparktrain.preparation.exact_sum import Bins, exact_moments, merge_bins, total

MAX_COUNTED_RANGE = 1 << 14  # whole numbers of a smaller range are counted one by one
_LARGEST_WHOLE = 1 << 53
_MAX_TALLY_RANGE = 1 << 16  # half a megabyte


class Tally:
    """Counts by whole number, in an array over the range that was seen as long as that is not large."""

    def __init__(self) -> None:
        self._first = 0
        self._counts = np.zeros(0, np.int64)
        self._far: dict[int, int] = {}

    def add(self, keys: NDArray[np.int64]) -> None:
        if not len(keys):
            return
        low, high = int(keys.min()), int(keys.max())
        if self.span(low, high) > _MAX_TALLY_RANGE:
            distinct, counts = np.unique(keys, return_counts=True)
            self._far = merge_bins(self._far, dict(zip(distinct.tolist(), counts.tolist(), strict=True)))
            return
        self._reach(low, high)
        self._counts[low - self._first : high + 1 - self._first] += np.bincount(keys - low)

    def _reach(self, low: int, high: int) -> None:
        last = self._first + len(self._counts) - 1
        if len(self._counts) and self._first <= low and high <= last:
            return
        first = min(low, self._first) if len(self._counts) else low
        grown = np.zeros(max(high, last if len(self._counts) else high) - first + 1, np.int64)
        grown[self._first - first : self._first - first + len(self._counts)] = self._counts
        self._first, self._counts = first, grown

    def span(self, low: int, high: int) -> int:
        """The range that it would have with `low` and `high` in it."""
        if not len(self._counts):
            return high - low
        return max(high, self._first + len(self._counts) - 1) - min(low, self._first)

    def items(self) -> dict[int, int]:
        found = np.flatnonzero(self._counts)
        near = dict(zip((found + self._first).tolist(), self._counts[found].tolist(), strict=True))
        return merge_bins(self._far, near) if self._far else near


@dataclass
class Numbers:
    """A column of numbers.

    Attributes:
        nans, infinities: numbers of rows of all splits.
        train_nans, train_infinities: of the train split.
        smallest, largest: finite values of all splits; None before there is one.
        count: finite values of the train split, like all that follows.
        train_smallest, train_largest: of these.
        sum, square_sum: of these, exactly.
        values: count by value, as long as they are whole numbers of a range of at most MAX_COUNTED_RANGE.
        buckets: count by bucket of `features.sketch`, once `values` is None.
    """

    nans: int = 0
    infinities: int = 0
    train_nans: int = 0
    train_infinities: int = 0
    smallest: float | None = None
    largest: float | None = None
    count: int = 0
    train_smallest: float | None = None
    train_largest: float | None = None
    sum: Bins = field(default_factory=dict)
    square_sum: Bins = field(default_factory=dict)
    values: dict[int, int] | None = None
    buckets: Sketch = field(default_factory=dict)

    def merge(self, other: Numbers, bits: int) -> Numbers:
        """Both together."""
        values = self._values_with(other)
        mine, its = (self, other) if values is not None else (self.in_buckets(bits), other.in_buckets(bits))
        return Numbers(
            nans=self.nans + other.nans,
            infinities=self.infinities + other.infinities,
            train_nans=self.train_nans + other.train_nans,
            train_infinities=self.train_infinities + other.train_infinities,
            smallest=_pick(min, self.smallest, other.smallest),
            largest=_pick(max, self.largest, other.largest),
            count=self.count + other.count,
            train_smallest=_pick(min, self.train_smallest, other.train_smallest),
            train_largest=_pick(max, self.train_largest, other.train_largest),
            sum=merge_bins(self.sum, other.sum),
            square_sum=merge_bins(self.square_sum, other.square_sum),
            values=values,
            buckets=merge_bins(mine.buckets, its.buckets),
        )

    def _values_with(self, other: Numbers) -> dict[int, int] | None:
        if not other.count:
            return self.values if self.count else {}
        if not self.count:
            return other.values
        if self.values is None or other.values is None:
            return None
        together = merge_bins(self.values, other.values)
        return together if max(together) - min(together) <= MAX_COUNTED_RANGE else None

    def in_buckets(self, bits: int) -> Numbers:
        """The same with `buckets` in place of `values`."""
        if self.values is None:
            return self
        keys = bucket_of(np.array(list(self.values), np.float64), bits).tolist()
        buckets: Sketch = {}
        for key, count in zip(keys, self.values.values(), strict=True):
            buckets[key] = buckets.get(key, 0) + count
        return replace(self, values=None, buckets=buckets)

    def mean(self) -> float:
        return float(total(self.sum) / self.count) if self.count else 0.0

    def deviation(self) -> float:
        """Population standard deviation."""
        if not self.count:
            return 0.0
        mean = total(self.sum) / self.count
        return _square_root(total(self.square_sum) / self.count - mean * mean)

    def quantile(self, q: float, bits: int) -> float:
        """Exact (interpolated linearly, as numpy does it) from `values`, else to within a bucket's width."""
        if not self.count or self.train_smallest is None or self.train_largest is None:
            return 0.0
        if self.values is None:
            return quantile(self.buckets, q, bits, self.train_smallest, self.train_largest)
        keys = np.array(sorted(self.values))
        ends = np.cumsum([self.values[key] for key in keys.tolist()])
        place = q * (self.count - 1)
        low, high = (int(keys[np.searchsorted(ends, rank, side="right")]) for rank in _neighbours(place))
        return low + (high - low) * (place - math.floor(place))

    def to_text(self) -> str:
        # Python's integers outgrow 64 bits, so that they travel as text; JSON has no integer keys
        pairs = {k: list(v.items()) if isinstance(v, dict) else v for k, v in vars(self).items()}
        return json.dumps(pairs)

    @classmethod
    def from_text(cls, text: str) -> Numbers:
        given: dict[str, Any] = json.loads(text)
        for name in ("sum", "square_sum", "values", "buckets"):
            given[name] = None if given[name] is None else dict(given[name])
        return cls(**given)


class NumberCounter:
    """Counts a column of numbers, array by array.

    Args:
        bits: width of the sketch's buckets.
        low, high: finite values beyond them count as them.
    """

    def __init__(self, bits: int, low: float | None = None, high: float | None = None) -> None:
        self._bits, self._low, self._high = bits, low, high
        self._found = Numbers()
        self._whole: Tally | None = Tally()
        self._positive, self._negative, self._num_zeros = Tally(), Tally(), 0

    def add(self, column: pa.Array, is_training: bool) -> None:
        """Count an array of integers or of float64."""
        column = column.drop_null()
        if not len(column):
            return
        given = column.to_numpy(zero_copy_only=False)
        values = given if given.dtype == np.float64 else given.astype(np.float64)
        low, high = float(values.min()), float(values.max())  # NaN if there is one
        if not (math.isfinite(low) and math.isfinite(high)):
            values = self._without_non_finite(values, is_training)
            if not len(values):
                return
            given, low, high = values, float(values.min()), float(values.max())
        if (self._low is not None and low < self._low) or (self._high is not None and high > self._high):
            values = np.clip(values, self._low, self._high)
            given = self._as_whole(values) if given.dtype.kind in "iu" else values
            low, high = float(values.min()), float(values.max())
        low, high = low + 0.0, high + 0.0  # which of two zeros comes first depends on the order of the rows
        found = self._found
        found.smallest, found.largest = _pick(min, found.smallest, low), _pick(max, found.largest, high)
        if not is_training:
            return
        found.train_smallest = _pick(min, found.train_smallest, low)
        found.train_largest = _pick(max, found.train_largest, high)
        found.count += len(values)
        self._add_training(given, values, low, high)

    def _without_non_finite(self, values: NDArray[np.float64], is_training: bool) -> NDArray[np.float64]:
        nans, infinities = int(np.isnan(values).sum()), int(np.isinf(values).sum())
        self._found.nans += nans
        self._found.infinities += infinities
        self._found.train_nans += nans * is_training
        self._found.train_infinities += infinities * is_training
        return values[np.isfinite(values)]

    def _as_whole(self, clipped: NDArray[np.float64]) -> NDArray[Any]:
        """Integers, if the bounds that they were clipped to are whole numbers as well."""
        if any(bound is not None and not float(bound).is_integer() for bound in (self._low, self._high)):
            return clipped
        with np.errstate(invalid="ignore"):  # what int64 can't hold is too large to be counted one by one
            return clipped.astype(np.int64)

    def _add_training(
        self, given: NDArray[Any], values: NDArray[np.float64], low: float, high: float
    ) -> None:
        if self._whole is not None:
            fits = given.dtype.kind in "iu" and max(-low, high) < _LARGEST_WHOLE
            if fits and self._whole.span(int(low), int(high)) <= MAX_COUNTED_RANGE:
                self._whole.add(given.astype(np.int64, copy=False))
                return
            self._found = self._with_whole().in_buckets(self._bits)
            self._whole = None
        sums, squares = exact_moments(values)
        self._found.sum = merge_bins(self._found.sum, sums)
        self._found.square_sum = merge_bins(self._found.square_sum, squares)
        keys = bucket_of(values, self._bits)
        num_zeros = len(keys) - int(np.count_nonzero(keys))
        self._num_zeros += num_zeros
        if low >= 0 and not num_zeros:
            self._positive.add(keys)
        else:  # each apart, because an array over all would span the exponents in between
            self._positive.add(keys[keys > 0])
            self._negative.add(keys[keys < 0])

    def _with_whole(self) -> Numbers:
        """What was counted one by one, with its sums."""
        assert self._whole is not None
        counts = self._whole.items()
        sums = {0: sum(value * count for value, count in counts.items())}
        squares = {0: sum(value * value * count for value, count in counts.items())}
        return replace(self._found, values=counts, sum=sums, square_sum=squares)

    def result(self) -> Numbers:
        if self._whole is not None:
            return self._with_whole()
        buckets = merge_bins(self._found.buckets, merge_bins(self._positive.items(), self._negative.items()))
        if self._num_zeros:
            buckets = merge_bins(buckets, {0: self._num_zeros})
        return replace(self._found, buckets=buckets)


class ValueCounter:
    """Counts the values of a column of text, integers or booleans, as text; nulls don't count.

    Rows that many distinct values fill come out by `overflow`, so that memory stays bounded.
    """

    def __init__(self, max_distinct: int = 500_000) -> None:
        self._max_distinct = max_distinct
        self._whole: Tally | None = None
        self._tables: list[pa.Table] = []
        self._size = 0

    def add(self, column: pa.Array) -> None:
        column = column.drop_null()
        if not len(column):
            return
        if pa.types.is_integer(column.type) and self._add_whole(column):
            return
        counted = pc.value_counts(column)
        keys, counts = counted.field("values").cast(pa.string()), counted.field("counts")
        self._tables.append(pa.table({"key": keys, "count": counts}))
        self._size += len(keys)
        if self._size > self._max_distinct:
            self._compact()

    def _add_whole(self, column: pa.Array) -> bool:
        """Count integers of a small range in an array; False where the range is too large for it."""
        values = column.to_numpy(zero_copy_only=False).astype(np.int64, copy=False)
        tally = self._whole or Tally()
        if tally.span(int(values.min()), int(values.max())) > MAX_COUNTED_RANGE:
            return False
        tally.add(values)
        self._whole = tally
        return True

    def _compact(self) -> None:
        merged = pa.concat_tables(self._tables).group_by("key").aggregate([("count", "sum")])
        self._tables = [pa.table({"key": merged["key"], "count": merged["count_sum"]})]
        self._size = len(merged)

    def overflow(self) -> pa.Table | None:
        """Take the counts out, `key` and `count`, when they fill the memory that is meant for them."""
        return self.take() if self._size > self._max_distinct else None

    def take(self) -> pa.Table | None:
        """Take all counts out; None when there are none."""
        if self._whole is not None:
            counts = self._whole.items()
            keys = pa.array([str(value) for value in counts], pa.string())
            self._tables.append(pa.table({"key": keys, "count": pa.array(counts.values(), pa.int64())}))
            self._whole = None
        if not self._tables:
            return None
        self._compact()
        table = self._tables[0]
        self._tables, self._size = [], 0
        return table


def merged_numbers(texts: Iterable[str], bits: int) -> Numbers:
    found = Numbers(values={})
    for text in texts:
        found = found.merge(Numbers.from_text(text), bits)
    return found


def _neighbours(place: float) -> tuple[int, int]:
    return math.floor(place), math.ceil(place)


def _pick(choose: Any, left: float | None, right: float | None) -> float | None:
    if left is None or right is None:
        return left if right is None else right
    return float(choose(left, right))


def _square_root(value: Fraction) -> float:
    if value <= 0:
        return 0.0
    # Brought near 1 first: the variance of small numbers can be smaller than any float64.
    shift = (value.denominator.bit_length() - value.numerator.bit_length()) // 2
    return math.ldexp(math.sqrt(value * Fraction(4) ** shift), -shift)
