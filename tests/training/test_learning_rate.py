"""The learning rate is a function of the step alone."""

from __future__ import annotations

from itertools import pairwise

import pytest

from sparktrain.config import TrainConfig
from sparktrain.training.schedule import rate_factor


def rates(total_steps: int, warmup_fraction: float) -> list[float]:
    config = TrainConfig(learning_rate=0.5, warmup_fraction=warmup_fraction)
    return [0.5 * rate_factor(step, total_steps, config) for step in range(total_steps)]


def test_the_rate_rises_in_equal_steps_and_then_falls_in_half_a_cosine() -> None:
    found = rates(100, 0.1)
    assert found[:10] == pytest.approx([0.05 * step for step in range(1, 11)])
    assert found[9] == found[10] == max(found) == 0.5
    assert found[10 + 45] == pytest.approx(0.25)
    assert all(later < earlier for earlier, later in pairwise(found[10:]))
    assert 0 < found[-1] < 0.001


def test_every_step_learns_whatever_the_warm_up() -> None:
    for total_steps in (1, 2, 3, 7, 100):
        for warmup_fraction in (0.0, 0.01, 0.1, 0.5, 0.99, 1.0):
            found = rates(total_steps, warmup_fraction)
            assert all(0 < rate <= 0.5 for rate in found), (total_steps, warmup_fraction)


def test_without_warm_up_the_first_step_has_the_full_rate() -> None:
    assert rates(10, 0.0)[0] == 0.5


def test_a_warm_up_over_all_steps_ends_at_the_full_rate() -> None:
    assert rates(4, 1.0) == pytest.approx([0.125, 0.25, 0.375, 0.5])
