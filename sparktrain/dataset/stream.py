"""Stream: an endless sequence of epochs of batches, whose place is a handful of integers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import IterableDataset, get_worker_info

from sparktrain.dataset.assemble import Assembler, Chunk, Chunks
from sparktrain.dataset.budget import WEIGHT_BYTES, Budget
from sparktrain.dataset.buffers import Buffers
from sparktrain.dataset.delivery import Delivery
from sparktrain.dataset.inputs import Input
from sparktrain.dataset.load import Loader, OnBadData
from sparktrain.dataset.manifest import SOURCE_COLUMN, WEIGHT_COLUMN
from sparktrain.dataset.prefetch import ReadAhead
from sparktrain.dataset.schedule import Schedule
from sparktrain.dataset.text import text_tensors
from sparktrain.errors import ConfigError, StreamMoved, StreamStateMismatch, WorkerProcess
from sparktrain.world import World

Batch = dict[str, torch.Tensor]

_STATE_VERSION = 2


class Stream(IterableDataset[Batch]):
    """Batches of one rank. `Dataset.stream` and `mix` make it and say what their arguments mean.

    Iterating yields the rest of the current epoch, then moves to the beginning of the next one. A batch is a
    dict of tensors of shape [rows_per_step, *shape], by column, and `row_weight` (float32: 1.0 for a row, 0.0
    for padding and for what could not be read); the layout of the parts changes no value, but a column of a
    block is strided. Tensors of one batch share memory with the few batches before and after it; they never
    change after they were handed out, and their memory is used again only when the last of them is gone.

    Threads read ahead while an iteration lasts: they start with the first batch and end with the iteration,
    however that ends. It is a `torch.utils.data.IterableDataset` with the state that a `StatefulDataLoader`
    looks for: give loaders `batch_size=None` and `num_workers=0`.

    Attributes:
        epoch: of the next batch.
        step: of the next batch, in its epoch; equal to `steps_per_epoch` when only the end of the epoch is
            left.
        steps_per_epoch: the same on all ranks.
        rows_per_step: rows of this rank in every batch.
        memory_bytes: the most that reading ahead takes.
        wait_seconds: how long consumers waited for batches, in all.
        compute_seconds: how long they took between two batches.
        num_batches: handed out.
        masked: rows that were given weight 0 because they can't be read: "part, row group n" -> why; in a
            mixture "dataset: part, row group n".
    """

    def __init__(
        self,
        inputs: Sequence[Input],
        schedule: Schedule,
        delivery: Delivery,
        *,
        world: World,
        num_threads: int,
        memory_bytes: int | None,
        on_bad_data: OnBadData,
    ) -> None:
        super().__init__()
        plan = schedule.plan
        problems = []
        if not isinstance(num_threads, int) or num_threads < 1:
            problems.append(f"num_threads is {num_threads}; give 1 or more")
        if on_bad_data not in ("fail", "mask"):
            problems.append(f"on_bad_data is {on_bad_data!r}; allowed are 'fail' and 'mask'")
        if plan.global_batch_size < world.size:
            problems.append(
                f"global_batch_size is {plan.global_batch_size}, fewer than the {world.size} ranks; give "
                "each a row of every step"
            )
        if problems:
            raise ConfigError(problems, "the stream's arguments")
        self._inputs, self._schedule, self._delivery = tuple(inputs), schedule, delivery
        self._world, self._num_threads, self._on_bad_data = world, num_threads, on_bad_data
        self._shares = plan.shares(world.rank, world.size)
        self.steps_per_epoch = plan.steps_per_epoch
        self.rows_per_step = sum(share.width for share in self._shares)
        row_bytes = delivery.row_bytes
        self._most_rows = max(given.most_rows for given in inputs)
        self._budget = Budget.of(
            row_group_bytes=self._most_rows * row_bytes,
            step_bytes=self.rows_per_step * (row_bytes + WEIGHT_BYTES),
            num_lanes=len(self._shares),
            num_threads=num_threads,
            num_footer_chunks=sum(given.num_footer_chunks for given in inputs),
            selected_bytes=8 * sum(given.source.num_selected for given in inputs),
            memory_bytes=memory_bytes,
        )
        self.memory_bytes = self._budget.memory_bytes
        self._buffers = Buffers(self.memory_bytes)
        self._iteration = 0
        self.epoch, self.step, self.num_batches = 0, 0, 0
        self.wait_seconds, self.compute_seconds = 0.0, 0.0
        self.masked: dict[str, str] = {}

    def __iter__(self) -> Iterator[Batch]:
        if get_worker_info() is not None:
            raise WorkerProcess()
        self._iteration += 1  # an older iteration must not move the cursor any more
        return self._rest_of_epoch(self._iteration)

    def __len__(self) -> int:
        """Steps of a whole epoch."""
        return self.steps_per_epoch

    @property
    def headroom(self) -> float:
        """Steps per second with these batches over those with a frozen one: 1.0 when nothing ever waits."""
        total = self.wait_seconds + self.compute_seconds
        return self.compute_seconds / total if total else 1.0

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

    def explain(self, step: int, epoch: int | None = None) -> pa.Table:
        """Name the rows of a global batch, of all ranks, past or to come; reads nothing.

        Args:
            step: from 0 on.
            epoch: None is the current one.

        Returns:
            One row for each row of the batch, in its order: `rank` (that gets it), `dataset` (its name in a
            mixture, else ""), `part` (path), `row_group` (in the part), `row` (in the row group, as stored),
            `is_padding`.

        Raises:
            ConfigError: when there is no such step.
        """
        epoch = self.epoch if epoch is None else epoch
        if not 0 <= step < self.steps_per_epoch or epoch < 0:
            problem = f"step {step} of epoch {epoch}; an epoch has the steps 0 to {self.steps_per_epoch - 1}"
            raise ConfigError([problem], "the step to explain")
        origins = self._schedule.origins(epoch, step)
        readers = [given.open_reader(()) for given in self._inputs]
        found = [readers[s].locate(int(g)) for s, g in zip(origins.source, origins.row_group, strict=True)]
        size, world = len(found), self._world.size
        ranks = np.repeat(np.arange(world), np.diff([r * size // world for r in range(world + 1)]))
        return pa.table(
            {
                "rank": ranks,
                "dataset": [self._inputs[source].name for source in origins.source],
                "part": [part.path for part, _ in found],
                "row_group": [inside for _, inside in found],
                "row": origins.row,
                "is_padding": origins.is_padding,
            }
        )

    def _meaning(self) -> dict[str, Any]:
        """Everything beside the place that fixes the global batches."""
        plan = self._schedule.plan
        sizes = {"global_batch_size": int(plan.global_batch_size), "num_lanes": int(plan.num_lanes)}
        return {**sizes, **self._schedule.meaning}

    def _rest_of_epoch(self, iteration: int) -> Iterator[Batch]:
        self._check_is_current(iteration)
        ahead = self._read_ahead()
        try:
            while (batches := self._take(ahead)) is not None:
                batches.reverse()
                while batches:
                    batch = batches.pop()
                    self._check_is_current(iteration)
                    self.step += 1
                    self.num_batches += 1
                    handed_out = time.perf_counter()
                    yield batch
                    del batch  # its memory may be used again as soon as the consumer lets go of it
                    self.compute_seconds += time.perf_counter() - handed_out
            self._check_is_current(iteration)
            self.epoch, self.step = self.epoch + 1, 0
        finally:
            ahead.close()

    def _take(self, ahead: ReadAhead[Chunk, list[Batch]]) -> list[Batch] | None:
        began = time.perf_counter()
        try:
            return ahead.take()
        finally:
            self.wait_seconds += time.perf_counter() - began

    def _batches(self, chunk: Chunk) -> list[Batch]:
        """Cut a chunk into batches; in a reader thread, because many columns take a while."""
        batches = []
        weights = torch.from_numpy(chunk.weights).unbind(0)
        sources = None if chunk.sources is None else torch.from_numpy(chunk.sources).unbind(0)
        for step, batch in enumerate(self._delivery.batches(chunk.arrays, chunk.num_steps)):
            for (name, width), pieces in zip(self._delivery.texts.items(), chunk.texts, strict=True):
                batch |= text_tensors(name, width, pieces[step])
            batch[WEIGHT_COLUMN] = weights[step]
            if sources is not None:
                batch[SOURCE_COLUMN] = sources[step]
            batches.append(batch)
        return batches

    def _read_ahead(self) -> ReadAhead[Chunk, list[Batch]]:
        borders, feeds = self._schedule.stretches(self.epoch, self.step, self._shares)
        chunks = Chunks(borders, feeds, self._budget.steps_per_chunk)
        sources = [given.source for given in self._inputs]
        assembler = Assembler(self._delivery, chunks, sources, self._buffers, len(self._inputs) > 1)

        def make_worker() -> Callable[[Chunk, int, int], None]:
            """Runs in a reader thread, which therefore opens files of its own."""
            loaders = [self._loader(given) for given in self._inputs]
            return partial(assembler.fill, loaders=loaders)

        return ReadAhead(
            len(chunks),
            len(self._shares),
            assembler.start,
            make_worker,
            self._batches,
            depth=self._budget.chunks_ahead,
            num_threads=min(self._num_threads, len(self._shares)),
        )

    def _loader(self, given: Input) -> Loader:
        reader = given.open_reader(self._delivery.stored, num_threads=self._num_threads)
        bad = self._on_bad_data, self.masked
        return Loader(given, reader, self._delivery, self._buffers, self._most_rows, *bad)

    def _check_is_current(self, iteration: int) -> None:
        if iteration != self._iteration:
            raise StreamMoved()
