"""Curves of a run: loss, ROC, precision and recall, calibration; and what all figures are made with.

matplotlib's object interface only: pyplot would keep every figure and choose a GUI.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]
Curve = Sequence[tuple[int, float]]

BLUE, ORANGE, GREY = "#2a6fbb", "#d9772b", "#8a8f98"
_MAX_POINTS = 1000


def curves_from(events: Iterable[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Collect {metric: [(step, value), ...]} from events, in order of steps; a repeated step counts once."""
    curves: dict[str, dict[int, float]] = {}
    for event in events:
        if event.get("kind") == "metrics":
            for key, value in event["values"].items():
                curves.setdefault(key, {})[int(event["step"])] = float(value)
    return {key: sorted(points.items()) for key, points in curves.items()}


def loss_figure(train: Curve, validation: Curve = (), title: str = "Loss") -> Figure:
    """Draw the training loss by step, smoothed over the raw values, and the validation loss."""
    figure, axes = new_figure(title, "step", "loss")
    if len(train):
        steps, values = _points(train)
        keep = subsample(len(steps))
        is_noisy = len(steps) >= 30
        axes.plot(steps[keep], values[keep], color=BLUE, alpha=0.3 if is_noisy else 1.0, lw=1, label="train")
        if is_noisy:
            smooth = _smooth(values)
            axes.plot(steps[keep], smooth[keep], color=BLUE, lw=1.8, label="train, smoothed")
    if len(validation):
        steps, values = _points(validation)
        axes.plot(steps, values, color=ORANGE, marker="o", lw=1.8, ms=5, label="validation")
    if len(train) or len(validation):
        axes.legend(frameon=False)
    return figure


def roc_figure(target: ArrayLike, probability: ArrayLike, title: str = "ROC, test split") -> Figure:
    """Draw the ROC curve with its area; `target` [rows] of 0 and 1, `probability` [rows]."""
    figure, axes = new_figure(title, "false positive rate", "true positive rate")
    false_positive, true_positive = roc_curve(target, probability)
    area = area_under(false_positive, true_positive)
    keep = subsample(len(false_positive))
    axes.plot(false_positive[keep], true_positive[keep], color=BLUE, lw=2, label=f"model, AUC {area:.4f}")
    axes.plot([0, 1], [0, 1], color=GREY, ls="--", lw=1, label="chance, AUC 0.5")
    unit_square(axes)
    axes.legend(frameon=False, loc="lower right")
    return figure


def precision_recall_figure(
    target: ArrayLike, probability: ArrayLike, title: str = "Precision and recall, test split"
) -> Figure:
    """Draw precision over recall with the average precision."""
    figure, axes = new_figure(title, "recall", "precision")
    positives, negatives = _cumulative(target, probability)
    total = positives[-1] if len(positives) else 0.0
    precision = positives / np.maximum(positives + negatives, 1)
    recall = positives / max(total, 1)
    average = float(np.sum(np.diff(recall, prepend=0.0) * precision))
    keep = subsample(len(recall))
    axes.plot(
        recall[keep], precision[keep], color=BLUE, lw=2, label=f"model, average precision {average:.4f}"
    )
    share = total / max(np.size(target), 1)
    axes.axhline(share, color=GREY, ls="--", lw=1, label=f"chance, {share:.4f}")
    unit_square(axes)
    axes.legend(frameon=False, loc="upper right")
    return figure


def calibration_figure(
    target: ArrayLike, probability: ArrayLike, num_bins: int = 15, title: str = "Calibration, test split"
) -> Figure:
    """Draw the observed share of positives over the predicted one, in bins of equal numbers of rows."""
    figure, axes = new_figure(title, "predicted probability", "observed share")
    y, p = finite_pairs(target, probability)
    order = np.argsort(p, kind="stable")
    bins = [part for part in np.array_split(order, num_bins) if len(part)]
    predicted = [float(p[part].mean()) for part in bins]
    observed = [float(y[part].mean()) for part in bins]
    axes.plot([0, 1], [0, 1], color=GREY, ls="--", lw=1, label="perfect")
    axes.plot(predicted, observed, color=BLUE, marker="o", ms=5, lw=1.8, label="model")
    unit_square(axes)
    axes.legend(frameon=False, loc="upper left")
    return figure


def roc_curve(target: ArrayLike, probability: ArrayLike) -> tuple[Floats, Floats]:
    """Return false and true positive rates, each [thresholds + 1] from 0 to 1; ties share one threshold."""
    positives, negatives = _cumulative(target, probability)
    if not len(positives):
        return np.array([0.0, 1.0]), np.array([0.0, 1.0])
    rates = [np.concatenate([[0.0], counts / max(counts[-1], 1)]) for counts in (negatives, positives)]
    return rates[0], rates[1]


def area_under(false_positive: Floats, true_positive: Floats) -> float:
    """Return the area under a ROC curve."""
    # by hand: NumPy 1 has another name for trapezoid
    return float(np.diff(false_positive) @ (true_positive[1:] + true_positive[:-1])) / 2


def _cumulative(target: ArrayLike, probability: ArrayLike) -> tuple[Floats, Floats]:
    """Count positives and negatives at or above each distinct probability, from the highest down."""
    y, p = finite_pairs(target, probability)
    order = np.argsort(-p, kind="stable")
    y, p = y[order], p[order]
    last_of_tie = np.flatnonzero(np.diff(p, append=-np.inf))
    positives = np.cumsum(y)[last_of_tie]
    return positives, last_of_tie + 1.0 - positives


def finite_pairs(target: ArrayLike, probability: ArrayLike) -> tuple[Floats, Floats]:
    """Return both as float64 [rows], without the rows in which either is not finite."""
    y, p = np.asarray(target, np.float64), np.asarray(probability, np.float64)
    finite = np.isfinite(p) & np.isfinite(y)
    return y[finite], p[finite]


def _points(curve: Curve) -> tuple[Floats, Floats]:
    """Return steps and values, without the values that are not finite: they would break the smoothing."""
    points = np.asarray(curve, np.float64)
    steps, values = points[np.isfinite(points[:, 1])].T
    return steps, values


def _smooth(values: Floats) -> Floats:
    """Average over a centred window of a fiftieth of the run, narrower at both ends."""
    half = max(len(values) // 100, 2)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    positions = np.arange(len(values))
    low, high = np.maximum(positions - half, 0), np.minimum(positions + half + 1, len(values))
    return np.asarray((sums[high] - sums[low]) / (high - low))


def subsample(count: int, most: int = _MAX_POINTS) -> NDArray[np.intp]:
    """Pick at most so many positions, first and last among them: a figure shows no more."""
    return np.unique(np.linspace(0, max(count - 1, 0), min(count, most)).round().astype(np.intp))


def new_figure(title: str, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """Return an empty figure in the style of all of them, and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(plain(title), loc="left", fontweight="bold")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(True, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def plain(text: str, max_length: int = 60) -> str:
    """Return a text of the user's as matplotlib shows it: it would read `$` as the beginning of a formula."""
    short = text if len(text) <= max_length else f"{text[: max_length - 1]}…"
    return short.replace("$", r"\$")


def unit_square(axes: Axes) -> None:
    """Show 0 to 1 on both axes, and a little around it."""
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
