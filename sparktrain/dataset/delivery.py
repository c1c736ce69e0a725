"""What a batch is made of: the stored columns that are read, and the arrays that its names are views of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from sparktrain.dataset.layout import ColumnSpec, Layout, StoredColumn, stored_columns
from sparktrain.dataset.plan import IntArray

Array = NDArray[np.generic]

_HAS_DLPACK = hasattr(pa.Array, "__dlpack__")  # not before pyarrow 15


class Stack(NamedTuple):
    """One array that rows are read into: few copies, and large ones.

    Attributes:
        dtype: of all its values.
        shape: of a row's value.
        columns: stored columns of this dtype and shape: [len(columns), rows, *shape].
        packed: or the scalar columns that are put side by side: [1, rows, len(packed)].
    """

    dtype: str
    shape: tuple[int, ...]
    columns: tuple[StoredColumn, ...] = ()
    packed: tuple[str, ...] = ()

    @property
    def num_columns(self) -> int:
        return len(self.columns) or 1

    @property
    def row_bytes(self) -> int:
        return int(self.num_columns * np.prod(self.shape, dtype=np.int64) * np.dtype(self.dtype).itemsize)


class View(NamedTuple):
    """Where a name of the batch lies: a stack, its column, and what to take of the last axis."""

    stack: int
    column: int
    inside: int | slice | None = None


@dataclass(frozen=True)
class Delivery:
    """How the batches of a stream follow from what the parts store.

    Attributes:
        stored: columns to read.
        stacks: arrays to read them into.
        views: what each name of a batch is, in the order asked for.
        texts: columns of text, which come as bytes: the width to pad each to, None for values and offsets.
    """

    stored: tuple[StoredColumn, ...]
    stacks: tuple[Stack, ...]
    views: dict[str, View]
    texts: dict[str, int | None]

    @classmethod
    def of(
        cls,
        specs: Sequence[ColumnSpec],
        layout: Layout,
        names: Sequence[str],
        pack: Mapping[str, Sequence[str]],
        texts: Mapping[str, int | None],
    ) -> Delivery:
        """Plan the delivery of the columns `names`, of those that are packed, and of texts."""
        members = [name for packed in pack.values() for name in packed]
        stored = stored_columns(specs, layout, [*names, *members, *texts])
        by_name = {name: column for column in stored for name in column.members or (column.name,)}
        apart = {name for name, packed in pack.items() if _inside_block(by_name, packed) is None}
        whole = [*names, *(m for name, packed in pack.items() if name not in apart for m in packed)]
        stacks: list[Stack] = []
        places: dict[StoredColumn, tuple[int, int]] = {}
        needed = list(dict.fromkeys(by_name[name] for name in whole))
        for key in dict.fromkeys(column.key for column in needed):
            columns = tuple(column for column in needed if column.key == key)
            places |= {column: (len(stacks), number) for number, column in enumerate(columns)}
            stacks.append(Stack(*key, columns))
        views: dict[str, View] = {}
        for name in names:
            column = by_name[name]
            inside = column.members.index(name) if column.members else None
            views[name] = View(*places[column], inside)
        for name, packed in pack.items():
            if name in apart:
                views[name] = View(len(stacks), 0)
                stacks.append(Stack(by_name[packed[0]].dtype, (len(packed),), packed=tuple(packed)))
            else:
                views[name] = View(*places[by_name[packed[0]]], _inside_block(by_name, packed))
        return cls(stored, tuple(stacks), views, dict(texts))

    @property
    def row_bytes(self) -> int:
        """Bytes of a row in memory."""
        return sum(stack.row_bytes for stack in self.stacks)

    def fill(self, targets: Sequence[Array], table: pa.Table, order: IntArray | None) -> None:
        """Read the rows `order` of a table (None: all, as stored) into one array for each stack."""
        for stack, target in zip(self.stacks, targets, strict=True):
            if stack.packed:
                self._interleave(target[0], stack.packed, table, order)
                continue
            for column, into in zip(stack.columns, target, strict=True):
                _take(column, table.column(column.name), order, into)

    def _interleave(
        self, target: Array, names: Sequence[str], table: pa.Table, order: IntArray | None
    ) -> None:
        """Put scalar columns side by side: shape [rows, len(names)]."""
        by_name = {column.name: column for column in self.stored if not column.members}
        if all(name in by_name for name in names):
            by_column = np.empty((len(names), len(target)), target.dtype)
            for name, into in zip(names, by_column, strict=True):
                _take(by_name[name], table.column(name), order, into)
            # torch transposes in tiles, which is twice as fast as numpy
            torch.from_numpy(target).copy_(torch.from_numpy(by_column).t())
            return
        for column in self.stored:
            members = column.members or (column.name,)
            if wanted := [i for i, name in enumerate(names) if name in members]:
                rows = np.empty((len(target), *column.shape), target.dtype)
                _take(column, table.column(column.name), order, rows)
                sources = [members.index(names[i]) for i in wanted]
                target[:, wanted] = rows[:, sources] if column.members else rows[:, None]

    def texts_of(self, table: pa.Table, order: IntArray | None) -> list[pa.Array]:
        """Return the rows `order` of each column of text."""
        columns = [table.column(name).combine_chunks() for name in self.texts]
        return columns if order is None else [column.take(pa.array(order)) for column in columns]

    def batches(self, arrays: Sequence[Array], num_steps: int) -> Iterator[dict[str, torch.Tensor]]:
        """Cut one array [columns, steps, rows, *shape] for each stack into the batches of the first steps."""
        split = {(view.stack, view.column) for view in self.views.values() if isinstance(view.inside, int)}
        by_step = [torch.from_numpy(array).unbind(1) for array in arrays]
        for step in range(num_steps):
            columns = [steps[step].unbind(0) for steps in by_step]
            # all columns of a block at once: 26 calls of torch are 26 times as dear as one
            inside = {place: columns[place[0]][place[1]].unbind(-1) for place in split}
            batch = {}
            for name, (stack, column, place) in self.views.items():
                if isinstance(place, int):
                    batch[name] = inside[stack, column][place]
                else:
                    whole = columns[stack][column]
                    batch[name] = whole if place is None else whole[..., place]
            yield batch


def _inside_block(by_name: Mapping[str, StoredColumn], packed: Sequence[str]) -> slice | None:
    """Where columns lie side by side already; None when they don't."""
    block = by_name[packed[0]]
    if not block.members:
        return None
    first = block.members.index(packed[0])
    inside = slice(first, first + len(packed))
    return inside if block.members[inside] == tuple(packed) else None


def _take(column: StoredColumn, values: pa.ChunkedArray, order: IntArray | None, into: Array) -> None:
    """Copy the rows `order` of a column (None: all, as stored) to an array."""
    if order is None:
        into[:] = column.values(values)
    elif column.shape or not _HAS_DLPACK or values.num_chunks != 1:
        # mode "raise", the default, would copy once more
        column.values(values).take(order, axis=0, out=into, mode="clip")
    else:  # twice as fast as numpy for single numbers, where numpy is the faster one for rows of them
        source = torch.utils.dlpack.from_dlpack(values.chunk(0))
        torch.index_select(source, 0, torch.from_numpy(order), out=torch.from_numpy(into))
