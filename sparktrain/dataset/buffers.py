"""Arrays that are used again and again, each only after nobody looks at it any more."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class Buffers:
    """Hands out arrays, and takes their memory back when the last view of them is gone.

    Fresh memory costs a page fault every 4 KB, which is as dear as filling it. A ring of slots would save
    that too, but change batches that somebody has kept; here they just stay out of the pool. Threads may
    share it.

    Args:
        most_bytes: that it keeps for later; what comes back beyond that is given up.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._free: dict[int, list[NDArray[np.uint8]]] = {}

    def __reduce__(self) -> tuple[type[Buffers], tuple[int]]:
        return Buffers, (self._most_bytes,)  # a copy has memory of its own

    def array(self, shape: Sequence[int], dtype: str) -> NDArray[np.generic]:
        """Return an array whose values are anything; keep it (no numpy view of it) as long as it is used."""
        num_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        free = self._free.setdefault(num_bytes, [])
        try:
            memory = free.pop()
        except IndexError:
            memory = np.empty(num_bytes, np.uint8)
        array = memory.view(dtype).reshape(shape)
        weakref.finalize(array, self._take_back, memory).atexit = False
        return array

    def _take_back(self, memory: NDArray[np.uint8]) -> None:
        kept = sum(size * len(arrays) for size, arrays in list(self._free.items()))
        if kept + memory.nbytes <= self._most_bytes:
            self._free[memory.nbytes].append(memory)
