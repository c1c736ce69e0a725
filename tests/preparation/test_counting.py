"""Counts of a column: exact, bounded in memory, and the same ones however its rows were divided."""

from __future__ import annotations

import math
import random
import tracemalloc
from collections import Counter
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparktrain.features.sketch import CARD_BITS, FINE_BITS
from sparktrain.preparation.counting import (
    MAX_COUNTED_RANGE,
    NumberCounter,
    Numbers,
    Tally,
    ValueCounter,
    merged_numbers,
)
from sparktrain.preparation.exact_sum import total
from tests.fixtures.sketches import sketch

NAN, INFINITY = float("nan"), float("inf")
finite = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0, 1.0])
doubles = st.none() | finite | st.sampled_from([NAN, INFINITY, -INFINITY])
whole = st.none() | st.integers(-50, 50) | st.integers(-(2**63), 2**63 - 1)
tagged_doubles = st.lists(st.tuples(doubles, st.booleans()), max_size=40)
tagged_integers = st.lists(
    st.tuples(whole | st.integers(0, 2 * MAX_COUNTED_RANGE), st.booleans()), max_size=40
)
cuts = st.lists(st.integers(0, 40), max_size=5)
shufflers = st.randoms(use_true_random=False)

Tagged = list[tuple[Any, bool]]
Clip = tuple[float | None, float | None]


def column(values: list[Any], kind: pa.DataType | None = None) -> pa.Array:
    return pa.array(values, kind or pa.float64())


def counted(rows: Tagged, kind: pa.DataType, clip: Clip = (None, None), bits: int = FINE_BITS) -> str:
    """What a Spark partition sends; rows say whether they are of the train split."""
    counter = NumberCounter(bits, *clip)
    for is_training in (True, False):
        values = [value for value, training in rows if training is is_training]
        for start in range(0, len(values), 7):  # batches
            counter.add(column(values[start : start + 7], kind), is_training)
    return counter.result().to_text()


def divided(rows: list[Any], places: list[int], shuffler: random.Random) -> list[list[Any]]:
    shuffled = shuffler.sample(rows, len(rows))
    borders = [0, *sorted(min(place, len(rows)) for place in places), len(rows)]
    parts = [shuffled[borders[i] : borders[i + 1]] for i in range(len(borders) - 1)]
    return shuffler.sample(parts, len(parts))


def same(left: Numbers, right: Numbers) -> bool:
    """To the bit; sums may be written differently, and zeros of either sign may not."""

    def facts(numbers: Numbers) -> str:
        plain = {name: v for name, v in vars(numbers).items() if name not in ("sum", "square_sum")}
        ordered = {n: sorted(v.items()) if isinstance(v, dict) else v for n, v in plain.items()}
        return repr((ordered, total(numbers.sum), total(numbers.square_sum)))

    return facts(left) == facts(right)


@given(tagged_doubles, cuts, shufflers, st.sampled_from([(None, None), (-1.0, 0.5), (0.0, None)]))
def test_doubles_are_counted_the_same_in_any_partitioning(
    rows: Tagged, places: list[int], shuffler: random.Random, clip: Clip
) -> None:
    parts = [counted(part, pa.float64(), clip) for part in divided(rows, places, shuffler)]
    assert same(
        merged_numbers(parts, FINE_BITS), merged_numbers([counted(rows, pa.float64(), clip)], FINE_BITS)
    )


@given(tagged_integers, cuts, shufflers, st.sampled_from([(None, None), (-10, 10), (-0.5, 7.25), (None, 5)]))
def test_integers_are_counted_the_same_in_any_partitioning(
    rows: Tagged, places: list[int], shuffler: random.Random, clip: Clip
) -> None:
    parts = [counted(part, pa.int64(), clip) for part in divided(rows, places, shuffler)]
    assert same(
        merged_numbers(parts, FINE_BITS), merged_numbers([counted(rows, pa.int64(), clip)], FINE_BITS)
    )


@given(tagged_doubles)
def test_what_is_counted_is_so(rows: Tagged) -> None:
    found = merged_numbers([counted(rows, pa.float64())], FINE_BITS)
    given_values = [value for value, _ in rows if value is not None]
    training = [value for value, is_training in rows if is_training and value is not None]
    kept = [value for value in training if math.isfinite(value)]
    assert found.nans == sum(map(math.isnan, given_values))
    assert found.infinities == sum(map(math.isinf, given_values))
    assert found.train_nans == sum(map(math.isnan, training))
    assert found.train_infinities == sum(map(math.isinf, training))
    assert found.count == len(kept) == sum(found.buckets.values())
    in_all = [value for value in given_values if math.isfinite(value)]
    assert (found.smallest, found.largest) == (min(in_all, default=None), max(in_all, default=None))
    assert (found.train_smallest, found.train_largest) == (min(kept, default=None), max(kept, default=None))


