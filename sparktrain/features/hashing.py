"""The hash of categorical features: FNV-1a of the text's UTF-8 bytes, 64 bits, finished by splitmix64.

Our own, so that a value's bucket is the same under every version of every library, in any language:

    h = 0xcbf29ce484222325;  for each byte: h = (h ^ byte) * 0x100000001b3
    h = (h ^ h >> 30) * 0xbf58476d1ce4e5b9;  h = (h ^ h >> 27) * 0x94d049bb133111eb;  h = h ^ h >> 31

all modulo 2**64. FNV-1a alone would leave the low bits of similar words alike.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_BASIS = np.uint64(0xCBF29CE484222325)
_PRIME = np.uint64(0x100000001B3)


def hash_text(column: pa.Array) -> NDArray[np.uint64]:
    """Hash each text, shape [rows]; a null has the hash of the empty text.

    Args:
        column: of type string, nulls allowed.
    """
    if column.null_count:
        column = column.fill_null("")
    hashes = np.full(len(column), _BASIS)
    if len(column) == 0:
        return hashes
    _, offsets_buffer, data_buffer = column.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int32)[column.offset : column.offset + len(column) + 1]
    data = np.frombuffer(data_buffer or b"", np.uint8)
    # Longest first: the texts that have a byte at some place are then the first ones.
    lengths = np.diff(offsets)
    order = np.argsort(-lengths, kind="stable")
    places = offsets[:-1][order].astype(np.int64)
    ending = np.bincount(lengths)  # texts by length
    rows = len(column)
    for length in range(len(ending) - 1):
        rows -= int(ending[length])
        running = hashes[:rows]  # a view
        running ^= data[places[:rows] + length]
        running *= _PRIME
    result = np.empty_like(hashes)
    result[order] = _mixed(hashes)
    return result


def _mixed(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
