"""Exact sums: equal to fractions, whatever the order, the partitioning and the size of the numbers."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from functools import reduce
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparktrain.preparation.exact_sum import Bins, exact_bins, exact_square_bins, merge_bins, total
from sparktrain.preparation.fit import Moments

SUBNORMAL = 5e-324
LARGEST = 1.7976931348623157e308
finite = st.floats(allow_nan=False, allow_infinity=False)
edges = st.sampled_from(
    [0.0, -0.0, SUBNORMAL, -SUBNORMAL, 2.2e-308, 1e-162, 1e-150, 1.0, 1e150, LARGEST, -LARGEST]
)
numbers = st.lists(finite | edges, max_size=60)


def pieces(values: list[float], cuts: list[int]) -> list[list[float]]:
    borders = sorted({0, len(values), *(cut % (len(values) + 1) for cut in cuts)})
    return [values[start:stop] for start, stop in pairwise(borders)]


def merged(parts: list[Bins]) -> Bins:
    return reduce(merge_bins, parts, {})


@given(numbers)
def test_a_sum_is_the_sum_of_fractions(values: list[float]) -> None:
    assert total(exact_bins(np.array(values, float))) == sum(map(Fraction, values))


@given(numbers)
def test_a_sum_of_squares_is_that_of_fractions_even_where_a_square_leaves_float64(
    values: list[float],
) -> None:
    assert total(exact_square_bins(np.array(values, float))) == sum(Fraction(value) ** 2 for value in values)


@given(st.lists(st.floats(-1e300, 1e300), max_size=60))
def test_a_sum_rounds_as_fsum_does(values: list[float]) -> None:
    assert float(total(exact_bins(np.array(values, float)))) == math.fsum(values)


@given(numbers, st.lists(st.integers(0, 100), max_size=5), st.randoms())
def test_any_order_and_any_partitioning_give_the_same_sum(
    values: list[float], cuts: list[int], shuffler: random.Random
) -> None:
    shuffled = shuffler.sample(values, len(values))
    parts = [exact_bins(np.array(piece, float)) for piece in pieces(shuffled, cuts)]
    shuffler.shuffle(parts)
    assert total(merged(parts)) == total(exact_bins(np.array(values, float)))


def test_a_million_numbers_of_all_sizes_are_added_without_a_lost_bit() -> None:
    generator = np.random.default_rng(0)
    values = generator.standard_normal(1_000_000) * 10.0 ** generator.integers(-30, 30, 1_000_000)
    assert float(total(exact_bins(values))) == math.fsum(values)
    assert total(exact_bins(np.concatenate([values, -values]))) == 0


def test_equal_mantissas_fill_a_bin_to_its_limit() -> None:
    # All of the largest mantissa, in one bin: the halves' sums come closest to 2**53.
    values = np.full(1 << 20, np.nextafter(1.0, 0.0))
    assert total(exact_bins(values)) == Fraction(float(values[0])) * (1 << 20)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e140, 1e-140])
def test_mean_and_deviation_are_numpy_s(scale: float) -> None:
    values = (np.random.default_rng(1).standard_normal(10_000) * 3 + 7) * scale
    moments = Moments(len(values), exact_bins(values), exact_square_bins(values))
    assert moments.mean() == pytest.approx(values.mean(), rel=1e-12)
    assert moments.deviation() == pytest.approx(values.std(), rel=1e-12)


def test_the_deviation_of_tiny_numbers_is_not_lost() -> None:
    values = np.array([1e-200, 3e-200])
    moments = Moments(2, exact_bins(values), exact_square_bins(values))
    assert moments.deviation() == pytest.approx(1e-200, rel=1e-12)


def test_a_constant_column_has_exactly_no_deviation() -> None:
    values = np.full(1000, 0.1)  # numpy finds 1.4e-17
    moments = Moments(len(values), exact_bins(values), exact_square_bins(values))
    assert (moments.mean(), moments.deviation()) == (0.1, 0.0)


def test_the_deviation_survives_a_mean_that_dwarfs_it() -> None:
    values = 1e15 + np.array([-1.0, 1.0])
    moments = Moments(2, exact_bins(values), exact_square_bins(values))
    assert (moments.mean(), moments.deviation()) == (1e15, 1.0)


@given(numbers, numbers)
def test_moments_travel_as_text_without_losing_a_bit(first: list[float], second: list[float]) -> None:
    sent = [
        Moments(len(v), exact_bins(v), exact_square_bins(v), float(np.abs(v).max(initial=0.0)))
        for v in (np.array(first, float), np.array(second, float))
    ]
    received = Moments()
    for moments in sent:
        received.merge(Moments.from_text(moments.to_text()))
    both = [Fraction(value) for value in first + second]
    assert received.count == len(both)
    assert total(received.sum) == sum(both)
    assert total(received.square_sum) == sum(value**2 for value in both)
    assert received.largest == max(map(abs, both), default=0)


def test_moments_of_nothing_are_zero() -> None:
    assert (Moments().mean(), Moments().deviation()) == (0.0, 0.0)
    assert total({}) == 0
