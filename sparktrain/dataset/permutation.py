"""Permutations that depend on nothing but integers.

Our own, because numpy does not promise its random streams across versions, and a resumed run must meet the
same order on whatever machine it continues. The hash is splitmix64 (Steele, Lea, Flood: "Fast splittable
pseudorandom number generators", OOPSLA 2014).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB


def derive_key(*parts: int) -> int:
    """Hash integers of any sign, in their order, to a key of 64 bits."""
    key = 0
    for part in parts:
        key = _mix_int((key ^ (part & _MASK)) + _GAMMA)
    return key


def permutation(size: int, key: int) -> NDArray[np.int64]:
    """Return the numbers 0..size-1 in an order fixed by `key`: shape [size].

    splitmix64 is a bijection of 64-bit words, so that no two positions have the same hash: the order depends
    on no sort's treatment of ties.
    """
    states = np.arange(1, size + 1, dtype=np.uint64)
    states *= np.uint64(_GAMMA)
    states += np.uint64(key)
    return np.argsort(_mix(states)).astype(np.int64, copy=False)


def _mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(_FIRST)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(_SECOND)
    return words ^ (words >> np.uint64(31))


def _mix_int(word: int) -> int:
    word &= _MASK
    word = ((word ^ (word >> 30)) * _FIRST) & _MASK
    word = ((word ^ (word >> 27)) * _SECOND) & _MASK
    return word ^ (word >> 31)
