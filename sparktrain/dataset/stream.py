"""Stream: an endless sequence of epochs of batches, whose place is a handful of integers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from sparktrain.dataset.assemble import Assembler, Chunk, Epoch
from sparktrain.dataset.layout import StackKey, StoredColumn, stored_columns
from sparktrain.dataset.manifest import WEIGHT_COLUMN, Manifest
from sparktrain.dataset.plan import EpochOrder, Plan
from sparktrain.dataset.prefetch import ReadAhead
from sparktrain.dataset.read import RowGroupReader
from sparktrain.errors import ConfigError, StreamMoved, StreamStateMismatch, TooFewRows
from sparktrain.storage import AnyPath
from sparktrain.world import World

Batch = dict[str, torch.Tensor]

_STATE_VERSION = 1
_MAX_STEPS_PER_CHUNK = 8


class Stream:
    """Batches of one rank. `Dataset.stream` makes it and says what the arguments mean.

    Iterating yields the rest of the current epoch, then moves to the beginning of the next one. A batch is a
    dict of tensors of shape [rows_per_step, *shape], by column, and `row_weight` (float32: 1.0 for a row, 0.0
    for padding); the layout of the parts changes no value, but a column of a block is strided. Tensors of one
    batch share memory with the few batches before and after it; they never change after they were handed out.

    A thread reads ahead while an iteration lasts: it starts with the first batch and ends with the iteration,
    however that ends.

    Attributes:
        epoch: of the next batch.
        step: of the next batch, in its epoch; equal to `steps_per_epoch` when only the end of the epoch is
        left. steps_per_epoch: the same on all ranks. rows_per_step: rows of this rank in every batch.
        wait_seconds: how long consumers waited for batches, in all.
    """

    def __init__(
        self,
        path: AnyPath,
        manifest: Manifest,
        split: str,
        plan: Plan,
        columns: Sequence[str],
        *,
        world: World,
        seed: int,
        shuffle: bool,
        num_prefetch: int,
    ) -> None:
        if num_prefetch < 1:
            raise ConfigError([f"num_prefetch is {num_prefetch}; give 1 or more"], "the stream's arguments")
        if plan.steps_per_epoch == 0:
            raise TooFewRows(str(path), split, plan.num_rows, plan.global_batch_size)
        self._path, self._manifest, self._split = path, manifest, split
        self._plan, self._columns, self._shuffle, self._seed = plan, tuple(columns), shuffle, seed
        self._stored = stored_columns(manifest.columns, manifest.layout, self._columns)
        self._row_group_rows = np.array(
            [rows for part in manifest.splits[split].parts for rows in part.row_groups], np.int64
        )
        self._shares = plan.shares(world.rank, world.size)
        self._steps_per_chunk = min(num_prefetch, _MAX_STEPS_PER_CHUNK)
        self._depth = num_prefetch // self._steps_per_chunk
        self._iteration = 0
        self.epoch, self.step, self.wait_seconds = 0, 0, 0.0
        self.steps_per_epoch = plan.steps_per_epoch
        self.rows_per_step = sum(share.width for share in self._shares)

    def __iter__(self) -> Iterator[Batch]:
        self._iteration += 1  # an older iteration must not move the cursor any more
        return self._rest_of_epoch(self._iteration)

    def state_dict(self) -> dict[str, Any]:
        """The place after the last batch that was handed out; batches read ahead don't count."""
        return {"version": _STATE_VERSION, "epoch": self.epoch, "step": self.step, **self._meaning()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where `state` was taken; the world size may be another one. Ends an iteration under way.

        Raises:
            StreamStateMismatch: when the state belongs to other batches; lists every difference.
        """
        wanted: dict[str, Any] = {"version": _STATE_VERSION, **self._meaning()}
        differences = {k: (state.get(k), v) for k, v in wanted.items() if k not in state or state[k] != v}
        for key, most in (("epoch", None), ("step", self.steps_per_epoch)):
            value = state.get(key)
            if not isinstance(value, int) or value < 0 or (most is not None and value > most):
                differences[key] = (value, "0 or more" if most is None else f"0 to {most}")
        if differences:
            raise StreamStateMismatch(differences)
        self._iteration += 1
        self.epoch, self.step = state["epoch"], state["step"]

    def _meaning(self) -> dict[str, Any]:
        """Everything beside the place that fixes the global batches."""
        return {
            "seed": self._seed,
            "fingerprint": self._manifest.fingerprint,
            "global_batch_size": self._plan.global_batch_size,
            "num_lanes": self._plan.num_lanes,
            "split": self._split,
            "tail": self._plan.tail,
            "shuffle": self._shuffle,
        }

    def _rest_of_epoch(self, iteration: int) -> Iterator[Batch]:
        self._check_is_current(iteration)
        ahead = ReadAhead(partial(self._chunks, self.epoch, self.step), self._depth)
        try:
            while (chunk := self._take(ahead)) is not None:
                for batch in _batches(chunk, self._stored, self._columns):
                    self._check_is_current(iteration)
                    self.step += 1
                    yield batch
            self._check_is_current(iteration)
            self.epoch, self.step = self.epoch + 1, 0
        finally:
            ahead.close()

    def _take(self, ahead: ReadAhead[Chunk]) -> Chunk | None:
        began = time.perf_counter()
        try:
            return ahead.take()
        finally:
            self.wait_seconds += time.perf_counter() - began

    def _chunks(self, epoch: int, step: int) -> Iterator[Chunk]:
        """Runs in the reader thread, which therefore opens files of its own."""
        reader = RowGroupReader(self._path, self._manifest, self._split, self._stored)
        order = EpochOrder.of(self._row_group_rows, self._seed, epoch, self._shuffle)
        setting = Epoch(self._plan, order, self._row_group_rows, self._seed, epoch, self._shuffle)
        keys = [column.key for column in self._stored]
        num_columns: dict[StackKey, int] = {key: keys.count(key) for key in keys}
        return Assembler(reader, setting, self._shares, num_columns).chunks(step, self._steps_per_chunk)

    def _check_is_current(self, iteration: int) -> None:
        if iteration != self._iteration:
            raise StreamMoved()


def _batches(chunk: Chunk, stored: Sequence[StoredColumn], names: Sequence[str]) -> Iterator[Batch]:
    stacks = {key: torch.from_numpy(stack).unbind(1) for key, stack in chunk.stacks.items()}
    weights = torch.from_numpy(chunk.weights)
    for step in range(len(weights)):
        rows = {key: iter(steps[step].unbind(0)) for key, steps in stacks.items()}
        found: Batch = {}
        for column in stored:  # stacks keep the columns' order
            values = next(rows[column.key])
            if column.members:
                found.update(zip(column.members, values.unbind(1), strict=True))
            else:
                found[column.name] = values
        batch = {name: found[name] for name in names}
        batch[WEIGHT_COLUMN] = weights[step]
        yield batch
