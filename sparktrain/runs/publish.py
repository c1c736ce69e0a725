"""After the gang: what a finished run shows to people, and the model that it registers."""

from __future__ import annotations

import dataclasses
import logging
import math
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from sparktrain.config import Config
from sparktrain.dataset import Dataset
from sparktrain.dataset.card import CARD_FILE, CARD_PAGE
from sparktrain.errors import ModelUnusable, TrackingUnavailable
from sparktrain.features import FittedTarget
from sparktrain.runs.connection import reason_of
from sparktrain.runs.directory import RunDirectory
from sparktrain.runs.evaluation_plots import evaluation_figures
from sparktrain.runs.evaluation_table import log_evaluation_table
from sparktrain.runs.events import Event, EventReader
from sparktrain.runs.follow import deliver_all
from sparktrain.runs.late import LateTracker, Untracked
from sparktrain.runs.logged_checkpoints import log_checkpoints
from sparktrain.runs.package import WEIGHTS_FILE
from sparktrain.runs.plots import curves_from, loss_figure
from sparktrain.runs.reference import logistic_regression_reference
from sparktrain.runs.registry import CHECKPOINT_TAG, log_model, registered_already
from sparktrain.runs.report import Report, write_report
from sparktrain.runs.tracking import Tracker
from sparktrain.storage import AnyPath, RemotePath, commit_json, read_json
from sparktrain.training.checkpoint import open_checkpoint
from sparktrain.training.checkpoint_state import export_weights
from sparktrain.training.task import TrainTask

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What a training that came to its end has to publish; `outcome.json` in the run directory.

    Attributes:
        steps: optimizer updates.
        metrics: all of them, the reference's among them.
        best: name of the best checkpoint.
        checkpoints: `storage.checkpoints`; None: they lie in the run directory.
        pipeline: package of the Task.
        arguments: of the Task; plain values.
        registered_model: name in the registry; None: it is not to be there.
        alias: that will point to the version.
    """

    steps: int
    metrics: Mapping[str, float]
    best: str
    checkpoints: str | None
    pipeline: str
    arguments: Mapping[str, Any]
    registered_model: str | None
    alias: str

    @classmethod
    def of(cls, trained: Mapping[str, Any], dataset: Dataset, task: TrainTask, config: Config) -> Self:
        """Take what `train_rank` returned, fit the reference to compare with; MLflow is not needed."""
        metrics: dict[str, float] = dict(trained["metrics"])
        if dataset.num_rows("test"):
            found = _reference(dataset, task, config.train.reference)
            metrics |= {f"reference/{name}": float(value) for name, value in found.items()}
        arguments: dict[str, Any] = dataclasses.asdict(task) if dataclasses.is_dataclass(task) else {}
        pipeline = type(task).__module__.rpartition(".")[0]
        name = config.model_name if config.tracking.register_model else None
        names = name, config.tracking.alias
        where = config.storage.checkpoints
        return cls(trained["steps"], metrics, trained["best"], where, pipeline, arguments, *names)

    @classmethod
    def load(cls, run: RunDirectory) -> Self:
        kept = read_json(run.outcome_file)
        return cls(**{**kept, "metrics": {name: float(value) for name, value in kept["metrics"].items()}})

    def commit(self, run: RunDirectory) -> None:
        """Keep it for a replay; a non-finite metric is kept as text, because JSON has no number for it."""
        metrics = {name: v if math.isfinite(v) else str(v) for name, v in self.metrics.items()}
        commit_json(run.outcome_file, {**dataclasses.asdict(self), "metrics": metrics})

    def checkpoint(self, run: RunDirectory) -> AnyPath:
        """The best one's directory."""
        return run.checkpoints_in(self.checkpoints) / self.best


def _reference(dataset: Dataset, task: TrainTask, wanted: str) -> Mapping[str, float]:
    """Metrics of what to compare with, named as the model's own."""
    if wanted == "task":
        try:
            return task.reference(dataset)
        except Exception:  # the training is done, and worth more than what it is compared with
            logger.exception("no reference: the Task's own failed")
            return {}
    if wanted == "none" or not dataset.features.has_binary_target:
        return {}
    logger.info("fitting the logistic regression to compare with")
    found = logistic_regression_reference(dataset)
    return {"loss" if name == "log_loss" else name: value for name, value in found.items()}


@dataclass(frozen=True)
class Published:
    """What became of it.

    Attributes:
        model_uri: the registered version, or None.
        problem: why MLflow does not have all of it; None if it has.
        reached: whether MLflow answered.
    """

    model_uri: str | None = None
    problem: str | None = None
    reached: bool = True


