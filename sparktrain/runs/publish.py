"""After the gang: what a finished run shows to people, and the model that it registers."""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sparktrain.config import Config
from sparktrain.dataset import Dataset
from sparktrain.dataset.card import CARD_FILE, CARD_PAGE
from sparktrain.runs.directory import RunDirectory
from sparktrain.runs.events import EventReader
from sparktrain.runs.plots import (
    calibration_figure,
    curves_from,
    loss_figure,
    precision_recall_figure,
    roc_figure,
)
from sparktrain.runs.reference import logistic_regression_reference
from sparktrain.runs.registry import WEIGHTS_FILE, log_model
from sparktrain.runs.tracking import Tracker
from sparktrain.storage import RemotePath
from sparktrain.training.checkpoint import open_checkpoint
from sparktrain.training.checkpoint_state import export_weights
from sparktrain.training.task import TrainTask

logger = logging.getLogger(__name__)


def publish(
    run: RunDirectory,
    tracker: Tracker,
    dataset: Dataset,
    task: TrainTask,
    config: Config,
    outcome: Mapping[str, Any],
) -> tuple[dict[str, float], str | None]:
    """Log plots and final metrics, register the best checkpoint's model.

    Scoring gives one probability a row: with other targets than a single binary one, no model is registered,
    and there are neither a reference nor plots of predictions.

    Args:
        outcome: what `train_rank` returned.

    Returns:
        All metrics, the reference's among them, and the URI of the registered version, or None.
    """
    metrics: dict[str, float] = dict(outcome["metrics"])
    is_binary = dataset.features.has_binary_target
    if is_binary and config.train.reference == "logistic_regression" and dataset.num_rows("test"):
        logger.info("fitting the logistic regression to compare with")
        found = logistic_regression_reference(dataset)
        metrics |= {
            f"reference/{'loss' if name == 'log_loss' else name}": value for name, value in found.items()
        }
    final = {name: value for name, value in metrics.items() if not name.startswith("validation/")}
    if final:
        tracker.log_metrics(outcome["steps"], final)
    _log_figures(run, tracker, is_binary)
    log_card(tracker, dataset)
    best = run.checkpoints_in(config.storage.checkpoints) / outcome["best"]
    if not is_binary:
        logger.warning(
            "the model is not registered: scoring knows one binary target so far, this dataset has %s; "
            "the weights are in %s",
            ", ".join(f"{t.name} ({t.kind})" for t in dataset.features.targets) or "none",
            best,
        )
        return metrics, None
    logger.info("registering the model as %s@%s", config.model_name, config.tracking.alias)
    with tempfile.TemporaryDirectory(prefix="sparktrain-weights-") as directory:
        weights = Path(directory) / WEIGHTS_FILE
        export_weights(open_checkpoint(best), weights)
        model_uri = log_model(
            tracker,
            weights=weights,
            features=dataset.features,
            pipeline=type(task).__module__.rpartition(".")[0],
            arguments=dataclasses.asdict(task) if dataclasses.is_dataclass(task) else {},
            sample=dataset.examples(),
            registered_name=config.model_name,
            alias=config.tracking.alias,
            step=outcome["steps"],
        )
    return metrics, model_uri


def log_card(tracker: Tracker, dataset: Dataset) -> None:
    """Store the dataset's card with the run, under `dataset/`; a dataset without one leaves nothing."""
    for name in (CARD_PAGE, CARD_FILE):
        path = dataset.path / name
        if isinstance(path, RemotePath):
            _log_remote(tracker, path, name)
        elif path.is_file():
            tracker.log_file(path, "dataset")


def _log_remote(tracker: Tracker, path: RemotePath, name: str) -> None:
    with tempfile.TemporaryDirectory() as directory, suppress(FileNotFoundError):
        copy = Path(directory) / name
        copy.write_bytes(path.read_bytes())
        tracker.log_file(copy, "dataset")


def _log_figures(run: RunDirectory, tracker: Tracker, is_binary: bool) -> None:
    curves = curves_from(EventReader(run.events).poll())
    figures = {"loss": loss_figure(curves.get("train/loss", []), curves.get("validation/loss", []))}
    predictions = sorted(run.predictions.glob("test-rank-*.parquet"))
    if predictions and is_binary:
        rows = pa.concat_tables([pq.read_table(file) for file in predictions])
        target, probability = rows["target"].to_numpy(), rows["probability"].to_numpy()
        figures["roc"] = roc_figure(target, probability)
        figures["precision_recall"] = precision_recall_figure(target, probability)
        figures["calibration"] = calibration_figure(target, probability)
    for name, figure in figures.items():
        tracker.log_figure(figure, f"plots/{name}.png")
