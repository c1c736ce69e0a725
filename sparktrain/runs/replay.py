"""Replay: deliver to MLflow what it lacks of a run that has ended, its model too, by its directory alone."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from sparktrain.config import Config
from sparktrain.dataset import open_dataset
from sparktrain.errors import ReplayRefused, SparktrainError, TrackingUnavailable
from sparktrain.runs.connection import reason_of, resolve_tracking_uri, without_secrets
from sparktrain.runs.directory import FINISHED, RunDirectory
from sparktrain.runs.follow import deliver_all
from sparktrain.runs.publish import Outcome, log_report, publish, register_best
from sparktrain.runs.report import write_report
from sparktrain.runs.tracking import Status, Tracker
from sparktrain.storage import read_json

if TYPE_CHECKING:
    from sparktrain.dataset import Dataset

logger = logging.getLogger(__name__)

_STATUSES: Mapping[str, Status] = {FINISHED: "FINISHED", "failed": "FAILED", "killed": "KILLED"}


@dataclass(frozen=True)
class Replayed:
    """What a replay did.

    Attributes:
        tracking_uri: where, without passwords.
        metrics: how many values MLflow did not have.
        run_status: that MLflow has now; "RUNNING" if the run did not come to an end.
        model_uri: the registered version, if there is one.
    """

    run_id: str
    run_dir: str
    tracking_uri: str
    metrics: int
    run_status: str
    model_uri: str | None

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def replay(run_dir: Path, uri: str | None = None) -> Replayed:
    """Log what MLflow lacks of a run's metrics, publish its outcome if that is due, mark its end.

    Nothing is logged twice, so that it can be repeated. A run that MLflow does not have is created.

    Args:
        run_dir: of a run that is not under way.
        uri: of the tracking server; None takes the one that the run was tracked at.

    Raises:
        ReplayRefused: no run directory, or a run that is under way.
        TrackingUnavailable: MLflow is still away.
    """
    run = RunDirectory(run_dir.resolve())
    config = config_of(run)
    with run.only_reporter() as alone:
        if not alone:
            raise ReplayRefused(str(run.path), "the run is under way", "wait until it has ended")
        return _replay(run, config, uri or _uri_of(run, config))


def register(
    run_dir: Path | str, name: str | None = None, *, alias: str | None = None, tracking_uri: str | None = None
) -> str:
    """Register the model of a finished run that was trained with `tracking.register_model: false`.

    What a sweep does with its best trial. The dataset must still be there: the model takes features and
    examples from it.

    Args:
        run_dir: of the run, as in `TrainResult.run_dir`.
        name: in the registry; None: as the run's configuration says.
        alias: that will point to the version; None: as the run's configuration says.
        tracking_uri: None takes the one that the run was tracked at.

    Returns:
        "models:/<name>/<version>"; the one that is there, if the run has registered its model already.

    Raises:
        ReplayRefused: no run directory, or a run that is under way, or that did not finish.
        TrackingUnavailable: MLflow is away.
        ModelUnusable: the model can't score the dataset's own examples.
    """
    run = RunDirectory(Path(run_dir).resolve())
    config = config_of(run)
    with run.only_reporter() as alone:
        if not alone:
            problem, way_out = "the run is under way", "wait until it has ended"
            raise ReplayRefused(str(run.path), problem, way_out, what="registered")
        if not run.is_finished:
            problem, way_out = "the run did not finish", "resume=true continues it"
            raise ReplayRefused(str(run.path), problem, way_out, what="registered")
        result = _result_of(run)
        dataset = _dataset_of(result, True)
        assert dataset is not None  # it was asked for
        outcome = dataclasses.replace(
            Outcome.load(run),
            registered_model=name or config.model_name,
            alias=alias or config.tracking.alias,
        )
        tracker = Tracker.start(run, config, dataset, uri=tracking_uri or _uri_of(run, config))
        try:
            model_uri = register_best(run, tracker, dataset, outcome)
        finally:
            tracker.finish("FINISHED")  # as it was before
        assert model_uri is not None  # it has a name
        outcome.commit(run)
        run.write_result({**result, "model_uri": model_uri})
        return model_uri


def _replay(run: RunDirectory, config: Config, uri: str) -> Replayed:
    result = _result_of(run)
    status = _STATUSES.get(result.get("status", ""))
    is_due = bool(status == "FINISHED" and result.get("unpublished"))
    dataset = _dataset_of(result, is_due)
    tracker = Tracker.start(run, config, dataset, uri=uri)
    model_uri = result.get("model_uri")
    try:
        deliver_all(run, tracker)
        if is_due and dataset is not None:
            model_uri = publish(run, tracker, dataset, Outcome.load(run))
    except SparktrainError:
        raise
    except Exception as error:
        raise TrackingUnavailable(without_secrets(uri), reason_of(error)) from error
    if status is None:
        logger.warning("%s did not come to an end: resume=true continues it", run.path)
    elif not tracker.finish(status):
        raise TrackingUnavailable(without_secrets(uri), f"it did not take the status {status}")
    if result:
        new = {"run_id": tracker.run_id, "model_uri": model_uri, "unpublished": None}
        run.write_result({**result, **new})
    try:
        log_report(tracker, run, write_report(run))
    except Exception as error:
        raise TrackingUnavailable(without_secrets(uri), reason_of(error)) from error
    place = without_secrets(uri)
    return Replayed(tracker.run_id, str(run.path), place, tracker.num_logged, status or "RUNNING", model_uri)


def config_of(run: RunDirectory) -> Config:
    way_out = "give the run directory that training named, <storage.root>/runs/<name>"
    try:
        spec = read_json(run.spec_file)
    except (OSError, ValueError) as error:
        raise ReplayRefused(
            str(run.path), "it is no run directory, or has no whole spec.json", way_out
        ) from error
    try:
        settings = {key: value for key, value in spec.items() if key != "dataset"}
        if "***@" in str(settings.get("tracking", {}).get("uri")):  # it is of no use without its password
            settings["tracking"] = {**settings["tracking"], "uri": None}
        return Config.model_validate(settings)
    except ValidationError as error:
        problem = f"its spec.json is of another version of sparktrain ({error.error_count()} problems)"
        raise ReplayRefused(str(run.path), problem, "replay with the version that trained") from error


def _uri_of(run: RunDirectory, config: Config) -> str:
    """Return where the run was tracked, which the environment may not tell any more."""
    configured = resolve_tracking_uri(config.tracking, run.root)
    if not run.mlflow_file.is_file():
        return configured
    tracked = str(read_json(run.mlflow_file).get("tracking_uri", without_secrets(configured)))
    if tracked == without_secrets(configured):
        return configured
    if "***@" in tracked:
        way_out = "set MLFLOW_TRACKING_URI, or give --tracking-uri"
        raise ReplayRefused(
            str(run.path), f"it was tracked at {tracked}, whose password is not kept", way_out
        )
    return tracked


def _result_of(run: RunDirectory) -> dict[str, Any]:
    try:
        return dict(read_json(run.result_file))
    except FileNotFoundError:
        return {}


def _dataset_of(result: Mapping[str, Any], is_needed: bool) -> Dataset | None:
    """Open the run's dataset; one that is gone is missed only where a model is to be registered."""
    if not result:
        return None
    wanted = result["dataset"]
    try:
        dataset = open_dataset(wanted["path"])
        if dataset.fingerprint == wanted["fingerprint"]:
            return dataset
        problem = f"it is another dataset now: {dataset.fingerprint}, not {wanted['fingerprint']}"
    except SparktrainError as error:
        problem = str(error)
    if is_needed:
        way_out = "bring the dataset back: registering the model takes its features and its examples"
        raise ReplayRefused(result["run_dir"], f"the dataset {wanted['path']}: {problem}", way_out)
    return None
