"""Who reads which rows at which step: pure functions of integers, no list of rows.

An epoch puts the row groups in an order of its own. L lanes cut that order into equal intervals, and a global
batch of G rows takes the next m = G/L rows of every lane; the order is such that the lanes are far apart in
storage. Ranks share the positions of the global batch; the
plan itself knows no world size, so that every world size sees the same global batches, and all ranks have
equal steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparktrain.dataset.permutation import derive_key, permutation, spread
from sparktrain.errors import ConfigError

Tail = Literal["drop", "repeat", "mask"]
IntArray = NDArray[np.int64]

_ORDER_KEY = 0  # row groups take the keys after it


class Piece(NamedTuple):
    """Rows `start` to `stop` of a row group, counted in the epoch's order of its rows."""

    row_group: int
    start: int
    stop: int


class Copy(NamedTuple):
    """Rows of one row group and where they go in the batches of one rank.

    For i < num_steps: rows `start + i * m` and the `width - 1` after it go to step `step + i`, rows `offset`
    to `offset + width`. Padding is row `start` alone, repeated over the width; under a tail of "mask" its
    weight is 0.
    """

    row_group: int
    start: int
    num_steps: int
    step: int
    offset: int
    width: int
    is_padding: bool = False


class LaneShare(NamedTuple):
    """The part of a lane's m rows of every step that goes to one rank, from row `offset` of its batch on."""

    lane: int
    skip: int
    width: int
    offset: int


@dataclass(frozen=True, eq=False)
class EpochOrder:
    """The order of row groups in one epoch: `row_groups` [R], and their borders `starts` [R + 1]."""

    row_groups: IntArray
    starts: IntArray

    @classmethod
    def of(
        cls, row_group_rows: IntArray, num_lanes: int, seed: int, epoch: int, shuffle: bool = True
    ) -> EpochOrder:
        size = len(row_group_rows)
        key = derive_key(seed, epoch, _ORDER_KEY)
        order = spread(row_group_rows, num_lanes, key) if shuffle else np.arange(size)
        starts = np.zeros(size + 1, np.int64)
        np.cumsum(row_group_rows[order], out=starts[1:])
        return cls(order, starts)

    def pieces(self, first: int, last: int) -> Iterator[Piece]:
        """Cut the positions from `first` to `last` at the borders of row groups."""
        index = int(np.searchsorted(self.starts, first, side="right")) - 1
        while first < last:
            begin, end = int(self.starts[index]), int(self.starts[index + 1])
            if end > first:  # not an empty row group
                yield Piece(int(self.row_groups[index]), first - begin, min(end, last) - begin)
                first = end
            index += 1

    def locate(self, positions: IntArray) -> tuple[IntArray, IntArray]:
        """Return the row group of each position, and the row in the epoch's order of that row group."""
        index = np.searchsorted(self.starts, positions, side="right") - 1
        return self.row_groups[index], positions - self.starts[index]


def row_order(num_rows: int, row_group: int, seed: int, epoch: int) -> IntArray:
    """The epoch's order of the rows of one row group: shape [num_rows]."""
    return permutation(num_rows, derive_key(seed, epoch, _ORDER_KEY + 1 + row_group))


def count_steps(num_rows: int, global_batch_size: int, tail: Tail) -> int:
    full, rest = divmod(num_rows, global_batch_size)
    return full + int(tail != "drop" and rest > 0)


