"""Pace: how long a rank works at its own steps, without the time in which it waits for others; who is slow.

Ranks that train together take equally long for a step, whoever is slow: the others wait inside backward, for
its gradients. So work is counted from the batch to the moment at which the gradients are there, which is
before they are exchanged; waiting for data is counted by the stream.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from torch import Tensor, nn

Cause = Literal["data", "compute"]

PERIOD_SECONDS = 5.0
_PERIODS = 3  # in a row, before anything is said
_SLOW_FACTOR = 1.5
_SLOW_FRACTION = 0.2  # of the gang's time that goes to waiting for one rank
_WELL_FRACTION = 0.1  # lower, so that a rank at the border is not called slow and well in turn


class WorkClock:
    """Adds up the seconds of this rank's own work at steps, and those in which it waits for others.

    On a GPU these are the seconds in which the host issues the work: a slow process is seen, a slow GPU not.
    Where weights are sharded, waiting for them is part of the passes, and counted as work.

    Attributes:
        seconds: of work; `start` begins a step's.
        communication_seconds: between this rank's own gradients and all ranks' together.

    Args:
        model: whose layers work.
        parallel: what the loop calls: `model` in a wrapper, which may wait for other ranks' buffers first.
    """

    def __init__(self, model: nn.Module, parallel: nn.Module) -> None:
        self.seconds, self.communication_seconds = 0.0, 0.0
        self._paused = 0.0
        self._began: float | None = None
        # Before the Task's own hooks.
        model.register_forward_pre_hook(self._on_forward, prepend=True)
        parallel.register_forward_pre_hook(self._on_call, prepend=True)
        # The first parameter's gradient is the last one to be known, or nearly.
        first = next((p for p in model.parameters() if p.requires_grad), None)
        if first is not None:
            first.register_post_accumulate_grad_hook(self._on_gradient)  # type: ignore[no-untyped-call]

    def start(self) -> None:
        self._began = time.monotonic()

    def stop(self) -> None:
        """The backward pass is over, and with it the exchange of what it gave."""
        self._pause()
        self.communication_seconds += time.monotonic() - self._paused

    @contextmanager
    def communicating(self) -> Iterator[None]:
        """Around what ranks exchange apart from a backward pass."""
        began = time.monotonic()
        yield
        self.communication_seconds += time.monotonic() - began

    def _pause(self) -> None:
        if self._began is not None:
            self._paused = time.monotonic()
            self.seconds += self._paused - self._began
            self._began = None

    def _on_call(self, parallel: nn.Module, inputs: Any) -> None:
        if parallel.training:
            self._pause()

    def _on_forward(self, model: nn.Module, inputs: Any) -> None:
        if model.training:
            self._pause()
            self.start()

    def _on_gradient(self, parameter: Tensor) -> None:
        self._pause()


@dataclass(frozen=True)
class RankTime:
    """Seconds of one rank in a while: waiting for its own data, and working."""

    data: float
    compute: float

    @property
    def total(self) -> float:
        return self.data + self.compute


@dataclass(frozen=True)
class Straggler:
    """A rank that the others wait for.

    Attributes:
        cause: what it spends the difference with.
        seconds: that it takes longer for a step than the others.
        factor: how many times the others' time that is in all.
        is_over: it keeps up again.
    """

    rank: int
    cause: Cause
    seconds: float
    factor: float
    is_over: bool = False


def slowest(times: Sequence[RankTime]) -> tuple[int, RankTime, RankTime]:
    """Return the slowest rank, its time, and the usual time of the others (medians)."""
    rank = max(range(len(times)), key=lambda r: times[r].total)
    others = [time for r, time in enumerate(times) if r != rank]
    usual = RankTime(median(t.data for t in others), median(t.compute for t in others))
    return rank, times[rank], usual


def lost_fraction(times: Sequence[RankTime], seconds: float) -> float:
    """Return the fraction of `seconds` in which the others wait for the slowest rank."""
    _, its, usual = slowest(times)
    return max(its.total - usual.total, 0.0) / seconds


class StragglerWatch:
    """Decides from the ranks' times whether to speak of a slow one: once when it begins, once when it ends.

    A pure function of what it is given, so that all ranks, given the same, decide the same.
    """

    def __init__(self, period_seconds: float | None = None) -> None:
        self._period_seconds = PERIOD_SECONDS if period_seconds is None else period_seconds
        self._told: Straggler | None = None
        self._candidate: tuple[int, Cause] | None = None
        self._periods = 0
        self._restart()

    def _restart(self) -> None:
        self._seconds, self._steps, self._times = 0.0, 0, list[RankTime]()

    def add(self, times: Sequence[RankTime], seconds: float, steps: int) -> Straggler | None:
        """Add a window of `steps` steps that took `seconds` in all; return what is to be told now.

        Windows are put together to periods of some seconds: short ones say more about the machine's noise.
        """
        before = self._times or [RankTime(0.0, 0.0)] * len(times)
        self._times = [
            RankTime(b.data + t.data, b.compute + t.compute) for b, t in zip(before, times, strict=True)
        ]
        self._seconds, self._steps = self._seconds + seconds, self._steps + steps
        if self._seconds < self._period_seconds:
            return None
        found, is_well = self._judge()
        self._restart()
        return self._tell(found) if found else self._tell_end(is_well)

    def _judge(self) -> tuple[Straggler | None, bool]:
        rank, its, usual = slowest(self._times)
        lost = its.total - usual.total
        factor = its.total / max(usual.total, 1e-9)
        if lost < _SLOW_FRACTION * self._seconds or factor < _SLOW_FACTOR:
            return None, lost < _WELL_FRACTION * self._seconds
        cause: Cause = "data" if its.data - usual.data > its.compute - usual.compute else "compute"
        return Straggler(rank, cause, lost / self._steps, factor), False

    def _tell(self, found: Straggler) -> Straggler | None:
        self._count((found.rank, found.cause))
        told = self._told and (self._told.rank, self._told.cause)
        if self._periods < _PERIODS or told == self._candidate:
            return None
        self._told = found
        return found

    def _tell_end(self, is_well: bool) -> Straggler | None:
        self._count(None)
        if self._told is None or not is_well or self._periods < _PERIODS:
            return None
        over = Straggler(self._told.rank, self._told.cause, 0.0, 1.0, is_over=True)
        self._told = None
        return over

    def _count(self, candidate: tuple[int, Cause] | None) -> None:
        self._periods = self._periods + 1 if candidate == self._candidate else 1
        self._candidate = candidate