@pytest.mark.parametrize(
    "far", [MAX_COUNTED_RANGE, MAX_COUNTED_RANGE + 1, -MAX_COUNTED_RANGE - 1, 2**53, 2**63 - 1]
)
@pytest.mark.parametrize("alone", [True, False])
def test_one_part_with_too_large_a_range_turns_all_into_buckets(far: int, alone: bool) -> None:
    near = [(value, True) for value in (0, 1, 1, 2, 3)]
    last = [(far, True)] if alone else [(0, True), (far, True)]
    parts = [counted(part, pa.int64()) for part in (near, near, last)]
    rows = near + near + last
    expected = merged_numbers([counted(rows, pa.int64())], FINE_BITS)
    for order in (parts, parts[::-1], [parts[0], parts[2], parts[1]]):
        assert same(merged_numbers(order, FINE_BITS), expected)
    assert (expected.values is not None) == (far == MAX_COUNTED_RANGE)
    method = "linear" if expected.values is not None else "lower"
    assert expected.quantile(0.25, FINE_BITS) == np.quantile([v for v, _ in rows], 0.25, method=method)
    assert total(expected.sum) == sum(int(float(value)) for value, _ in rows)


@given(st.lists(st.integers(-8000, 8000), min_size=1, max_size=50), st.floats(0, 1), cuts, shufflers)
def test_quantiles_of_whole_numbers_are_numpy_s(
    values: list[int], q: float, places: list[int], shuffler: random.Random
) -> None:
    parts = [counted([(v, True) for v in p], pa.int16()) for p in divided(values, places, shuffler)]
    found = merged_numbers(parts, FINE_BITS)
    assert found.quantile(q, FINE_BITS) == pytest.approx(np.quantile(values, q), rel=1e-12, abs=1e-9)
    assert found.mean() == pytest.approx(np.mean(values), rel=1e-12, abs=1e-12)
    assert found.deviation() == pytest.approx(np.std(values), rel=1e-12, abs=1e-12)


@given(st.lists(finite, min_size=1, max_size=50), st.floats(0, 1), st.sampled_from([FINE_BITS, CARD_BITS]))
def test_quantiles_of_other_numbers_are_near(values: list[float], q: float, bits: int) -> None:
    found = merged_numbers([counted([(v, True) for v in values], pa.float64(), bits=bits)], bits)
    exact = sorted(values)[int(q * (len(values) - 1))]
    assert abs(found.quantile(q, bits) - exact) <= max(2.0**-bits * abs(exact), 2.3e-308)


@given(tagged_doubles)
def test_a_clipped_view_is_that_of_the_clipped_values(rows: Tagged) -> None:
    def clip(value: float | None) -> float | None:
        return value if value is None or not math.isfinite(value) else min(max(value, -2.0), 3.5)

    clipped = [(clip(value), is_training) for value, is_training in rows]
    found, expected = (
        merged_numbers([text], FINE_BITS)
        for text in (counted(rows, pa.float64(), (-2.0, 3.5)), counted(clipped, pa.float64()))
    )
    assert same(found, expected)


def test_a_view_of_integers_clipped_by_whole_numbers_has_their_exact_median() -> None:
    rows = [(value, True) for value in (-(10**9), 3001, 3002, 3003, 3004, 10**9)]
    found = merged_numbers([counted(rows, pa.int64(), (-4000, 4000))], FINE_BITS)
    assert found.quantile(0.5, FINE_BITS) == 3002.5
    assert found.mean() == pytest.approx((3001 + 3002 + 3003 + 3004) / 6, rel=1e-15)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e140, 1e-140])
def test_mean_and_deviation_are_numpy_s(scale: float) -> None:
    values = (np.random.default_rng(1).standard_normal(10_000) * 3 + 7) * scale
    counter = NumberCounter(CARD_BITS)
    counter.add(pa.array(values), is_training=True)
    found = counter.result()
    assert found.mean() == pytest.approx(values.mean(), rel=1e-12)
    assert found.deviation() == pytest.approx(values.std(), rel=1e-12)


@pytest.mark.parametrize(
    ("values", "mean", "deviation"),
    [
        ([1e-200, 3e-200], 2e-200, 1e-200),  # whose variance is below every float64
        ([0.1] * 1000, 0.1, 0.0),  # numpy finds 1.4e-17
        ([1e15 - 1, 1e15 + 1], 1e15, 1.0),
        ([1e300, -1e300], 0.0, 1e300),
        ([5e-324, 5e-324], 5e-324, 0.0),
        ([], 0.0, 0.0),
    ],
)
def test_moments_of_hard_columns(values: list[float], mean: float, deviation: float) -> None:
    found = merged_numbers([counted([(v, True) for v in values], pa.float64())], CARD_BITS)
    assert (found.mean(), found.deviation()) == (mean, pytest.approx(deviation, rel=1e-12))


