"""Figures of a model that tells classes apart: which it takes for which, and how it ranks each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparktrain.runs.plots import (
    GREY,
    Floats,
    area_under,
    new_figure,
    plain,
    roc_curve,
    subsample,
    unit_square,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAX_NUMBERS = 12  # classes whose counts are written into the matrix: more would be too small to read
_MAX_TICKS = 30
_MAX_CURVES = 10
_LABEL_LENGTH = 18


def confusion_figure(
    target: ArrayLike, predicted: ArrayLike, classes: Sequence[str], title: str = "Confusion, test split"
) -> Figure:
    """Draw which observed class was taken for which: rows by (observed, predicted), shaded by their share.

    Args:
        target, predicted: class numbers, [rows].
        classes: their names, by number.
    """
    figure, axes = new_figure(title, "predicted", "observed")
    counts = confusion_counts(target, predicted, len(classes))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the observed class")
    ticks = np.unique(np.linspace(0, len(classes) - 1, min(len(classes), _MAX_TICKS)).round().astype(int))
    names = [plain(classes[tick], _LABEL_LENGTH) for tick in ticks]
    is_wide = len(classes) > _MAX_NUMBERS or max(map(len, names)) > 8
    axes.set_xticks(ticks, names, rotation=90 if is_wide else 0, fontsize=8)
    axes.set_yticks(ticks, names, fontsize=8)
    axes.grid(False)
    if len(classes) <= _MAX_NUMBERS:
        for (observed, taken_for), rows in np.ndenumerate(counts):
            colour = "white" if shares[observed, taken_for] > 0.6 else "black"
            axes.text(taken_for, observed, f"{rows:,}", ha="center", va="center", color=colour, fontsize=8)
    return figure


def confusion_counts(target: ArrayLike, predicted: ArrayLike, num_classes: int) -> NDArray[np.int64]:
    """Count rows by (observed, predicted) class, [classes, classes]."""
    pairs = np.asarray(target, np.int64) * num_classes + np.asarray(predicted, np.int64)
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def one_vs_rest_figure(
    target: ArrayLike,
    probability: ArrayLike,
    classes: Sequence[str],
    title: str = "ROC of each class against all others, test split",
) -> Figure:
    """Draw the ROC curve of each class, of the ten with the most rows if there are more.

    Args:
        target: class numbers, [rows].
        probability: [rows, classes]; any score that rises with it will do.
    """
    figure, axes = new_figure(title, "false positive rate", "true positive rate")
    numbers, scores = np.asarray(target, np.int64), np.asarray(probability, np.float64)
    rows = np.bincount(numbers, minlength=len(classes))
    shown = [int(number) for number in np.argsort(-rows, kind="stable")[:_MAX_CURVES] if rows[number]]
    for number in sorted(shown):
        false_positive, true_positive = roc_curve(numbers == number, scores[:, number])
        keep = subsample(len(false_positive))
        # A space first: matplotlib leaves out of the legend what begins with an underscore.
        name = (
            f" {plain(classes[number], _LABEL_LENGTH)}, AUC {area_under(false_positive, true_positive):.4f}"
        )
        axes.plot(false_positive[keep], true_positive[keep], lw=1.5, label=name)
    left_out = int(np.count_nonzero(rows)) - len(shown)
    chance = "chance" if not left_out else f"chance; {left_out:,} rarer classes are not shown"
    axes.plot([0, 1], [0, 1], color=GREY, ls="--", lw=1, label=chance)
    unit_square(axes)
    axes.legend(frameon=False, loc="lower right", fontsize=8)
    return figure


def top_class(probability: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Return the number of the most probable class and its probability, both [rows]."""
    top = probability.argmax(axis=1)
    return top, probability[np.arange(len(top)), top]
