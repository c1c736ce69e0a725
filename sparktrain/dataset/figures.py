"""Figures of a dataset that follow from the rows of its row groups alone: steps, and what each rank takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from sparktrain.dataset.budget import WEIGHT_BYTES, Budget
from sparktrain.dataset.plan import EpochOrder, Plan, Tail, count_steps

# Path of each part -> rows of each of its row groups.
Parts = Mapping[str, Sequence[int]]

_NUM_THREADS = 2  # as many as a stream has when nobody says otherwise
_NUM_STEPS_LOOKED_AT = 32


def filled_row_groups(parts: Parts) -> list[int]:
    """Rows of each row group that has any, in the order of the parts."""
    return [rows for row_groups in parts.values() for rows in row_groups if rows]


@dataclass(frozen=True)
class SplitFigures:
    """One split. A `tail` of "drop" leaves the rows of an incomplete last step out, "mask" fills it up."""

    name: str
    num_parts: int
    num_row_groups: int
    num_rows: int
    steps_per_epoch: int
    num_rows_dropped: int

    @classmethod
    def of(cls, name: str, parts: Parts, global_batch_size: int, tail: Tail) -> Self:
        row_groups = filled_row_groups(parts)
        rows = sum(row_groups)
        steps = count_steps(rows, global_batch_size, tail)
        dropped = max(rows - steps * global_batch_size, 0)
        return cls(name, len(parts), len(row_groups), rows, steps, dropped)


@dataclass(frozen=True)
class RankFigures:
    """A rank in a gang of `num_ranks`: its rows in a step, its lanes, the bytes its stream may hold."""

    num_ranks: int
    min_rows_per_step: int
    max_rows_per_step: int
    num_lanes: int
    memory_bytes: int

    @classmethod
    def of(
        cls,
        num_ranks: int,
        plan: Plan,
        row_groups: Sequence[int],
        bytes_per_row: float,
        num_footer_chunks: int,
    ) -> Self:
        """Bytes are what a stream with the usual settings allows itself, from the largest of `row_groups`."""
        shares = [plan.shares(rank, num_ranks) for rank in range(num_ranks)]
        rows = [sum(share.width for share in of_rank) for of_rank in shares]
        lanes = max(map(len, shares))
        row_group_bytes = round(max(row_groups, default=0) * bytes_per_row)
        memory = max(
            Budget.of(
                row_group_bytes=row_group_bytes,
                step_bytes=round(own_rows * (bytes_per_row + WEIGHT_BYTES)),
                num_lanes=len(of_rank),
                num_threads=_NUM_THREADS,
                num_footer_chunks=num_footer_chunks,
                memory_bytes=None,
            ).memory_bytes
            for own_rows, of_rank in zip(rows, shares, strict=True)
        )
        return cls(num_ranks, min(rows), max(rows), lanes, memory)


def mixed_row_groups(plan: Plan, row_groups: Sequence[int]) -> float:
    """Return how many row groups a global batch has rows of: the mean of some steps of the first epoch."""
    if plan.steps_per_epoch == 0:
        return 0.0
    order = EpochOrder.of(np.array(row_groups, np.int64), plan.num_lanes, seed=0, epoch=0)
    steps = range(0, plan.steps_per_epoch, max(plan.steps_per_epoch // _NUM_STEPS_LOOKED_AT, 1))
    counts = [len(np.unique(order.locate(plan.global_positions(step)[0])[0])) for step in steps]
    return float(np.mean(counts))