def publish_or_tell(
    run: RunDirectory, tracker: Tracker | LateTracker | Untracked, dataset: Dataset, outcome: Outcome
) -> Published:
    """Publish; where MLflow is away or refuses, say so and keep everything for `replay`."""
    if isinstance(tracker, Untracked):
        return Published(reached=False)
    from mlflow.exceptions import MlflowException

    try:
        there = (
            tracker.reached()
        )  # asked first: each of the calls that follow would wait for its own time-out
    except TrackingUnavailable as error:
        return Published(problem=error.problem, reached=False)
    try:
        if run.spill_file.exists():
            deliver_all(run, there)
        return Published(publish(run, there, dataset, outcome))
    except ModelUnusable as error:  # hours of training are not undone by a predict that gives no scores
        return Published(problem=str(error))
    except (TrackingUnavailable, MlflowException, OSError) as error:
        return Published(problem=f"MLflow did not take all of its outcome: {reason_of(error)}")


def publish(run: RunDirectory, tracker: Tracker, dataset: Dataset, outcome: Outcome) -> str | None:
    """Log plots and final metrics, register the best checkpoint's model; what is there already stays.

    Returns:
        The URI of the registered version; None where none was asked for.

    Raises:
        ModelUnusable: the model can't score the dataset's own examples; nothing is registered then.
    """
    final = {name: v for name, v in outcome.metrics.items() if not name.startswith("validation/")}
    if final:
        tracker.log_metrics(outcome.steps, final)
    events = EventReader(run.events).poll()
    _log_figures(run, tracker, dataset.features.targets, events)
    log_evaluation_table(tracker, outcome.metrics)
    log_card(tracker, dataset)
    model_uri = register_best(run, tracker, dataset, outcome)
    name = outcome.registered_model or outcome.pipeline.rpartition(".")[2]
    log_checkpoints(tracker, dataset, outcome.checkpoint(run), outcome.steps, events, name)
    return model_uri


def register_best(run: RunDirectory, tracker: Tracker, dataset: Dataset, outcome: Outcome) -> str | None:
    """Register the best checkpoint's model, unless it is; None where the outcome names no model."""
    if outcome.registered_model is None:
        return None
    name, alias = outcome.registered_model, outcome.alias
    logger.info("registering the model as %s@%s", name, alias)
    if known := registered_already(tracker, name, alias, outcome.best):
        return known
    with tempfile.TemporaryDirectory(prefix="sparktrain-weights-") as directory:
        weights = Path(directory) / WEIGHTS_FILE
        best = open_checkpoint(outcome.checkpoint(run))
        export_weights(best, weights)
        return log_model(
            tracker,
            weights=weights,
            features=dataset.features,
            pipeline=outcome.pipeline,
            arguments=outcome.arguments,
            sample=dataset.examples(),
            step=best.step,
            tags={CHECKPOINT_TAG: outcome.best},
            registered_name=name,
            alias=alias,
        )


def write_and_log_report(run: RunDirectory, tracker: Tracker | LateTracker | Untracked | None) -> None:
    """Write the run's page, and store it with the run, and what the profiler left; a problem is only told.

    Args:
        tracker: None: MLflow did not answer just now.
    """
    try:
        report = write_report(run)
    except Exception as error:  # the training's own outcome must not be lost to this
        logger.warning("can't write the report of %s: %s: %s", run.path, type(error).__name__, error)
        return
    if tracker is None:
        return
    try:
        log_report(tracker.reached(), run, report)
    except Exception as error:
        text = "MLflow did not take the report: %s. It is %s; deliver it later: %s"
        logger.warning(text, reason_of(error), report.file, run.replay_command)


def log_report(tracker: Tracker, run: RunDirectory, report: Report) -> None:
    """Store the report with the run, and the profiler's traces; raises what MLflow raises."""
    tracker.log_file(report.file)
    note = f"{report.summary} See `{report.file.name}` among the artifacts."
    tracker.set_tags({"mlflow.note.content": note})  # what its page begins with
    for trace in sorted(run.profile.glob("*.json.gz")):
        tracker.log_file(trace, "profile")


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


def _log_figures(
    run: RunDirectory, tracker: Tracker, targets: Sequence[FittedTarget], events: Sequence[Event]
) -> None:
    curves = curves_from(events)
    figures = {"loss": loss_figure(curves.get("train/loss", []), curves.get("validation/loss", []))}
    figures |= evaluation_figures(sorted(run.predictions.glob("test-rank-*.parquet")), targets)
    for name, figure in figures.items():
        tracker.log_figure(figure, f"plots/{name}.png")
