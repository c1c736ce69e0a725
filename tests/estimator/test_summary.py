"""What a summary tells of each epoch, from what a run logs."""

from __future__ import annotations

import pytest

from sparktrain.estimator.summary import losses_by_epoch


def test_points_of_an_epoch_weigh_as_many_steps_as_they_are_of() -> None:
    curve = [(10, 4.0), (12, 1.0), (20, 2.0), (24, 0.5), (25, 9.0)]
    assert losses_by_epoch(curve, steps_per_epoch=12) == pytest.approx((3.5, 1.5, 9.0))


def test_an_epoch_whose_first_steps_told_nothing_has_the_loss_of_the_others() -> None:
    assert losses_by_epoch([(3, 1.0), (9, 5.0), (10, 2.0)], steps_per_epoch=5) == pytest.approx((1.0, 4.4))
    assert losses_by_epoch([], steps_per_epoch=5) == ()
