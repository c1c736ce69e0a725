from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from sparktrain.training.pace import RankTime, Straggler, StragglerWatch, WorkClock, lost_fraction


def watch(*periods: list[RankTime], seconds: float = 1.0) -> list[Straggler | None]:
    """What is told after each period of 10 steps."""
    watching = StragglerWatch(period_seconds=seconds)
    return [watching.add(times, seconds, 10) for times in periods]


EVEN = [RankTime(0.1, 0.5), RankTime(0.1, 0.5), RankTime(0.1, 0.5)]
SLOW_COMPUTE = [RankTime(0.1, 0.3), RankTime(0.1, 0.8), RankTime(0.1, 0.3)]
SLOW_DATA = [RankTime(0.0, 0.2), RankTime(0.0, 0.2), RankTime(0.7, 0.2)]


def test_even_ranks_are_never_spoken_of() -> None:
    assert watch(*[EVEN] * 20) == [None] * 20


def test_a_slow_rank_is_told_once_with_its_cause() -> None:
    told = watch(*[SLOW_COMPUTE] * 20)
    assert [found is not None for found in told] == [False, False, True] + [False] * 17
    assert told[2] == Straggler(1, "compute", pytest.approx(0.05), pytest.approx(2.25))
    told = watch(*[SLOW_DATA] * 20)
    assert [found for found in told if found] == [told[2]]
    assert told[2] == Straggler(2, "data", pytest.approx(0.07), pytest.approx(4.5))


def test_two_ranks_are_enough_to_know_the_slow_one() -> None:
    told = watch(*[[RankTime(0.0, 0.9), RankTime(0.0, 0.3)]] * 3)
    assert told[2] is not None and told[2].rank == 0


def test_a_moment_is_not_spoken_of() -> None:
    assert watch(*[EVEN, SLOW_COMPUTE, SLOW_COMPUTE] * 10) == [None] * 30


def test_its_end_and_another_cause_are_told_too() -> None:
    told = watch(*[SLOW_COMPUTE] * 5, *[EVEN] * 5, *[SLOW_DATA] * 5)
    assert [(n, s.rank, s.cause, s.is_over) for n, s in enumerate(told) if s] == [
        (2, 1, "compute", False),
        (7, 1, "compute", True),
        (12, 2, "data", False),
    ]


def test_a_rank_at_the_border_does_not_come_and_go() -> None:
    border = [RankTime(0.0, 0.5), RankTime(0.0, 0.65), RankTime(0.0, 0.5)]  # neither slow nor well
    told = watch(*[SLOW_COMPUTE] * 3, *([border] * 3 + [SLOW_COMPUTE] * 3) * 5)
    assert sum(found is not None for found in told) == 1


def test_much_of_little_is_not_slow() -> None:
    """Thrice the others' time, but the gang's time goes elsewhere: to the exchange, say."""
    assert watch(*[[RankTime(0.0, 0.15), RankTime(0.0, 0.05)]] * 5) == [None] * 5


def test_short_windows_are_put_together() -> None:
    watching = StragglerWatch(period_seconds=1.0)
    tenth = [RankTime(time.data / 10, time.compute / 10) for time in SLOW_COMPUTE]
    told = [watching.add(tenth, 0.1001, 1) for _ in range(40)]
    assert [n for n, found in enumerate(told) if found] == [29]


def test_what_the_others_lose_is_a_fraction_of_the_time() -> None:
    assert lost_fraction(SLOW_DATA, 1.0) == pytest.approx(0.7)
    assert lost_fraction(EVEN, 1.0) == 0.0


def test_the_clock_counts_from_the_batch_to_the_gradients() -> None:
    class Slow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 1)

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            time.sleep(0.05)
            return self.layer(rows)

    class Waiting(nn.Module):
        """As DDP does, for the buffers of others."""

        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            time.sleep(2)
            return self.module(rows)

    model = Slow()
    parallel = Waiting(model)
    clock = WorkClock(model, parallel)
    clock.start()
    time.sleep(0.05)
    parallel(torch.ones(3, 2)).sum().backward()
    counted = clock.seconds
    assert 0.1 <= counted < 2
    time.sleep(0.05)
    model.eval()
    with torch.inference_mode():
        model(torch.ones(3, 2))
    assert clock.seconds == counted
