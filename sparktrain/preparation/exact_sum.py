"""Sums of floating-point numbers that do not depend on the order of the rows.

Spark adds partial sums in the order in which tasks end, so the last bits of `avg` and `stddev` differ between
two runs over the same rows. Here each float64 is cut into limbs: whole multiples, of at most 17 bits, of
fixed powers of two. Sums of limbs, and of their products, are whole numbers below 2**53, which float64 adds
without rounding: exact, hence the same in any order and any partitioning, and mergeable. (The fixed grid is
that of J. Demmel and H. D. Nguyen, "Parallel Reproducible Summation", 2015; the whole grid is kept, as in
U. Kulisch's long accumulator, so that nothing is rounded at all.)
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

_LIMB_BITS = 17
_MAX_ROWS = 1 << 18  # products of two limbs have 34 bits: the sum of 2**18 of them stays below 2**53

Bins = dict[int, int]
"""Sum of whole numbers by binary exponent: the value is the sum of `number * 2**exponent`."""


def exact_moments(values: NDArray[np.float64]) -> tuple[Bins, Bins]:
    """Add up finite values of shape [n], and their squares, without rounding."""
    sums: Bins = {}
    squares: Bins = {}
    for start in range(0, len(values), _MAX_ROWS):
        limbs = _limbs(values[start : start + _MAX_ROWS])
        exponents = list(limbs)
        for place, left in enumerate(exponents):
            number = int(limbs[left].sum())
            if number:
                sums[left] = sums.get(left, 0) + number
            for right in exponents[place:]:
                product = int(limbs[left] @ limbs[right]) * (1 if left == right else 2)
                if product:
                    squares[left + right] = squares.get(left + right, 0) + product
    return sums, squares


def _limbs(values: NDArray[np.float64]) -> dict[int, NDArray[np.float64]]:
    """Cut each value into multiples of 2**exponent, whole and below 2**17: arrays of shape [n] by exponent.

    Exponents are multiples of `_LIMB_BITS`, whatever the values are, so that limbs of any two calls add up.
    """
    limbs: dict[int, NDArray[np.float64]] = {}
    rest = values
    while len(rest) and (largest := float(np.abs(rest).max())) > 0.0:
        # the highest grid point at which the largest value still has fewer than 2**17 multiples
        exponent = -(-(int(np.frexp(largest)[1]) - _LIMB_BITS) // _LIMB_BITS) * _LIMB_BITS
        multiple = np.trunc(_scaled(rest, -exponent))
        limbs[exponent] = multiple
        rest = rest - _scaled(multiple, exponent)
    return limbs


def _scaled(values: NDArray[np.float64], exponent: int) -> NDArray[np.float64]:
    """`values * 2**exponent`; the power itself may leave float64 where the product does not."""
    return values * 2.0**exponent if abs(exponent) <= 1000 else np.ldexp(values, exponent)


def merge_bins(left: Mapping[int, int], right: Mapping[int, int]) -> Bins:
    merged = dict(left)
    for exponent, number in right.items():
        merged[exponent] = merged.get(exponent, 0) + number
    return merged


def total(bins: Mapping[int, int]) -> Fraction:
    """The exact value of `bins`."""
    if not bins:
        return Fraction(0)
    lowest = min(bins)
    integer = sum(number << (exponent - lowest) for exponent, number in bins.items())
    return Fraction(integer) * Fraction(2) ** lowest
