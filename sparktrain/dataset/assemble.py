"""From row groups to the batches of one rank, several steps at a time: few copies, and large ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from sparktrain.dataset.layout import StackKey
from sparktrain.dataset.plan import Copy, EpochOrder, LaneShare, Plan, row_order
from sparktrain.dataset.read import RowGroupReader, Stacks


@dataclass(frozen=True)
class Chunk:
    """Consecutive batches of one rank.

    Attributes:
        stacks: (dtype, shape) -> [columns, steps, rows, *shape].
        weights: float32 of shape [steps, rows]: 1.0 for a row, 0.0 for padding.
    """

    stacks: Stacks
    weights: NDArray[np.float32]


@dataclass(frozen=True)
class Epoch:
    """What fixes the rows of one epoch: the plan, the order of row groups, and the key of their rows."""

    plan: Plan
    order: EpochOrder
    row_group_rows: NDArray[np.int64]
    seed: int
    number: int
    shuffle: bool


class Assembler:
    """Assembles the batches of one rank, in the order of their steps. It lives in one thread.

    It holds one row group per lane of the rank, however large a dataset is.

    Args:
        reader: of the split.
        epoch: to assemble.
        shares: of this rank.
        num_columns: stored columns by their (dtype, shape).
    """

    def __init__(
        self,
        reader: RowGroupReader,
        epoch: Epoch,
        shares: Sequence[LaneShare],
        num_columns: dict[StackKey, int],
    ) -> None:
        self._reader = reader
        self._epoch = epoch
        self._shares = shares
        self._num_columns = num_columns
        self._num_rows = sum(share.width for share in shares)
        self._held: dict[int, Stacks] = {}
        self._current: dict[int, int] = {}  # lane -> its row group

    def chunks(self, first_step: int, steps_per_chunk: int) -> Iterator[Chunk]:
        """Assemble the rest of the epoch from `first_step` on."""
        num_steps = self._epoch.plan.steps_per_epoch
        for step in range(first_step, num_steps, steps_per_chunk):
            yield self._assemble(step, min(step + steps_per_chunk, num_steps))

    def _assemble(self, first_step: int, last_step: int) -> Chunk:
        shape = (last_step - first_step, self._num_rows)
        stacks: Stacks = {
            (dtype, row): np.empty((count, *shape, *row), dtype)
            for (dtype, row), count in self._num_columns.items()
        }
        chunk = Chunk(stacks, np.ones(shape, np.float32))
        plan, order = self._epoch.plan, self._epoch.order
        for share in self._shares:
            for copy in plan.copies(order, share, first_step, last_step):
                source = self._row_group(share.lane, copy.row_group)
                _copy_rows(copy, copy.step - first_step, plan.lane_rows, source, chunk)
        return chunk

    def _row_group(self, lane: int, row_group: int) -> Stacks:
        self._current[lane] = row_group
        if row_group not in self._held:
            wanted = set(self._current.values())
            self._held = {number: stacks for number, stacks in self._held.items() if number in wanted}
            self._held[row_group] = self._read(row_group)
        return self._held[row_group]

    def _read(self, row_group: int) -> Stacks:
        epoch = self._epoch
        if not epoch.shuffle:
            return self._reader.read_stacks(row_group)
        num_rows = int(epoch.row_group_rows[row_group])
        return self._reader.read_stacks(row_group, row_order(num_rows, row_group, epoch.seed, epoch.number))


def _copy_rows(copy: Copy, step: int, stride: int, source: Stacks, chunk: Chunk) -> None:
    steps, rows = slice(step, step + copy.num_steps), slice(copy.offset, copy.offset + copy.width)
    for key, stack in source.items():
        target = chunk.stacks[key][:, steps, rows]  # [columns, num_steps, width, *shape]
        if copy.is_padding:
            target[:] = stack[:, copy.start, None, None]
        elif copy.num_steps == 1:
            target[:, 0] = stack[:, copy.start : copy.start + copy.width]
        else:
            target[:] = _every(stack, copy, stride)
    if copy.is_padding:
        chunk.weights[step, rows] = 0.0


def _every(stack: NDArray[np.generic], copy: Copy, stride: int) -> NDArray[np.generic]:
    """View the `width` rows from `start` on, and again every `stride` rows, as num_steps × width rows."""
    to_column, to_row, *inside = stack.strides
    last = copy.start + (copy.num_steps - 1) * stride + copy.width
    assert last <= stack.shape[1], "a view past the end of the row group"
    shape = (stack.shape[0], copy.num_steps, copy.width, *stack.shape[2:])
    strides = (to_column, to_row * stride, to_row, *inside)
    return as_strided(stack[:, copy.start :], shape, strides, writeable=False)
