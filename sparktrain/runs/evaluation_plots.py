"""What the test predictions of a run are drawn as: by the kind of each target, from the ranks' files."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sparktrain.features import FittedTarget
from sparktrain.runs.class_plots import confusion_figure, one_vs_rest_figure, top_class
from sparktrain.runs.number_plots import predicted_observed_figure, residuals_figure
from sparktrain.runs.plots import calibration_figure, precision_recall_figure, roc_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

Array = NDArray[Any]
_Draw = Callable[[], "Figure"]


def evaluation_figures(files: Sequence[Path], targets: Sequence[FittedTarget]) -> dict[str, Figure]:
    """Draw the predictions of all ranks; what is of a shape that no figure takes is left out.

    Args:
        files: as the ranks wrote them: `target`, and `probability` or `prediction`; of several targets both
            are structs with a field for each target.
        targets: of the dataset.

    Returns:
        Figures by name: "roc"; with several targets "<target>/roc".
    """
    if not files or not targets:
        return {}
    rows = pa.concat_tables([pq.read_table(file) for file in files])
    observed = rows["target"]
    predicted = rows["probability" if "probability" in rows.column_names else "prediction"]
    figures: dict[str, Figure] = {}
    for target in targets:
        its, ours = _column_of(observed, target.name), _column_of(predicted, target.name)
        if its is None or ours is None:
            continue
        prefix = re.sub(r"[^-\w.]+", "_", target.name) + "/" if len(targets) > 1 else ""
        for name, draw in _plans(target, its, ours).items():
            if (figure := _drawn(draw, prefix + name)) is not None:
                figures[prefix + name] = figure
    return figures


def _drawn(draw: _Draw, name: str) -> Figure | None:
    """No figure is worth a model that is not registered."""
    try:
        return draw()
    except Exception as error:
        logger.warning("no plot %s: %s: %s", name, type(error).__name__, error)
        return None


def _column_of(column: pa.ChunkedArray, name: str) -> Array | None:
    """Return what belongs to a target, [rows] or [rows, numbers]; None where it can't be told."""
    if pa.types.is_struct(column.type):
        if column.type.get_field_index(name) < 0:
            return None
        return _column_of(pa.chunked_array([chunk.field(name) for chunk in column.chunks]), name)
    if pa.types.is_fixed_size_list(column.type):
        flat = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
        found = np.concatenate(flat).reshape(-1, column.type.list_size)
        return found[:, 0] if found.shape[1] == 1 else found
    if pa.types.is_floating(column.type) or pa.types.is_integer(column.type):
        numbers: Array = column.to_numpy()
        return numbers
    return None


def _plans(target: FittedTarget, observed: Array, predicted: Array) -> Mapping[str, _Draw]:
    if observed.ndim != 1 or len(observed) != len(predicted):
        return {}
    plan = {"binary": _of_binary, "multiclass": _of_classes, "regression": _of_number}[target.kind]
    return plan(target, observed, predicted)


def _of_binary(target: FittedTarget, observed: Array, predicted: Array) -> Mapping[str, _Draw]:
    if predicted.ndim != 1:
        return {}
    plans: dict[str, _Draw] = {
        "roc": lambda: roc_figure(observed, predicted),
        "precision_recall": lambda: precision_recall_figure(observed, predicted),
    }
    if _are_probabilities(predicted):
        plans["calibration"] = lambda: calibration_figure(observed, predicted)
        title = "Confusion at a probability of 0.5, test split"
        names = [f"not {target.name}", target.name]
        is_finite = np.isfinite(predicted)
        plans["confusion"] = lambda: confusion_figure(
            observed[is_finite], predicted[is_finite] >= 0.5, names, title
        )
    return plans


def _of_classes(target: FittedTarget, observed: Array, predicted: Array) -> Mapping[str, _Draw]:
    if predicted.ndim != 2 or predicted.shape[1] != len(target.classes):
        return {}
    is_finite = np.isfinite(predicted).all(axis=1)
    observed, predicted = observed[is_finite], predicted[is_finite]
    top, probability = top_class(predicted)
    plans: dict[str, _Draw] = {
        "confusion": lambda: confusion_figure(observed, top, target.classes),
        "roc": lambda: one_vs_rest_figure(observed, predicted, target.classes),
    }
    if _are_probabilities(predicted):
        title = "Calibration of the most probable class, test split"
        plans["calibration"] = lambda: calibration_figure(top == observed, probability, title=title)
    return plans


def _of_number(target: FittedTarget, observed: Array, predicted: Array) -> Mapping[str, _Draw]:
    if predicted.ndim != 1:
        return {}
    return {
        "residuals": lambda: residuals_figure(observed, predicted),
        "predicted_observed": lambda: predicted_observed_figure(observed, predicted),
    }


def _are_probabilities(predicted: Array) -> bool:
    """A Task may return scores of another scale, which can be ranked and not held against shares."""
    known = predicted[np.isfinite(predicted)]
    return bool(((known >= 0) & (known <= 1)).all())
