"""Exact sums: equal to fractions, whatever the order, the partitioning and the size of the numbers."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from functools import reduce

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparktrain.preparation.exact_sum import Bins, exact_moments, merge_bins, total

SUBNORMAL = 5e-324
LARGEST = 1.7976931348623157e308
finite = st.floats(allow_nan=False, allow_infinity=False)
edges = st.sampled_from(
    [0.0, -0.0, SUBNORMAL, -SUBNORMAL, 2.2e-308, 1e-162, 1e-150, 1.0, 1e150, LARGEST, -LARGEST]
)
numbers = st.lists(finite | edges, max_size=60)


def moments(values: list[float] | np.ndarray) -> tuple[Fraction, Fraction]:
    sums, squares = exact_moments(np.array(values, float))
    return total(sums), total(squares)


def of_fractions(values: list[float]) -> tuple[Fraction, Fraction]:
    return sum(map(Fraction, values), Fraction()), sum((Fraction(v) ** 2 for v in values), Fraction())


@given(numbers)
def test_sums_are_those_of_fractions_even_where_a_square_leaves_float64(values: list[float]) -> None:
    assert moments(values) == of_fractions(values)


@given(st.lists(st.floats(-1e300, 1e300), max_size=60))
def test_a_sum_rounds_as_fsum_does(values: list[float]) -> None:
    assert float(moments(values)[0]) == math.fsum(values)


@given(numbers, st.lists(st.integers(0, 60), max_size=5), st.randoms(use_true_random=False))
def test_any_order_and_any_partitioning_give_the_same_sums(
    values: list[float], cuts: list[int], shuffler: random.Random
) -> None:
    shuffled = np.array(shuffler.sample(values, len(values)), float)
    parts = [exact_moments(part) for part in np.split(shuffled, sorted(cuts))]
    shuffler.shuffle(parts)

    def merged(bins: list[Bins]) -> Fraction:
        return total(reduce(merge_bins, bins, {}))

    assert (merged([p[0] for p in parts]), merged([p[1] for p in parts])) == of_fractions(values)


def test_a_million_numbers_of_all_sizes_are_added_without_a_lost_bit() -> None:
    generator = np.random.default_rng(0)
    values = generator.standard_normal(1_000_000) * 10.0 ** generator.integers(-30, 30, 1_000_000)
    plain, squares = moments(values)
    assert float(plain) == math.fsum(values)
    assert float(squares) == pytest.approx(math.fsum(values**2), rel=1e-15)
    assert moments(np.concatenate([values, -values])) == (0, 2 * squares)


@pytest.mark.parametrize("value", [np.nextafter(1.0, 0.0), -np.nextafter(2.0**17, 0.0), 2.0**51 - 1])
def test_the_largest_limbs_fill_a_sum_to_its_limit(value: float) -> None:
    # all of the largest mantissa: the sums of products come closest to 2**53
    rows = 1 << 19
    assert moments(np.full(rows, value)) == (Fraction(value) * rows, Fraction(value) ** 2 * rows)


def test_merging_leaves_what_is_merged_alone() -> None:
    left, right = {0: 1}, {0: 2, 17: 3}
    assert merge_bins(left, right) == {0: 3, 17: 3}
    assert (left, right) == ({0: 1}, {0: 2, 17: 3})


def test_a_sum_of_nothing_is_zero() -> None:
    assert moments([]) == (0, 0)
    assert moments([0.0, -0.0]) == (0, 0)
    assert total({}) == 0