@dataclass(frozen=True)
class Plan:
    """The arithmetic of one split.

    Attributes:
        num_rows: N, of the split.
        global_batch_size: G, rows of a step over all ranks.
        num_lanes: L, which divides G.
        tail: what becomes of the N mod G rows that are over. "drop" leaves them out, other ones in each
            shuffled epoch; "repeat" adds a last step that is filled up with rows seen before in the epoch;
            "mask" adds it and fills it up with padding of weight 0.
    """

    num_rows: int
    global_batch_size: int
    num_lanes: int
    tail: Tail = "drop"

    def __post_init__(self) -> None:
        problems = []
        sizes = f"global_batch_size is {self.global_batch_size!r}, num_lanes {self.num_lanes!r}"
        if not all(hasattr(size, "__index__") for size in (self.global_batch_size, self.num_lanes)):
            problems.append(f"{sizes}; give whole numbers")
        elif self.global_batch_size < 1 or self.num_lanes < 1:
            problems.append(
                f"global_batch_size is {self.global_batch_size}, num_lanes {self.num_lanes}; give 1 or more"
            )
        elif self.global_batch_size % self.num_lanes:
            problems.append(
                f"num_lanes is {self.num_lanes}, which must divide global_batch_size "
                f"{self.global_batch_size}; change one of them"
            )
        if self.tail not in ("drop", "repeat", "mask"):
            problems.append(f"tail is {self.tail!r}; allowed are 'drop', 'repeat' and 'mask'")
        if problems:
            raise ConfigError(problems, "the stream's arguments")

    @property
    def steps_per_epoch(self) -> int:
        return count_steps(self.num_rows, self.global_batch_size, self.tail)

    @property
    def lane_rows(self) -> int:
        """m: rows of a lane in every step."""
        return self.global_batch_size // self.num_lanes

    def lane_interval(self, lane: int) -> tuple[int, int]:
        """Positions of the epoch's order that belong to a lane; intervals of two lanes never overlap."""
        start = lane * self.num_rows // self.num_lanes
        if self.tail == "drop":
            return start, start + self.steps_per_epoch * self.lane_rows
        return start, (lane + 1) * self.num_rows // self.num_lanes

    def shares(self, rank: int, size: int) -> list[LaneShare]:
        """What rank `rank` of `size` takes: rows [rank * G / size, (rank + 1) * G / size) of every batch."""
        first, last = rank * self.global_batch_size // size, (rank + 1) * self.global_batch_size // size
        shares = []
        for lane in range(first // self.lane_rows, -(-last // self.lane_rows)):
            start, stop = max(first, lane * self.lane_rows), min(last, (lane + 1) * self.lane_rows)
            shares.append(LaneShare(lane, start - lane * self.lane_rows, stop - start, start - first))
        return shares

    def global_positions(self, step: int) -> tuple[IntArray, NDArray[np.bool_]]:
        """Return the position in the epoch's order of each row of a global batch, and whether it is padding.

        Both of shape [G]. This is the definition; `copies` says the same in as few copies as possible.
        """
        places = np.arange(self.global_batch_size)
        starts, stops = np.array([self.lane_interval(lane) for lane in range(self.num_lanes)], np.int64).T
        lanes = places // self.lane_rows
        lane_rows, sizes = step * self.lane_rows + places % self.lane_rows, (stops - starts)[lanes]
        is_over = lane_rows >= sizes
        if self.tail == "repeat":
            filled = starts[lanes] + lane_rows % np.maximum(sizes, 1)
        else:
            filled = stops[lanes] - 1
        # before a lane without rows lies another one's last row, which stands in for its own
        filled = np.where(sizes > 0, filled, np.maximum(stops[lanes] - 1, 0))
        return np.where(is_over, filled, starts[lanes] + lane_rows), is_over & (self.tail == "mask")

    def copies(self, order: EpochOrder, share: LaneShare, first_step: int, last_step: int) -> Iterator[Copy]:
        """Say where the rows of `share` come from, for the steps from `first_step` to `last_step`."""
        start, stop = self.lane_interval(share.lane)
        first, last = first_step * self.lane_rows, last_step * self.lane_rows
        for piece in order.pieces(min(start + first, stop), min(start + last, stop)):
            yield from self._cut(share, piece, first)
            first += piece.stop - piece.start
        if last_step < self.steps_per_epoch or last <= stop - start:
            return
        # Only the last step is concerned: a lane lacks at most m rows.
        if self.tail == "mask" or start == stop:
            yield from self._pad(order, share)
            return
        first = stop - start
        while first < last:
            for piece in order.pieces(start, min(start + last - first, stop)):
                yield from self._cut(share, piece, first)
                first += piece.stop - piece.start

    def _cut(self, share: LaneShare, piece: Piece, lane_row: int) -> Iterator[Copy]:
        """Cut a piece, which begins at `lane_row` of its lane: a broken step, whole steps, a broken step."""
        end = lane_row + piece.stop - piece.start
        whole = (-(-lane_row // self.lane_rows) * self.lane_rows, end // self.lane_rows * self.lane_rows)
        borders = (lane_row, *whole, end) if whole[0] <= whole[1] else (lane_row, end)
        for begin, until in pairwise(borders):
            if begin == until:
                continue
            step, begins_at = divmod(begin, self.lane_rows)
            num_steps = max((until - begin) // self.lane_rows, 1)
            ends_at = self.lane_rows if until - begin >= self.lane_rows else begins_at + until - begin
            low, high = max(begins_at, share.skip), min(ends_at, share.skip + share.width)
            if low < high:
                source = piece.start + begin - lane_row + low - begins_at
                yield Copy(
                    piece.row_group, source, num_steps, step, share.offset + low - share.skip, high - low
                )

    def _pad(self, order: EpochOrder, share: LaneShare) -> Iterator[Copy]:
        """Fill the end of the last step with a row that exists, so that codes stay valid."""
        start, stop = self.lane_interval(share.lane)
        step = self.steps_per_epoch - 1
        low, high = max(stop - start - step * self.lane_rows, share.skip), share.skip + share.width
        if low < high:
            # the lane's last row; before an empty lane lies another one's
            row_group, row = order.locate(np.array([max(stop - 1, 0)]))
            offset = share.offset + low - share.skip
            yield Copy(int(row_group[0]), int(row[0]), 1, step, offset, high - low, is_padding=True)
