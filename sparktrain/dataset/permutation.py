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
    words, low = _hashes(size, key), _low_bits(size)
    words &= ~low
    words |= np.arange(size, dtype=np.uint64)
    words.sort()
    words &= low
    return words.view(np.int64)


def spread(size: int, num_lanes: int, key: int) -> NDArray[np.int64]:
    """Return the numbers 0..size-1 in an order that, cut into equal lanes, has each lane elsewhere: [size].

    The numbers are cut into as many strata, neighbours together, as there are lanes. Each round takes one of
    every stratum, drawn at random, and deals them to the lanes at random. So at any time the lanes are at
    numbers from all over: what lies together in storage (a day, a label) makes up no more of a batch than of
    the whole. A plain random order has draws that agree by chance (stratified against simple random
    sampling: W. G. Cochran, "Sampling Techniques", ch. 5).
    """
    lanes = min(num_lanes, size)
    if lanes < 2:
        return permutation(size, key)
    rounds = size // lanes
    strata = np.arange(size, dtype=np.uint64) * np.uint64(lanes) // np.uint64(size)
    shift = np.uint64(64 - (lanes - 1).bit_length())
    words, low = _hashes(size, key), _low_bits(size)
    words >>= np.uint64(64) - shift
    words &= ~low
    words |= strata << shift
    words |= np.arange(size, dtype=np.uint64)
    words.sort()  # by stratum, and at random in each
    drawn = (words & low).view(np.int64)
    firsts = -(-np.arange(lanes) * size // lanes)
    sizes = np.diff([*firsts, size])
    by_round = drawn[firsts + np.arange(rounds)[:, None]]  # [rounds, strata]
    dealt = _hashes(by_round.size, derive_key(key)).reshape(by_round.shape)
    dealt &= ~_low_bits(lanes)
    dealt |= np.arange(lanes, dtype=np.uint64)
    dealt.sort(axis=1)
    dealt &= _low_bits(lanes)
    order = np.take_along_axis(by_round, dealt.view(np.int64), axis=1).T.ravel()
    over = drawn[(firsts + rounds)[sizes > rounds]]
    over = over[permutation(len(over), derive_key(key, 1))]
    ends = np.arange(1, lanes + 1)
    takes_one = ends * len(over) // lanes > (ends - 1) * len(over) // lanes
    return np.insert(order, ends[takes_one] * rounds, over)


def _hashes(size: int, key: int) -> NDArray[np.uint64]:
    words = np.arange(1, size + 1, dtype=np.uint64)
    words *= np.uint64(_GAMMA)
    words += np.uint64(key)
    _mix(words)
    return words


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
