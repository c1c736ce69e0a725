"""Packing: texts, one after the other, become blocks of one length that know where each text begins."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sparktrain.features import FittedTokens
from sparktrain.features.output import document_name
from sparktrain.preparation.split import ROW_ID_COLUMN


class Packer:
    """Takes rows as they come, gives whole blocks as they fill.

    Args:
        feature: whose texts to pack.
        multiple: blocks come in multiples of it, until `flush`.
    """

    def __init__(self, feature: FittedTokens, multiple: int) -> None:
        self._feature, self._multiple = feature, multiple
        self._ids = np.empty(0, np.int32)
        self._documents = np.empty(0, np.int64)  # of each token: the number of its text in this part
        self._row_ids = np.empty(0, np.int64)  # of each token: its text's row
        self._num_documents = 0

    def add(self, rows: pa.Table) -> dict[str, NDArray[Any]] | None:
        """Take rows; return blocks, by column, when enough are full."""
        column = rows[self._feature.column]
        ids, lengths = self._feature.token_ids(column.combine_chunks())
        documents = self._num_documents + np.arange(len(rows))
        self._num_documents += len(rows)
        self._ids = np.concatenate([self._ids, ids])
        self._documents = np.concatenate([self._documents, np.repeat(documents, lengths)])
        row_ids = rows[ROW_ID_COLUMN].to_numpy()
        self._row_ids = np.concatenate([self._row_ids, np.repeat(row_ids, lengths)])
        size = self._feature.block_size
        blocks = len(self._ids) // size // self._multiple * self._multiple
        return self._take(blocks * size) if blocks else None

    def flush(self) -> dict[str, NDArray[Any]] | None:
        """Return the last blocks, the very last one padded; None when no token is left."""
        return self._take(len(self._ids)) if len(self._ids) else None

    def _take(self, tokens: int) -> dict[str, NDArray[Any]]:
        size, name = self._feature.block_size, self._feature.name
        missing = -tokens % size
        ids = np.pad(self._ids[:tokens], (0, missing), constant_values=self._feature.pad_id)
        documents = np.pad(self._documents[:tokens], (0, missing), constant_values=-1).reshape(-1, size)
        first = documents[:, :1]
        numbers = np.where(documents < 0, -1, documents - first).astype(np.int32)
        row_ids = self._row_ids[:tokens:size].copy()
        self._ids, self._documents = self._ids[tokens:], self._documents[tokens:]
        self._row_ids = self._row_ids[tokens:]
        return {ROW_ID_COLUMN: row_ids, name: ids.reshape(-1, size), document_name(name): numbers}
