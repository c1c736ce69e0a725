"""Text as token ids, cut or padded to one length."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import PositiveInt, model_validator

from sparktrain.errors import TokenizerUnusable, ValuesRefused
from sparktrain.features.declare import check_tokenizer
from sparktrain.features.fitted_columns.column import Arrays, FittedColumn, counted
from sparktrain.features.output import Output, document_name, length_name
from sparktrain.features.raw import read_as

Tokenizer = Callable[[str], Sequence[int]]
_INT32 = np.iinfo(np.int32)


class FittedTokens(FittedColumn):
    """int32 [block_size], and the length before padding or the documents: see `declare.Tokens`."""

    kind: Literal["tokens"] = "tokens"
    input_type: Literal["string", "longs"]
    block_size: PositiveInt
    tokenizer: str | None = None
    pad_id: int = 0
    pack: bool = False

    @model_validator(mode="after")
    def _fits_its_input(self) -> Self:
        check_tokenizer(self.tokenizer, self.pad_id)
        if (self.tokenizer is None) != (self.input_type == "longs"):
            raise ValueError("text needs a tokenizer, an array of integers has none")
        return self

    @property
    def outputs(self) -> tuple[Output, ...]:
        tokens = Output(name=self.name, dtype="int32", shape=(self.block_size,))
        if self.pack:
            return tokens, Output(name=document_name(self.name), dtype="int32", shape=(self.block_size,))
        return tokens, Output(name=length_name(self.name), dtype="int32")

    @cached_property
    def tokenize(self) -> Tokenizer:
        """The declared function, imported once.

        Raises:
            TokenizerUnusable: it can't be imported.
        """
        module, _, function = (self.tokenizer or "").partition(":")
        try:
            found: Tokenizer = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise TokenizerUnusable(self.name, self.tokenizer or "", str(error)) from error
        return found

    def transform(self, column: pa.Array) -> Arrays:
        ids, lengths = self.token_ids(column, at_most=self.block_size)
        return self._blocks(ids, lengths)

    def token_ids(
        self, column: pa.Array, at_most: int | None = None
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """The token ids of all rows, one row after the other, and how many each row has, shape [rows].

        Args:
            at_most: ids of a row that a tokenizer's result is cut to; None: all.
        """
        column = read_as(column, self.input_type)
        there = column.drop_null() if column.null_count else column
        if self.tokenizer is None:
            ids, lengths = self._of_lists(there)
        elif self.tokenizer == "bytes":
            ids, lengths = _of_bytes(there)
        else:
            ids, lengths = self._of_texts(there, at_most)
        if column.null_count:
            spread = np.zeros(len(column), np.int64)
            spread[column.is_valid().to_numpy(zero_copy_only=False)] = lengths
            lengths = spread
        return ids, lengths

    def _of_lists(self, column: pa.Array) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        flat = column.flatten()
        if flat.null_count:
            raise ValuesRefused({self.column: f"{counted(flat.null_count, 'null')} within the arrays"})
        lengths = pc.list_value_length(column).to_numpy().astype(np.int64)
        return self._as_ids(flat.to_numpy()), lengths

    def _of_texts(self, column: pa.Array, at_most: int | None) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        tokens = [np.asarray(self.tokenize(text))[:at_most] for text in column.to_pylist()]
        lengths = np.array([len(ids) for ids in tokens], np.int64)
        whole = [ids for ids in tokens if len(ids)]
        if wrong := [ids.dtype for ids in whole if ids.dtype.kind not in "iu" or ids.ndim != 1]:
            raise TokenizerUnusable(
                self.name, self.tokenizer or "", f"it returned {wrong[0]}, not a sequence of integers"
            )
        return self._as_ids(np.concatenate(whole) if whole else np.empty(0, np.int64)), lengths

    def _as_ids(self, ids: NDArray[np.int64]) -> NDArray[np.int32]:
        wrong = int(np.count_nonzero((ids < _INT32.min) | (ids > _INT32.max)))
        if wrong:
            raise ValuesRefused({self.column: f"{counted(wrong, 'number')} that int32 can't hold"})
        return ids.astype(np.int32)

    def _blocks(self, ids: NDArray[np.int32], lengths: NDArray[np.int64]) -> Arrays:
        """Lay the rows' ids, one row after the other, into blocks."""
        kept = np.minimum(lengths, self.block_size)
        if kept.sum() < len(ids):  # some row is too long
            starts = np.cumsum(lengths) - lengths
            ids = ids[np.arange(len(ids)) - np.repeat(starts, lengths) < self.block_size]
        blocks = np.full((len(lengths), self.block_size), self.pad_id, np.int32)
        is_token = np.arange(self.block_size) < kept[:, None]
        blocks[is_token] = ids
        if self.pack:
            return {self.name: blocks, document_name(self.name): is_token.astype(np.int32) - np.int32(1)}
        return {self.name: blocks, length_name(self.name): kept.astype(np.int32)}


def _of_bytes(column: pa.Array) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    if len(column) == 0:
        return np.empty(0, np.int32), np.empty(0, np.int64)
    _, offsets_buffer, data = column.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int32)[column.offset : column.offset + len(column) + 1]
    content = np.frombuffer(data or b"", np.uint8)[offsets[0] : offsets[-1]]
    return content.astype(np.int32) + np.int32(1), np.diff(offsets).astype(np.int64)
