"""A dataset that Petastorm reads, for those who come from it: streams with the face of `Stream`.

Petastorm gives whole row groups to ranks, by their number modulo the number of ranks. So it can't give what a
`Stream` does: the same global batches at any world size, steps that are equal by themselves, a way back to a
step. Here its ranks take equal steps because those that run out of rows go on with padding.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import torch

from sparktrain.config import petastorm_problem
from sparktrain.dataset.dataset import Dataset
from sparktrain.dataset.layout import stored_columns
from sparktrain.dataset.manifest import WEIGHT_COLUMN, Manifest
from sparktrain.dataset.permutation import derive_key
from sparktrain.dataset.petastorm_shard import Columns, Shard, num_rows_of, rows_of_shards
from sparktrain.errors import (
    ConfigError,
    PetastormCannotSeek,
    StreamMoved,
    StreamStateMismatch,
    TooFewRows,
)
from sparktrain.world import World

if TYPE_CHECKING:
    from sparktrain.dataset.stream import Stream

Batch = dict[str, torch.Tensor]

_STATE_VERSION = 1
_ONLY_FOR_SPEED = {"num_lanes", "num_threads", "memory_bytes"}  # of `Dataset.stream`: they change no row here
_WHERE = "data.reader=petastorm"
_LOCAL = "copy the dataset to a file system that all hosts see, or set data.reader=sparktrain"


class PetastormDataset(Dataset):
    """A dataset whose streams are read by Petastorm; `open_dataset(path, reader="petastorm")` makes it."""

    def stream(
        self,
        split: str,
        global_batch_size: int,
        *,
        world: World | None = None,
        seed: int = 0,
        tail: str = "mask",
        columns: Sequence[str] | None = None,
        shuffle: bool = True,
        **ours: Any,
    ) -> Stream:
        """Read a split by Petastorm; `Dataset.stream` says what the arguments mean, with these differences.

        Every row comes once an epoch and what is missing is padded, whatever `tail` says. `num_lanes`,
        `num_threads` and `memory_bytes` mean nothing. Shuffling orders the rank's row groups, and the rows in
        each of them. There is no text, no `pack`, `where` and so on.

        Raises:
            ConfigError: for what Petastorm does not have; it is not installed, or can't share this split
                among so many ranks.
            TooFewRows: the split has no row.
            NameUnknown: for a split or column that does not exist.
        """
        usual = {name: p.default for name, p in inspect.signature(Dataset.stream).parameters.items()}
        refused = [n for n, v in ours.items() if n not in _ONLY_FOR_SPEED and v != usual.get(n)]
        if refused:
            problems = [f"Petastorm has no {n}; leave it out, or set data.reader=sparktrain" for n in refused]
            raise ConfigError(problems, _WHERE)
        if problem := petastorm_problem():
            raise ConfigError([problem], _WHERE)
        if not isinstance(self.path, Path):
            raise ConfigError([f"{self.path} lies in an object store; {_LOCAL}"], _WHERE)
        stream = PetastormStream(
            self.path,
            self.manifest,
            split,
            self.num_rows(split),
            global_batch_size,
            self._numbers(columns),
            world=world or World(),
            seed=seed,
            shuffle=shuffle,
        )
        return cast("Stream", stream)  # by its face, as far as training and evaluation know it

    def _numbers(self, names: Sequence[str] | None) -> list[str]:
        """The columns to read: all but text, when nobody asks for that."""
        chosen = self._names(names)
        text = [name for name in chosen if self.manifest.logical_schema.field(name).type == pa.string()]
        if names is not None and text:
            problems = [
                f"column `{name}` is text; leave it out, or set data.reader=sparktrain" for name in text
            ]
            raise ConfigError(problems, _WHERE)
        return [name for name in chosen if name not in text]


class PetastormStream:
    """Batches of one rank; see `Stream` for what an iteration yields, and for the attributes.

    Rank r of W takes the row groups r, r + W, r + 2W, … of the split, in every epoch. A rank that runs out of
    rows repeats its last one, with weight 0, for as many steps as the rank with the most rows needs.

    The order of an epoch depends on seed, epoch, and the number of ranks. An iteration begins with an epoch's
    first row; there is no other place to begin at.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        split: str,
        num_rows: int,
        global_batch_size: int,
        columns: Sequence[str],
        *,
        world: World,
        seed: int,
        shuffle: bool,
    ) -> None:
        if num_rows == 0:
            raise TooFewRows(str(path), split, 0, global_batch_size)
        self._columns, self._seed, self._shuffle = tuple(columns), seed, shuffle
        self._global_batch_size = global_batch_size
        self._stored = stored_columns(manifest.columns, manifest.layout, self._columns)
        self._shard = Shard(path.absolute(), manifest, split, self._stored, world)
        shards = rows_of_shards(manifest, split, world.size)
        borders = [rank * global_batch_size // world.size for rank in range(world.size + 1)]
        widths = [stop - start for start, stop in pairwise(borders)]
        if problems := [*_unshareable(split, shards, widths), *self._shard.problems()]:
            raise ConfigError(problems, _WHERE)
        self._iteration = 0
        self.epoch, self.step, self.wait_seconds = 0, 0, 0.0
        self.masked: dict[str, str] = {}  # Petastorm masks nothing
        self.steps_per_epoch = max(-(-rows // width) for rows, width in zip(shards, widths, strict=True))
        self.rows_per_step = widths[world.rank]

    def __iter__(self) -> Iterator[Batch]:
        self._iteration += 1  # an older iteration must not move the cursor any more
        return self._epoch(self._iteration)

    def state_dict(self) -> dict[str, Any]:
        """The place after the last batch that was handed out; only an epoch's start can be loaded again."""
        return {"version": _STATE_VERSION, "epoch": self.epoch, "step": self.step, **self._meaning()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to the start of the epoch where `state` was taken. Ends an iteration under way.

        The number of ranks may be another one; the batches then are others too, and maybe their number.

        Raises:
            PetastormCannotSeek: when the state was taken within an epoch.
            StreamStateMismatch: when it belongs to other batches; lists every difference.
        """
        if state.get("step"):
            raise PetastormCannotSeek(state.get("epoch"), state["step"])
        wanted: dict[str, Any] = {"version": _STATE_VERSION, "step": 0, **self._meaning()}
        differences = {k: (state.get(k), v) for k, v in wanted.items() if k not in state or state[k] != v}
        epoch = state.get("epoch")
        if not isinstance(epoch, int) or epoch < 0:
            differences["epoch"] = (epoch, "0 or more")
        if differences:
            raise StreamStateMismatch(differences)
        self._iteration += 1
        self.epoch, self.step = state["epoch"], 0

    def _meaning(self) -> dict[str, Any]:
        return {
            "reader": "petastorm",
            "seed": self._seed,
            "fingerprint": self._shard.manifest.fingerprint,
            "global_batch_size": self._global_batch_size,
            "split": self._shard.split,
            "shuffle": self._shuffle,
        }

    def _epoch(self, iteration: int) -> Iterator[Batch]:
        self._check_is_current(iteration)
        if self.step:
            raise PetastormCannotSeek(self.epoch, self.step)
        seed = derive_key(self._seed, self.epoch) % 2**32 if self._shuffle else None
        with closing(self._shard.row_groups(seed)) as row_groups:
            for batch in self._batches(self._timed(row_groups)):
                self._check_is_current(iteration)
                self.step += 1
                yield batch
        self._check_is_current(iteration)
        self.epoch, self.step = self.epoch + 1, 0

    def _timed(self, row_groups: Generator[Columns]) -> Iterator[Columns]:
        while True:
            began = time.perf_counter()
            rows = next(row_groups, None)
            self.wait_seconds += time.perf_counter() - began
            if rows is None:
                return
            yield rows

    def _batches(self, row_groups: Iterable[Columns]) -> Iterator[Batch]:
        steps = 0
        for rows in _rebatch(row_groups, self.rows_per_step):
            yield self._batch(rows, num_rows_of(rows))
            steps += 1
        for _ in range(self.steps_per_epoch - steps):
            yield self._batch(rows, 0)

    def _batch(self, rows: Columns, num_real: int) -> Batch:
        """Make a whole batch of `num_real` rows; copies of the last one, of weight 0, are its padding."""
        kept = max(num_real, 1)
        missing = self.rows_per_step - kept
        found: Batch = {}
        for column in self._stored:
            values = rows[column.name][-kept:]
            if missing:
                values = np.concatenate([values, np.repeat(values[-1:], missing, axis=0)])
            tensor = torch.from_numpy(values)
            if column.members:
                found.update(zip(column.members, tensor.unbind(1), strict=True))
            else:
                found[column.name] = tensor
        batch = {name: found[name] for name in self._columns}
        batch[WEIGHT_COLUMN] = (torch.arange(self.rows_per_step) < num_real).float()
        return batch

    def _check_is_current(self, iteration: int) -> None:
        if iteration != self._iteration:
            raise StreamMoved()


def _unshareable(split: str, shards: Sequence[int], widths: Sequence[int]) -> Iterator[str]:
    """What leaves a rank without a row of its own, of which its padding is made, too."""
    if min(widths) < 1:
        yield (
            f"global_batch_size is {sum(widths)} for {len(widths)} ranks: a rank would have no row; give one "
            "row or more for each"
        )
    if without := shards.count(0):
        yield (
            f"{without} of {len(shards)} ranks would have no row of split `{split}`: Petastorm shares out "
            "whole row groups; set train.ranks to a smaller number, prepare with a larger "
            "prepare.num_parts or a smaller prepare.rows_per_row_group, or set data.reader=sparktrain"
        )


def _rebatch(row_groups: Iterable[Columns], size: int) -> Iterator[Columns]:
    """Cut row groups of any size into batches of `size` rows; the last may be smaller."""
    left: Columns = {}
    for read in row_groups:
        rows = {name: np.concatenate([left[name], values]) for name, values in read.items()} if left else read
        whole = num_rows_of(rows) // size * size
        for first in range(0, whole, size):
            yield {name: values[first : first + size] for name, values in rows.items()}
        left = {name: values[whole:] for name, values in rows.items()}
    if left and num_rows_of(left):
        yield left
