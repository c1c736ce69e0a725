"""Tracker: one training's MLflow run: params, tags, input, metrics once per step, artifacts, its end.

Explicit URIs only: neither MLflow's active run nor its process-wide tracking URI is touched.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import yaml

from sparktrain.config import Config
from sparktrain.errors import TrackingUnavailable
from sparktrain.runs.connection import (
    artifact_location,
    bounded_http,
    check_tracking,
    connect,
    quiet_mlflow,
    reason_of,
    resolve_tracking_uri,
    without_secrets,
)
from sparktrain.runs.describe import attempt_tags, changed_params, facts_of, masked, params_of, tags_of
from sparktrain.runs.directory import RunDirectory
from sparktrain.runs.position import Position
from sparktrain.storage import commit_json, read_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from torch import nn

    from sparktrain.dataset import Dataset

_log = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]

_PARENT = "mlflow.parentRunId"
_METRICS_PER_CALL = 1000  # MLflow's limit
_PARAMS_PER_CALL = 100
_REQUEST_TIMEOUT_SECONDS = 20
_SHORT_TIMEOUT_SECONDS = 10  # of requests that are repeated later, or that a user waits for at the end


class Tracker:
    """Mirrors one run directory into one MLflow run; made by `start`.

    Attributes:
        uri: of the tracking server; may hold a password, so never show it as it is.
        run_id, experiment_id: MLflow's.
        client: for what has no method here.
        num_logged: values of metrics that were new to MLflow.
    """

    def __init__(
        self, client: MlflowClient, uri: str, run_id: str, experiment_id: str, run_dir: RunDirectory
    ) -> None:
        self.client, self.uri, self.run_id, self.experiment_id = client, uri, run_id, experiment_id
        self._run_dir = run_dir
        self.num_logged = 0
        self._position: Position | None = None
        self._logging = threading.Lock()

    @classmethod
    def start(
        cls,
        run_dir: RunDirectory,
        config: Config,
        dataset: Dataset | None,
        model: nn.Module | None = None,
        *,
        uri: str | None = None,
    ) -> Self:
        """Start an MLflow run, or continue the one that mlflow.json in `run_dir` names.

        Args:
            dataset: None where it is gone meanwhile; then the run says nothing new about it.
            uri: None takes the configuration's.

        Raises:
            TrackingUnavailable: within ten seconds when the server does not answer.
        """
        uri = uri or resolve_tracking_uri(config.tracking, config.storage.root)
        check_tracking(uri)
        try:
            with _calls():
                client = connect(uri)
                tracker = cls._continue(client, uri, run_dir) or cls._create(client, uri, run_dir, config)
                tracker._describe(run_dir, config, dataset, model)
        except TrackingUnavailable:
            raise
        except Exception as error:
            raise TrackingUnavailable(without_secrets(uri), reason_of(error)) from error
        return tracker

    @classmethod
    def _create(cls, client: MlflowClient, uri: str, run_dir: RunDirectory, config: Config) -> Self:
        name, experiment_id = cls._experiment_of(client, uri, run_dir, config)
        run = client.create_run(experiment_id, run_name=run_dir.name)
        where = {"run_id": run.info.run_id, "experiment": name, "tracking_uri": without_secrets(uri)}
        commit_json(run_dir.mlflow_file, where)
        return cls(client, uri, run.info.run_id, experiment_id, run_dir)

    @staticmethod
    def _experiment_of(
        client: MlflowClient, uri: str, run_dir: RunDirectory, config: Config
    ) -> tuple[str, str]:
        """Return name and id of the experiment: the configured one, else the parent's or the pipeline's.

        MLflow's page shows a run under its parent only within one experiment.
        """
        parent = config.tracking.parent_run_id
        name = config.tracking.experiment
        if parent is not None:
            its = client.get_experiment(_existing_run(client, uri, parent).info.experiment_id)
            name = name or its.name
        name = name or config.pipeline
        return name, _experiment(client, uri, name, run_dir.root)

    @classmethod
    def _continue(cls, client: MlflowClient, uri: str, run_dir: RunDirectory) -> Self | None:
        from mlflow.exceptions import MlflowException

        if not run_dir.mlflow_file.is_file():
            return None
        run_id = read_json(run_dir.mlflow_file)["run_id"]
        if run_id is None:  # the server was away when the training began
            return None
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            run = None
        if run is None or run.info.lifecycle_stage != "active":
            _log.warning("MLflow no longer has the run %s of %s: starting a new one", run_id, run_dir.path)
            return None
        client.update_run(run_id, status="RUNNING")
        return cls(client, uri, run_id, run.info.experiment_id, run_dir)

    def _describe(
        self, run_dir: RunDirectory, config: Config, dataset: Dataset | None, model: nn.Module | None
    ) -> None:
        from mlflow.entities import Param, RunTag

        tree = masked(config.model_dump(mode="json"))
        params = params_of(tree)
        logged = self.client.get_run(self.run_id).data.params
        new = [Param(key, value) for key, value in params.items() if key not in logged]
        for chunk in _chunks(new, _PARAMS_PER_CALL):
            self.client.log_batch(self.run_id, params=chunk, synchronous=True)
        kept, text = facts_of(run_dir)  # of the driver that trained; this one may only deliver
        tags = (kept or tags_of(run_dir, dataset, model)) | changed_params(logged, params)
        tags[_PARENT] = config.tracking.parent_run_id or ""
        tags = {key: value for key, value in tags.items() if value}
        for chunk in _chunks([RunTag(key, value) for key, value in tags.items()], _PARAMS_PER_CALL):
            self.client.log_batch(self.run_id, tags=chunk, synchronous=True)
        self.client.log_text(self.run_id, yaml.safe_dump(tree, sort_keys=False), "config.yaml")
        if model is not None or text is not None:
            self.client.log_text(self.run_id, f"{model if text is None else text}\n", "model.txt")
        if dataset is not None:
            self._log_input(dataset)

    def reached(self) -> Tracker:
        """Return itself, if the server answers.

        Raises:
            TrackingUnavailable: within ten seconds.
        """
        check_tracking(self.uri)
        return self

    def _log_input(self, dataset: Dataset) -> None:
        from mlflow.entities import Dataset as InputDataset
        from mlflow.entities import DatasetInput, InputTag

        rows = {f"{split}_rows": dataset.num_rows(split) for split in dataset.manifest.splits}
        colspecs = [
            {"name": name, "type": kind, "required": False}
            for name, kind in dataset.features.input_types.items()
        ]
        entity = InputDataset(
            name=dataset.manifest.name,
            digest=dataset.fingerprint,  # MLflow's own would hash the path, not the content
            source_type="local",
            source=json.dumps({"uri": str(dataset.path)}),
            schema=json.dumps({"mlflow_colspec": colspecs}),
            profile=json.dumps(rows),
        )
        known = self.client.get_run(self.run_id).inputs
        if known and any(item.dataset.digest == entity.digest for item in known.dataset_inputs):
            return
        context = InputTag("mlflow.data.context", "training")
        self.client.log_inputs(self.run_id, [DatasetInput(entity, [context])])

    def log_metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log metrics of a step now, as `log_events` does; raises what MLflow raises."""
        self.log_events([{"kind": "metrics", "step": step, "values": values, "time": time.time()}])

    def log_events(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Log the metrics of events in order of their steps, each (key, step) at most once.

        What MLflow already has is left out: a resumed rank repeats the steps since its checkpoint, and a
        request whose answer was lost may have arrived. A non-finite value is counted under "<key>_nonfinite"
        instead.
        """
        with self._logging, _calls(_SHORT_TIMEOUT_SECONDS, max_retries=0):
            if self._position is None:
                self._position = Position.of(self.client, self.run_id)
            position, self._position = self._position, None  # unknown again if a call fails half-way
            metrics = [metric for event in events for metric in position.metrics_of(event)]
            for chunk in _chunks(metrics, _METRICS_PER_CALL):
                self.client.log_batch(self.run_id, metrics=chunk, synchronous=True)
            self._position = position
            self.num_logged += len(metrics)

    def log_figure(self, figure: Figure, name: str) -> None:
        """Store a figure, such as "plots/roc.png", with the run."""
        with _calls():
            self.client.log_figure(self.run_id, figure, name)

    def log_file(self, path: Path, folder: str | None = None) -> None:
        with _calls():
            self.client.log_artifact(self.run_id, str(path), folder)

    def log_dict(self, value: Mapping[str, Any], name: str) -> None:
        with _calls():
            self.client.log_dict(self.run_id, dict(value), name)

    def log_table(self, columns: Mapping[str, Sequence[object]], name: str) -> None:
        """Store a table, which MLflow's page shows as one; what is there already stays as it is."""
        with _calls():
            if not any(file.path == name for file in self.client.list_artifacts(self.run_id)):
                self.client.log_table(self.run_id, dict(columns), name)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        with _calls():
            self.client.log_batch(self.run_id, tags=[RunTag(k, v) for k, v in tags.items()], synchronous=True)

    def finish(self, status: Status) -> bool:
        """Mark how the run ended, and after how many attempts.

        Never raises: the training's own outcome must not be lost to this.

        Returns:
            Whether MLflow knows it now; a warning tells how to make up for it.
        """
        try:
            with _calls(_SHORT_TIMEOUT_SECONDS, max_retries=0):
                self.set_tags(attempt_tags(self._run_dir))
                self.client.set_terminated(self.run_id, status)
        except Exception as error:
            warn_of_end(self._run_dir, status, error)
            return False
        return True


def warn_of_end(run_dir: RunDirectory, status: Status, error: Exception) -> None:
    text = "could not mark the MLflow run of %s as %s: %s. Do it later: %s"
    _log.warning(text, run_dir.name, status, reason_of(error), run_dir.replay_command)


@contextmanager
def _calls(timeout_seconds: int = _REQUEST_TIMEOUT_SECONDS, max_retries: int = 1) -> Iterator[None]:
    """Around calls of MLflow: without chatter, and without minutes of retries."""
    with ExitStack() as stack:
        stack.enter_context(quiet_mlflow())
        stack.enter_context(bounded_http(timeout_seconds, max_retries))
        yield


def _existing_run(client: MlflowClient, uri: str, run_id: str) -> Run:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
    problem = f"it has no run {run_id!r}, which tracking.parent_run_id names"
    raise TrackingUnavailable(without_secrets(uri), problem)


def _experiment(client: MlflowClient, uri: str, name: str, root: Path) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return client.create_experiment(name, artifact_location=artifact_location(uri, root))
        except MlflowException as error:  # another run made it meanwhile
            experiment = client.get_experiment_by_name(name)
            if error.error_code != "RESOURCE_ALREADY_EXISTS" or experiment is None:
                raise
    if experiment.lifecycle_stage != "active":
        raise TrackingUnavailable(
            without_secrets(uri),
            f"its experiment {name!r} was deleted; restore it (`mlflow experiments restore`) "
            "or set tracking.experiment",
        )
    return str(experiment.experiment_id)


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
