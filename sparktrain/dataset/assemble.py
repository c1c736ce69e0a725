"""From row groups to the batches of one rank, several steps at a time: few copies, and large ones."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from weakref import WeakValueDictionary

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sparktrain.dataset.buffers import Buffers
from sparktrain.dataset.delivery import Array, Delivery
from sparktrain.dataset.load import Loader, Rows, Source
from sparktrain.dataset.plan import Copy, EpochOrder
from sparktrain.dataset.schedule import Feed

Key = tuple[int, int, int]  # source, epoch, row group


@dataclass(frozen=True)
class Chunk:
    """Consecutive batches of one rank.

    Attributes:
        num_steps: how many; arrays may have room for more.
        arrays: for each stack [columns, steps, rows, *shape].
        weights: float32 of shape [steps, rows]: 1.0 for a row, 0.0 for padding.
        texts: for each column of text and step the strings from an offset on, in no order.
        sources: int32 of shape [steps, rows]: which dataset of a mixture a row is of; None without one.
    """

    num_steps: int
    arrays: Sequence[Array]
    weights: NDArray[np.float32]
    texts: list[list[list[tuple[int, pa.Array]]]]
    sources: NDArray[np.int32] | None = None


@dataclass(frozen=True)
class Chunks:
    """Cuts the steps of an epoch into chunks; none reaches over a border.

    Attributes:
        borders: steps between which the feeds stay the same: the first step to assemble, …, the last one.
        feeds: those of each stretch between two borders.
        size: steps of a chunk, at most.
    """

    borders: Sequence[int]
    feeds: Sequence[Sequence[Feed]]
    size: int

    def __len__(self) -> int:
        return self._firsts[-1]

    def __getitem__(self, number: int) -> tuple[int, int, Sequence[Feed]]:
        """Return the first step of a chunk, the one after its last, and its feeds."""
        stretch = bisect_right(self._firsts, number) - 1
        first = self.borders[stretch] + (number - self._firsts[stretch]) * self.size
        return first, min(first + self.size, self.borders[stretch + 1]), self.feeds[stretch]

    @cached_property
    def _firsts(self) -> list[int]:
        """The number of the first chunk of each stretch, and the number of all."""
        return [0, *accumulate(-(-(stop - start) // self.size) for start, stop in pairwise(self.borders))]


class Assembler:
    """Assembles chunks, lane by lane. Threads may share it when each works on a lane of its own.

    It holds one row group for each lane of the rank, however large a dataset is; two lanes in the same row
    group share it.

    Args:
        delivery: what batches are made of.
        chunks: to assemble.
        sources: that the feeds take rows from.
        buffers: to take memory from.
        with_sources: whether chunks say which source each row is of.
    """

    def __init__(
        self,
        delivery: Delivery,
        chunks: Chunks,
        sources: Sequence[Source],
        buffers: Buffers,
        with_sources: bool = False,
    ) -> None:
        self._delivery, self._chunks, self._sources, self._buffers = delivery, chunks, sources, buffers
        self._with_sources = with_sources
        self._num_rows = sum(feed.share.width for feed in chunks.feeds[0])
        self._held: dict[int, tuple[Key, Rows]] = {}  # place of a feed -> what it takes rows from
        self._loaded: WeakValueDictionary[Key, Rows] = WeakValueDictionary()
        self._orders: dict[tuple[int, int, int], EpochOrder] = {}
        self._ordering = threading.Lock()

    def start(self, number: int) -> Chunk:
        """Return a chunk whose rows are still to be copied."""
        first, last, feeds = self._chunks[number]
        shape = (self._chunks.size, self._num_rows)
        arrays = [
            self._buffers.array((stack.num_columns, *shape, *stack.shape), stack.dtype)
            for stack in self._delivery.stacks
        ]
        sources = None
        if self._with_sources:
            by_row = np.repeat([feed.source for feed in feeds], [feed.share.width for feed in feeds])
            sources = np.broadcast_to(by_row.astype(np.int32), shape).copy()
        texts: list[list[list[tuple[int, pa.Array]]]] = [
            [[] for _ in range(first, last)] for _ in self._delivery.texts
        ]
        return Chunk(last - first, arrays, np.ones(shape, np.float32), texts, sources)

    def fill(self, chunk: Chunk, number: int, place: int, loaders: Sequence[Loader]) -> None:
        """Copy the rows of the feed at `place` to chunk `number`; chunk by chunk, in order."""
        first, last, feeds = self._chunks[number]
        feed = feeds[place]
        loader, plan = loaders[feed.source], feed.plan
        for segment in feed.segments(first, last):
            order = self._order(feed.source, segment.epoch, plan.num_lanes)
            for copy in plan.copies(order, feed.share, segment.first, segment.last):
                rows = self._rows(place, (feed.source, segment.epoch, copy.row_group), loader)
                step = copy.step + segment.shift - first
                _copy_rows(copy, step, plan.lane_rows, rows.arrays, chunk.arrays)
                for strings, pieces in zip(rows.texts, chunk.texts, strict=True):
                    _add_texts(copy, step, plan.lane_rows, strings, pieces)
                if rows.is_bad or (copy.is_padding and plan.tail == "mask"):
                    width = slice(copy.offset, copy.offset + copy.width)
                    chunk.weights[step : step + copy.num_steps, width] = 0.0
                del rows  # or it would be held while the next is loaded

    def _rows(self, place: int, key: Key, loader: Loader) -> Rows:
        if place in self._held:
            if self._held[place][0] == key:
                return self._held[place][1]
            del self._held[place]  # its memory is free for the next
        _, epoch, row_group = key
        rows = self._loaded.get(key) or loader.load(row_group, epoch)
        self._loaded[key] = rows
        self._held[place] = (key, rows)
        return rows

    def _order(self, source: int, epoch: int, num_lanes: int) -> EpochOrder:
        with self._ordering:  # one thread computes it, the others want the same
            key = (source, epoch, num_lanes)
            if key not in self._orders:
                old = [(s, e, n) for s, e, n in self._orders if s == source and e < epoch - 1]
                for passed in old:
                    del self._orders[passed]
                self._orders[key] = self._sources[source].order(epoch, num_lanes)
            return self._orders[key]


def _copy_rows(copy: Copy, step: int, stride: int, source: Sequence[Array], chunk: Sequence[Array]) -> None:
    steps, rows = slice(step, step + copy.num_steps), slice(copy.offset, copy.offset + copy.width)
    for array, whole in zip(source, chunk, strict=True):
        target = whole[:, steps, rows]  # [columns, num_steps, width, *shape]
        if copy.is_padding:
            target[:] = array[:, copy.start, None, None]
        elif copy.num_steps == 1:
            target[:, 0] = array[:, copy.start : copy.start + copy.width]
        else:
            target[:] = _every(array, copy, stride)


def _add_texts(
    copy: Copy, step: int, stride: int, strings: pa.Array, pieces: Sequence[list[tuple[int, pa.Array]]]
) -> None:
    for i in range(copy.num_steps):
        if copy.is_padding:
            piece = strings.take(pa.array([copy.start] * copy.width))
        else:
            piece = strings.slice(copy.start + i * stride, copy.width)
        pieces[step + i].append((copy.offset, piece))


def _every(array: Array, copy: Copy, stride: int) -> Array:
    """View the `width` rows from `start` on, and again every `stride` rows, as num_steps × width rows."""
    to_column, to_row, *inside = array.strides
    last = copy.start + (copy.num_steps - 1) * stride + copy.width
    assert last <= array.shape[1], "a view past the end of the row group"
    shape = (array.shape[0], copy.num_steps, copy.width, *array.shape[2:])
    strides = (to_column, to_row * stride, to_row, *inside)
    # numpy's as_strided does the same in many times the time, which is what counts with small copies
    return np.ndarray(shape, array.dtype, array, copy.start * to_row, strides)