def test_numbers_of_nothing_are_zero() -> None:
    nothing = merged_numbers([], FINE_BITS)
    assert (nothing.mean(), nothing.deviation(), nothing.quantile(0.5, FINE_BITS)) == (0.0, 0.0, 0.0)
    only_validation = merged_numbers([counted([(7.0, False), (None, True)], pa.float64())], FINE_BITS)
    assert (only_validation.count, only_validation.quantile(0.5, FINE_BITS)) == (0, 0.0)
    assert (only_validation.smallest, only_validation.train_smallest) == (7.0, None)


@given(
    tagged_doubles | tagged_integers.map(lambda rows: [(None if v is None else float(v), t) for v, t in rows])
)
def test_numbers_travel_as_text_without_losing_a_bit(rows: Tagged) -> None:
    text = counted(rows, pa.float64())
    assert Numbers.from_text(text).to_text() == text


@given(st.lists(st.lists(st.integers(-300, 300), max_size=5), max_size=8))
def test_a_tally_counts(batches: list[list[int]]) -> None:
    tally = Tally()
    for batch in batches:
        tally.add(np.array(batch, np.int64))
    assert tally.items() == Counter(value for batch in batches for value in batch)


@given(st.lists(st.lists(st.integers(-50, 50) | st.integers(-(2**61), 2**61), max_size=5), max_size=8))
def test_a_tally_of_far_numbers_counts_too(batches: list[list[int]]) -> None:
    tally = Tally()
    for batch in batches:
        tally.add(np.array(batch, np.int64))
    assert tally.items() == Counter(number for batch in batches for number in batch)


def test_zeros_and_numbers_of_all_sizes_need_little_memory() -> None:
    generator = np.random.default_rng(0)
    wide = 10.0 ** generator.uniform(-300, 150, 20_000) * generator.choice([-1, 0, 1], 20_000)
    usual = generator.standard_normal(20_000) * (generator.random(20_000) < 0.5)
    for values in (wide, usual):
        counter = NumberCounter(FINE_BITS)
        tracemalloc.start()
        for batch in np.array_split(values, 10):
            counter.add(pa.array(batch), is_training=True)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 8e6
        assert counter.result().buckets == sketch(values, FINE_BITS)


# --- values ---


def all_values(counter: ValueCounter, batches: list[pa.Array]) -> tuple[Counter[str], list[pa.Table]]:
    """Sums of the counts, and the tables that came out."""
    tables = []
    for batch in batches:
        counter.add(batch)
        tables.append(counter.overflow())
    tables.append(counter.take())
    came = [table for table in tables if table is not None]
    sums = [Counter(dict(zip(t["key"].to_pylist(), t["count"].to_pylist(), strict=True))) for t in came]
    return reduce(Counter.__add__, sums, Counter()), came


words = st.none() | st.sampled_from(["", "a", "b", "é", "\0"]) | st.text(max_size=3)


@given(st.lists(st.lists(words, max_size=9), max_size=9), st.sampled_from([1, 3, 1000]))
def test_texts_are_counted_whatever_overflows(batches: list[list[str | None]], max_distinct: int) -> None:
    arrays = [pa.array(batch, pa.string()) for batch in batches]
    found, tables = all_values(ValueCounter(max_distinct), arrays)
    assert found == Counter(word for batch in batches for word in batch if word is not None)
    for table in tables:
        assert len(set(table["key"].to_pylist())) == len(table), "each value once"


@given(st.lists(st.lists(whole, max_size=9), max_size=9), st.sampled_from([1, 3, 1000]))
def test_integers_of_any_range_are_counted(batches: list[list[int | None]], max_distinct: int) -> None:
    arrays = [pa.array(batch, pa.int64()) for batch in batches]
    found, _ = all_values(ValueCounter(max_distinct), arrays)
    assert found == Counter(str(number) for batch in batches for number in batch if number is not None)


def test_small_integers_and_booleans_are_texts_as_the_vocabulary_has_them() -> None:
    integers = pa.array([3, None, 3, -1], pa.int8())
    assert all_values(ValueCounter(), [integers])[0] == {"3": 2, "-1": 1}
    booleans = pa.array([True, None, False, True])
    assert all_values(ValueCounter(), [booleans])[0] == {"true": 2, "false": 1}
    assert ValueCounter().take() is None


def test_memory_stays_bounded_and_frequent_values_stay_in() -> None:
    counter = ValueCounter(max_distinct=1000)
    held = out = 0
    for _ in range(50):
        repeated = pa.array([str(number % 900) for number in range(5000)])
        counter.add(repeated)
        assert counter.overflow() is None, "900 values never fill it"
        held = max(held, counter._size)
    assert held <= 1000 + 900
    for batch in range(50):
        counter.add(pa.array([f"{batch}-{number}" for number in range(400)]))
        if (table := counter.overflow()) is not None:
            out += len(table)
        assert counter._size <= 1000
    rest = counter.take()
    assert rest is not None
    assert out + len(rest) == 900 + 50 * 400
