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

    They are sorted by their hashes; the low bits of a hash, as many as a number has, give way to the number.
    So one array of plain words is sorted, which is more than twice as fast as an argsort, and no two are
    equal: the order depends on no sort's treatment of ties.
    """
    low = np.uint64((1 << max(size - 1, 0).bit_length()) - 1)
    words = np.arange(1, size + 1, dtype=np.uint64)
    words *= np.uint64(_GAMMA)
    words += np.uint64(key)
    _mix(words)
    words &= ~low
    words |= np.arange(size, dtype=np.uint64)
    words.sort()
    words &= low
    return words.view(np.int64)


def _mix(words: NDArray[np.uint64]) -> None:
    """Hash in place: these are the stream's hottest loops after decoding."""
    shifted = words >> np.uint64(30)
    words ^= shifted
    words *= np.uint64(_FIRST)
    words ^= np.right_shift(words, np.uint64(27), out=shifted)
    words *= np.uint64(_SECOND)
    words ^= np.right_shift(words, np.uint64(31), out=shifted)


def _mix_int(word: int) -> int:
    word &= _MASK
    word = ((word ^ (word >> 30)) * _FIRST) & _MASK
    word = ((word ^ (word >> 27)) * _SECOND) & _MASK
    return word ^ (word >> 31)
