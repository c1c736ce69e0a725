"""A sketch of a numeric distribution: counts per bucket of the float64's leading bits.

A bucket is named by the sign, the exponent and the first bits of the mantissa, so that its borders are the
same for every data set: sketches of two parts of the rows add up, in any order, to the sketch of all of them.
A value is known to within the width of its bucket, `2**-bits` of its own size. (The idea is that of DDSketch,
C. Masson et al., VLDB 2019, with the logarithm read from the number's bits as in HdrHistogram.)
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

FINE_BITS = 10  # for quantiles: a bucket is 2**-10 of its values wide
CARD_BITS = 8  # for a data card
COARSE_BITS = 3  # for plots and comparisons: 8 buckets an octave
_MANTISSA_BITS = 52

Sketch = dict[int, int]
"""Number of values by bucket; the buckets' order is the values' order."""


def bucket_of(values: NDArray[np.float64], bits: int) -> NDArray[np.int64]:
    """The bucket of each value, shape [n]; zero is a bucket of its own, whatever its sign."""
    whole = np.ascontiguousarray(values + 0.0).view(np.int64)  # + 0.0: minus zero becomes zero
    # Negative numbers count their bits upwards from the most negative int64: turned round they are in order.
    ordered = np.where(whole < 0, np.int64(-(2**63)) - whole, whole)
    keys: NDArray[np.int64] = np.where(ordered < 0, -((-ordered) >> _shift(bits)), ordered >> _shift(bits))
    return keys


def bucket_borders(key: int, bits: int) -> tuple[float, float]:
    """The smallest and the largest value of a bucket."""
    first, last = abs(key) << _shift(bits), ((abs(key) + 1) << _shift(bits)) - 1
    low, high = (float(np.int64(border).view(np.float64)) for border in (first, last))
    return (low, high) if key >= 0 else (-high, -low)


def coarser(counts: Mapping[int, int], bits: int, wanted: int) -> Sketch:
    """The same counts in wider buckets."""
    merged: Sketch = {}
    for key, count in counts.items():
        parent = (abs(key) >> (bits - wanted)) * (1 if key >= 0 else -1)
        merged[parent] = merged.get(parent, 0) + count
    return merged


def quantile(counts: Mapping[int, int], q: float, bits: int, smallest: float, largest: float) -> float:
    """The value below which a fraction `q` of the rows lies, to within its bucket's width.

    A bucket of whole numbers that holds just one of them gives it exactly; else it gives its middle.
    """
    wanted = q * (sum(counts.values()) - 1)
    seen = 0
    for key in sorted(counts):
        seen += counts[key]
        if seen > wanted:
            low, high = bucket_borders(key, bits)
            low, high = max(low, smallest), min(high, largest)
            if np.floor(high) == low:
                return low
            return high if np.ceil(low) == high else low + (high - low) / 2
    raise ValueError("no value was counted")


def _shift(bits: int) -> int:
    return _MANTISSA_BITS - bits
