"""Sums of floating-point numbers that do not depend on the order of the rows.

Spark adds partial sums in the order in which tasks end, so the last bits of `avg` and `stddev` differ between
two runs over the same rows. Here every float64 is split into an integer mantissa and an exponent, and
mantissas are added per exponent as integers: exact, hence the same in any order and any partitioning, and
mergeable. (The idea is the long accumulator of U. Kulisch, "Computer Arithmetic and Validity", with one bin
per exponent.)
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

_MANTISSA_BITS = 53
_LOW_BITS = 26
_SPLITTER = float(2**27 + 1)

Bins = dict[int, int]
"""Sum of integer mantissas by binary exponent: the value is the sum of `mantissa * 2**exponent`."""


def exact_bins(values: NDArray[np.float64], shift: NDArray[np.int32] | int = 0) -> Bins:
    """Add up `values * 2**shift` without rounding: finite float64 of shape [n], n < 2**26."""
    if not len(values):
        return {}
    fraction, exponent = np.frexp(values)
    exponent = exponent + shift
    mantissa = np.ldexp(fraction, _MANTISSA_BITS).astype(np.int64)
    lowest = int(exponent.min())
    slot = exponent - lowest
    # bincount adds in float64: halves of the mantissa keep its sums below 2**53, where float64 is exact.
    high = np.bincount(slot, weights=(mantissa >> _LOW_BITS).astype(np.float64))
    low = np.bincount(slot, weights=(mantissa & ((1 << _LOW_BITS) - 1)).astype(np.float64))
    return {
        lowest + int(k) - _MANTISSA_BITS: (int(high[k]) << _LOW_BITS) + int(low[k])
        for k in np.flatnonzero((high != 0) | (low != 0))
    }


def exact_square_bins(values: NDArray[np.float64]) -> Bins:
    """Add up the squares of finite `values` of shape [n], n < 2**26, without rounding.

    A square is the rounded product plus its rounding error, which is a float64 too (Dekker's product).
    Fractions are multiplied and exponents added apart, because products of very large or small values
    leave float64.
    """
    fraction, exponent = np.frexp(values)
    product = fraction * fraction
    spread = _SPLITTER * fraction
    head = spread - (spread - fraction)
    tail = fraction - head
    error = ((head * head - product) + 2.0 * head * tail) + tail * tail
    return merge_bins(exact_bins(product, 2 * exponent), exact_bins(error, 2 * exponent))


def merge_bins(left: Mapping[int, int], right: Mapping[int, int]) -> Bins:
    merged = dict(left)
    for exponent, mantissa in right.items():
        merged[exponent] = merged.get(exponent, 0) + mantissa
    return merged


def total(bins: Mapping[int, int]) -> Fraction:
    """The exact value of `bins`."""
    if not bins:
        return Fraction(0)
    lowest = min(bins)
    integer = sum(mantissa << (exponent - lowest) for exponent, mantissa in bins.items())
    return Fraction(integer) * Fraction(2) ** lowest
