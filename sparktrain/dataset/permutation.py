"""Permutations that depend on nothing but integers.

Our own, because numpy does not promise its random streams across versions, and a resumed run must meet the
same order on whatever machine it continues. The hash is splitmix64 (Steele, Lea, Flood: "Fast splittable
pseudorandom number generators", OOPSLA 2014).
"""

from __future__ import annotations

from functools import lru_cache

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
    words, low = _hashes(size, key), _low_bits(size)
    words &= ~low
    words |= _numbers(size)
    words.sort()
    words &= low
    return words.view(np.int64)


def spread(rows: NDArray[np.int64], num_lanes: int, key: int) -> NDArray[np.int64]:
    """Order row groups such that lanes, which cut the order equally, are far apart in storage all the time.

    What is stored is cut into as many strata of equal rows as there are lanes, from a random row group on.
    Each lane gets a stratum, and its row groups in a random order. So what lies together in storage (a day, a
    label) makes up no more of a batch than of the whole, where lanes with random row groups of the whole
    would agree by chance (W. G. Cochran, "Sampling Techniques", ch. 5: stratified random sampling).
    Neighbouring lanes, which one rank has, get strata that are far apart: multiples of the golden ratio.

    Args:
        rows: of each row group: shape [R].
        num_lanes: that the order will be cut into.
        key: of the order.

    Returns:
        The numbers 0..R-1: shape [R].
    """
    size, total = len(rows), int(rows.sum())
    if num_lanes < 2 or total == 0:
        return permutation(size, key)
    first = derive_key(key) % size
    before = np.cumsum(rows) - rows
    strata = (before - before[first]) % total * num_lanes // total
    lane_of = np.argsort(np.arange(num_lanes, dtype=np.uint64) * np.uint64(_GAMMA)).astype(np.uint64)
    low = _low_bits(size)
    shift = np.uint64(64 - (num_lanes - 1).bit_length())
    words = _hashes(size, key)
    words >>= np.uint64(64) - shift
    words &= ~low
    words |= lane_of[strata] << shift
    words |= _numbers(size)
    words.sort()  # by lane, and at random in each
    words &= low
    return words.view(np.int64)


def _hashes(size: int, key: int) -> NDArray[np.uint64]:
    words = _states(size) + np.uint64(key)
    _mix(words)
    return words


@lru_cache(maxsize=8)  # most row groups of a dataset have one size
def _states(size: int) -> NDArray[np.uint64]:
    return (_numbers(size) + np.uint64(1)) * np.uint64(_GAMMA)


@lru_cache(maxsize=8)
def _numbers(size: int) -> NDArray[np.uint64]:
    return np.arange(size, dtype=np.uint64)


def _low_bits(size: int) -> np.uint64:
    """As many bits as the numbers below `size` need."""
    return np.uint64((1 << max(size - 1, 0).bit_length()) - 1)


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
