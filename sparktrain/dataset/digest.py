"""The digest of a part: of its values, since its bytes change with the codec and the version of pyarrow."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sparktrain.dataset.layout import ColumnSpec, Layout, stored_columns


class PartDigest:
    """Takes a part's row groups in order, each column of them in the manifest's order."""

    def __init__(self, columns: Sequence[ColumnSpec]) -> None:
        self._columns = columns
        self._digest = hashlib.blake2b(digest_size=16)

    def add_row_group(self, values: Mapping[str, NDArray[Any]]) -> None:
        """Add the next row group; values by column, of shape [rows, *shape]."""
        for column in self._columns:
            self._digest.update(_bytes_of(values[column.name]))

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def digest_of(file: pq.ParquetFile, columns: Sequence[ColumnSpec], layout: Layout) -> str:
    """Read a whole part, a row group at a time, and return its digest."""
    digest = PartDigest(columns)
    stored = stored_columns(columns, layout)
    for number in range(file.num_row_groups):
        table = file.read_row_group(number, use_threads=False)
        values: dict[str, NDArray[Any]] = {}
        for column in stored:
            found = column.values(table.column(column.name))
            if column.members:
                values.update(zip(column.members, found.T, strict=True))
            else:
                values[column.name] = found
        digest.add_row_group(values)
    return digest.hexdigest()


def _bytes_of(values: NDArray[Any]) -> bytes | memoryview:
    if values.dtype.kind in "OU":
        return json.dumps(values.tolist()).encode()
    return np.ascontiguousarray(values).data.cast("B") if len(values) else b""
