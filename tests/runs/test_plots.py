from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc_curve

from sparktrain.runs.plots import (
    calibration_figure,
    curves_from,
    loss_figure,
    precision_recall_figure,
    roc_curve,
    roc_figure,
)

RANDOM = np.random.default_rng(0)
TARGET = RANDOM.integers(0, 2, 5000).astype(np.float32)
PROBABILITY = np.round(np.clip(0.3 * TARGET + RANDOM.random(5000) * 0.7, 0, 1), 3)  # with ties


def labels(figure: object) -> list[str]:
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]  # type: ignore[attr-defined]


def test_the_roc_curve_is_that_of_scikit_learn() -> None:
    ours = roc_curve(TARGET, PROBABILITY)
    theirs = sklearn_roc_curve(TARGET, PROBABILITY, drop_intermediate=False)[:2]
    np.testing.assert_allclose(ours, theirs)


def test_figures_state_the_areas() -> None:
    auc = roc_auc_score(TARGET, PROBABILITY)
    assert f"model, AUC {auc:.4f}" in labels(roc_figure(TARGET, PROBABILITY))
    average = average_precision_score(TARGET, PROBABILITY)
    assert f"model, average precision {average:.4f}" in labels(precision_recall_figure(TARGET, PROBABILITY))


def test_curves_are_thinned_out_but_keep_their_ends() -> None:
    probability = RANDOM.random(50_000)
    figure = roc_figure(RANDOM.integers(0, 2, 50_000), probability)
    x, y = figure.axes[0].lines[0].get_data()
    assert len(x) <= 1000
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)


@pytest.mark.parametrize("draw", [roc_figure, precision_recall_figure, calibration_figure])
def test_one_class_no_rows_and_nan_draw_something(draw: object, tmp_path: Path) -> None:
    nan = float("nan")
    for target, probability in [([1, 1], [0.2, 0.9]), ([0, 0], [0.2, 0.2]), ([], []), ([0, 1], [nan, 0.5])]:
        draw(target, probability).savefig(tmp_path / "figure.png")  # type: ignore[operator]


def test_a_calibrated_model_lies_on_the_diagonal() -> None:
    probability = RANDOM.random(100_000)
    target = RANDOM.random(100_000) < probability
    predicted, observed = calibration_figure(target, probability).axes[0].lines[1].get_data()
    np.testing.assert_allclose(predicted, observed, atol=0.03)


def test_losses_come_from_events_each_step_once() -> None:
    events = [
        {"kind": "metrics", "step": 2, "values": {"train/loss": 0.5}},
        {"kind": "progress", "step": 2},
        {"kind": "metrics", "step": 1, "values": {"train/loss": 0.9, "validation/loss": 0.8}},
        {"kind": "metrics", "step": 2, "values": {"train/loss": 0.5}},
    ]
    curves = curves_from(events)
    assert curves == {"train/loss": [(1, 0.9), (2, 0.5)], "validation/loss": [(1, 0.8)]}
    assert labels(loss_figure(curves["train/loss"], curves["validation/loss"])) == ["train", "validation"]
    assert loss_figure([]).axes[0].get_xlabel() == "step"


def test_a_long_loss_curve_is_smoothed_with_the_right_level() -> None:
    figure = loss_figure([(step, 2.0) for step in range(5000)])
    assert labels(figure) == ["train", "train, smoothed"]
    np.testing.assert_allclose(figure.axes[0].lines[1].get_ydata(), 2.0)


def test_a_loss_that_was_not_finite_leaves_the_rest_of_the_curve() -> None:
    figure = loss_figure([(step, float("nan") if step == 7 else 2.0) for step in range(100)])
    assert np.isfinite(figure.axes[0].lines[1].get_ydata()).all()
    assert loss_figure([(1, float("nan"))]).axes[0].lines[0].get_xdata().size == 0


def test_no_global_state_of_matplotlib_is_used() -> None:
    already = "matplotlib.pyplot" in sys.modules
    roc_figure(TARGET, PROBABILITY)
    assert already or "matplotlib.pyplot" not in sys.modules
