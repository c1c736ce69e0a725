"""Figures of a model that predicts a number: how far it is off, and where."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from sparktrain.runs.plots import BLUE, GREY, ORANGE, Floats, finite_pairs, new_figure, subsample

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NUM_BINS = 20
_OUTLIERS = 0.005  # of the rows at either end lie outside of what is shown


def residuals_figure(
    target: ArrayLike, prediction: ArrayLike, title: str = "Residuals over prediction, test split"
) -> Figure:
    """Draw observed minus predicted over the predicted value, with median and quartiles by bin."""
    figure, axes = new_figure(title, "predicted", "observed − predicted")
    observed, predicted = finite_pairs(target, prediction)
    residual = observed - predicted
    _scatter(axes, predicted, residual)
    axes.axhline(0, color=GREY, ls="--", lw=1)
    bins = [part for part in np.array_split(np.argsort(predicted, kind="stable"), _NUM_BINS) if len(part)]
    if bins:
        centre = [float(predicted[part].mean()) for part in bins]
        low, median, high = np.array([np.quantile(residual[part], [0.25, 0.5, 0.75]) for part in bins]).T
        axes.fill_between(centre, low, high, color=ORANGE, alpha=0.2, lw=0, label="half of the rows")
        axes.plot(centre, median, color=ORANGE, lw=1.8, marker="o", ms=3, label="median")
        axes.legend(frameon=False, loc="best")
    _show_most(axes, predicted, residual)
    return figure


def predicted_observed_figure(
    target: ArrayLike, prediction: ArrayLike, title: str = "Predicted and observed, test split"
) -> Figure:
    """Draw the predicted value over the observed one; a perfect model lies on the diagonal."""
    figure, axes = new_figure(title, "observed", "predicted")
    observed, predicted = finite_pairs(target, prediction)
    _scatter(axes, observed, predicted)
    if len(observed):
        both = np.concatenate([observed, predicted])
        ends = [float(both.min()), float(both.max())]
        axes.plot(ends, ends, color=GREY, ls="--", lw=1, label="perfect")
        axes.legend(frameon=False, loc="upper left")
    _show_most(axes, observed, predicted)
    return figure


def _scatter(axes: Axes, x: Floats, y: Floats) -> None:
    keep = subsample(len(x), 4000)
    axes.scatter(x[keep], y[keep], s=6, color=BLUE, alpha=0.25, lw=0, rasterized=True)


def _show_most(axes: Axes, x: Floats, y: Floats) -> None:
    """Leave the outermost rows outside: one of them could squeeze all others into a line."""
    for values, limit in ((x, axes.set_xlim), (y, axes.set_ylim)):
        if len(values) < 1 / _OUTLIERS:
            continue
        low, high = np.quantile(values, [_OUTLIERS, 1 - _OUTLIERS])
        margin = (high - low) * 0.1
        if margin > 0:
            limit(low - margin, high + margin)
