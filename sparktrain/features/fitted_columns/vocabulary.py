"""Looking values up among many others, quickly for a batch of rows and for a single one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

NOT_THERE = -1
NULL = -2
# Arrow builds a hash table of the whole vocabulary at each call; Python's stays, but costs more per value.
_ARROW_FROM = 8


class Vocabulary:
    """Different values, as text, that have a position each."""

    def __init__(self, values: Sequence[str]) -> None:
        self._values = pa.array(values, pa.string())
        self._positions = {value: position for position, value in enumerate(values)}

    def positions(self, column: pa.Array) -> NDArray[np.int32]:
        """Position of each text, integer or boolean, or else NOT_THERE or NULL; shape [rows]."""
        encoded = column.dictionary_encode()
        distinct = encoded.dictionary.cast(pa.string())
        found = np.append(self._find(distinct), np.int32(NULL))  # the last place is for null
        indices = encoded.indices
        if indices.null_count:
            indices = indices.fill_null(len(distinct))
        positions: NDArray[np.int32] = found[indices.to_numpy()]
        return positions

    def _find(self, distinct: pa.Array) -> NDArray[np.int32]:
        if _ARROW_FROM * len(distinct) < len(self._values):
            get = self._positions.get
            found = [get(value, NOT_THERE) for value in distinct.to_pylist()]
            return np.array(found, dtype=np.int32)
        places = pc.index_in(distinct, value_set=self._values).fill_null(NOT_THERE)
        return np.asarray(places.to_numpy(), dtype=np.int32)
