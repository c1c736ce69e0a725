"""The sketch: buckets in the values' order, quantiles within a bucket's width, sums in any order."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparktrain.features.sketch import (
    CARD_BITS,
    COARSE_BITS,
    FINE_BITS,
    Sketch,
    bucket_borders,
    bucket_of,
    coarser,
    quantile,
)
from tests.fixtures.sketches import sketch

SMALLEST_NORMAL = 2.0**-1022
finite = st.floats(allow_nan=False, allow_infinity=False)
normal = st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False)
lists = st.lists(finite | st.integers(-1000, 1000).map(float), min_size=1, max_size=80)
all_bits = st.sampled_from([COARSE_BITS, CARD_BITS, FINE_BITS])


def array(values: list[float]) -> np.ndarray:
    return np.array(values, np.float64)


def added(parts: list[Sketch]) -> Sketch:
    together: Sketch = {}
    for part in parts:
        for key, count in part.items():
            together[key] = together.get(key, 0) + count
    return together


@given(lists, all_bits)
def test_buckets_are_in_the_order_of_the_values(values: list[float], bits: int) -> None:
    keys = bucket_of(np.sort(array(values)), bits)
    assert (np.diff(keys) >= 0).all()


@given(normal, all_bits)
def test_a_value_lies_within_its_bucket_which_is_narrow(value: float, bits: int) -> None:
    key = int(bucket_of(array([value]), bits)[0])
    low, high = bucket_borders(key, bits)
    assert low <= value <= high
    if value:
        assert high - low < 2.0**-bits * abs(value)
    assert bucket_of(array([low, high]), bits).tolist() == [key, key]


@given(lists, st.lists(st.integers(0, 80), max_size=6), st.randoms(use_true_random=False), all_bits)
def test_sketches_of_parts_add_up_in_any_order(
    values: list[float], cuts: list[int], shuffler: random.Random, bits: int
) -> None:
    parts = [
        sketch(part, bits) for part in np.split(array(shuffler.sample(values, len(values))), sorted(cuts))
    ]
    shuffler.shuffle(parts)
    assert added(parts) == sketch(array(values), bits)
    assert sum(added(parts).values()) == len(values)


@given(lists)
def test_a_coarser_sketch_is_that_of_the_values(values: list[float]) -> None:
    fine = sketch(array(values), FINE_BITS)
    assert coarser(fine, FINE_BITS, COARSE_BITS) == sketch(array(values), COARSE_BITS)


@given(lists, st.floats(0, 1), all_bits)
def test_a_quantile_is_known_to_within_its_bucket(values: list[float], q: float, bits: int) -> None:
    found = quantile(sketch(array(values), bits), q, bits, min(values), max(values))
    exact = sorted(values)[int(q * (len(values) - 1))]
    assert abs(found - exact) <= max(2.0**-bits * abs(exact), SMALLEST_NORMAL)
    assert min(values) - SMALLEST_NORMAL <= found <= max(values) + SMALLEST_NORMAL


@given(st.lists(st.integers(-(2**FINE_BITS), 2**FINE_BITS), min_size=1, max_size=80), st.floats(0, 1))
def test_small_whole_numbers_are_found_exactly(values: list[int], q: float) -> None:
    floats = array([*map(float, values)])
    found = quantile(sketch(floats), q, FINE_BITS, floats.min(), floats.max())
    assert found == sorted(values)[int(q * (len(values) - 1))]


def test_zero_has_one_bucket_and_the_largest_number_has_one_too() -> None:
    assert sketch(array([0.0, -0.0])) == {0: 2}
    largest = np.finfo(np.float64).max
    for value in (largest, -largest):
        found = quantile(sketch(array([value])), 0.5, FINE_BITS, value, value)
        assert found == value


def test_a_sketch_of_nothing_has_no_quantile() -> None:
    assert sketch(array([])) == {}
    with pytest.raises(ValueError, match="no value"):
        quantile({}, 0.5, FINE_BITS, 0.0, 0.0)


def test_many_values_of_all_sizes_stay_few_buckets() -> None:
    values = np.random.default_rng(0).lognormal(0, 3, 100_000)
    found = sketch(values)
    assert len(found) < 40_000
    for q in (0.01, 0.25, 0.5, 0.75, 0.99):
        exact = np.quantile(values, q, method="lower")
        assert quantile(found, q, FINE_BITS, values.min(), values.max()) == pytest.approx(
            exact, rel=2**-FINE_BITS
        )
