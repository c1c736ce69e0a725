"""Figures of a dataset that follow from the rows of its row groups alone: steps, and what each rank takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from sparktrain.dataset.plan import Plan, Tail, count_steps

# Path of each part -> rows of each of its row groups.
Parts = Mapping[str, Sequence[int]]

_ROW_GROUPS_PER_LANE = 2  # at most: the one that rows are taken from, and the one that is read ahead


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
    """A rank in a gang of `num_ranks`: the rows that it takes in a step, its lanes, the bytes it holds."""

    num_ranks: int
    min_rows_per_step: int
    max_rows_per_step: int
    num_lanes: int
    memory_bytes: int

    @classmethod
    def of(cls, num_ranks: int, plan: Plan, row_groups: Sequence[int], bytes_per_row: float) -> Self:
        """Bytes are those of decoded row groups, each as large as the largest of `row_groups`."""
        shares = [plan.shares(rank, num_ranks) for rank in range(num_ranks)]
        rows = [sum(share.width for share in of_rank) for of_rank in shares]
        lanes = max(map(len, shares))
        held = min(lanes * _ROW_GROUPS_PER_LANE, len(row_groups)) * max(row_groups, default=0)
        return cls(num_ranks, min(rows), max(rows), lanes, round(held * bytes_per_row))
