"""Which steps of which source a stream's steps are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from sparktrain.dataset.load import Source
from sparktrain.dataset.plan import IntArray, LaneShare, Plan


class Segment(NamedTuple):
    """Steps `first` to `last` (not included) of an epoch of a source; in the stream `shift` later."""

    epoch: int
    first: int
    last: int
    shift: int = 0


@dataclass(frozen=True, eq=False)
class Feed:
    """Where the rows of one lane's share come from.

    Attributes:
        source: number of the source.
        plan: of the source.
        share: of the rank in the lane, by the number that the lane has in `plan`.
        segments: tells which steps of the source the stream's steps from the first to the second are.
    """

    source: int
    plan: Plan
    share: LaneShare
    segments: Callable[[int, int], Iterator[Segment]]


class Origins(NamedTuple):
    """Where each row of a global batch comes from, all of shape [G].

    Attributes:
        source: number of the source.
        row_group: in the source.
        row: of the row group, as it is stored.
        is_padding: whether it only fills up the batch.
    """

    source: IntArray
    row_group: IntArray
    row: IntArray
    is_padding: NDArray[np.bool_]


class Schedule(Protocol):
    """What a stream asks: the same for one split and for a mixture of several."""

    @property
    def plan(self) -> Plan:
        """Of the stream: its steps, its global batch and its lanes."""
        ...

    @property
    def meaning(self) -> dict[str, Any]:
        """What fixes the global batches, for the state; plain values."""
        ...

    def stretches(
        self, epoch: int, first_step: int, shares: Sequence[LaneShare]
    ) -> tuple[list[int], list[list[Feed]]]:
        """Cut the rest of an epoch where feeds change: the borders, and the feeds between two of them."""
        ...

    def origins(self, epoch: int, step: int) -> Origins:
        """Say where the rows of a global batch come from."""
        ...


@dataclass(frozen=True, eq=False)
class SingleSplit:
    """One split, once an epoch."""

    plan: Plan
    source: Source

    @property
    def meaning(self) -> dict[str, Any]:
        return {"tail": self.plan.tail, **self.source.meaning}

    def stretches(
        self, epoch: int, first_step: int, shares: Sequence[LaneShare]
    ) -> tuple[list[int], list[list[Feed]]]:
        def segments(first: int, last: int) -> Iterator[Segment]:
            yield Segment(epoch, first, last)

        feeds = [Feed(0, self.plan, share, segments) for share in shares]
        return [first_step, self.plan.steps_per_epoch], [feeds]

    def origins(self, epoch: int, step: int) -> Origins:
        positions, is_padding = self.plan.global_positions(step)
        row_group, row = self.source.locate(epoch, self.plan.num_lanes, positions)
        return Origins(np.zeros_like(row), row_group, row, is_padding)
