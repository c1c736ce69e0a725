"""The checkpoints that matter, best and last, as MLflow's logged models, with metrics, step and dataset."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparktrain.dataset import Dataset
from sparktrain.runs.connection import bounded_http, quiet_mlflow
from sparktrain.runs.package import FEATURES_FILE, WEIGHTS_FILE
from sparktrain.runs.registry import CHECKPOINT_TAG
from sparktrain.runs.tracking import Tracker
from sparktrain.storage import AnyPath, to_json
from sparktrain.training.checkpoint import Checkpoint, committed, open_checkpoint
from sparktrain.training.checkpoint_state import export_weights

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Metric

ROLE_TAG = "sparktrain.checkpoint_role"  # "best", "last" or "best, last"
PLACE_TAG = "sparktrain.checkpoint_path"

_UPLOAD_TIMEOUT_SECONDS = 120
_BEST, _LAST = "best", "last"


def log_checkpoints(
    tracker: Tracker,
    dataset: Dataset,
    best: AnyPath,
    steps: int,
    events: Iterable[Mapping[str, Any]],
    pipeline: str,
) -> None:
    """Log the best checkpoint and the last one, unless they are there; what lacks metrics gets them.

    The best one has its weights and features with it, for it is what people take; of the last one MLflow is
    told where it lies. A registered model is the best one's logged model.

    Args:
        best: directory of the best checkpoint, beside the others.
        steps: of the whole run, at which its test metrics are logged.
        events: of the run's ranks.
        pipeline: names the models.
    """
    roles: dict[str, list[str]] = {best.name: [_BEST]}
    last = next(iter(committed(best.parent)), best)
    roles.setdefault(last.name, []).append(_LAST)
    with quiet_mlflow(), bounded_http(_UPLOAD_TIMEOUT_SECONDS, max_retries=3):
        known = _logged(tracker)
        logged_at = _times(events)
        for name, of_it in roles.items():
            saved = open_checkpoint(best.parent / name)
            is_best = _BEST in of_it
            model = known.get(name) or _create(tracker, dataset, saved, f"{pipeline}-{of_it[0]}", is_best)
            tags = {ROLE_TAG: ", ".join(of_it), PLACE_TAG: str(saved.path)}
            tracker.client.set_logged_model_tags(model.model_id, tags)
            if not model.metrics:
                metrics = list(_metrics(model, dataset, logged_at, saved.step))
                if is_best:
                    metrics += _test_metrics(tracker, model, dataset, steps)
                tracker.client.log_batch(tracker.run_id, metrics=metrics, synchronous=True)


def _logged(tracker: Tracker) -> dict[str, LoggedModel]:
    """Return the whole logged models that this run has, by checkpoint."""
    found = tracker.client.search_logged_models(
        [tracker.experiment_id], filter_string=f"source_run_id = '{tracker.run_id}'"
    )
    whole = [model for model in found if str(model.status) == "READY" and CHECKPOINT_TAG in model.tags]
    return {model.tags[CHECKPOINT_TAG]: model for model in whole}


def _create(
    tracker: Tracker, dataset: Dataset, saved: Checkpoint, name: str, has_weights: bool
) -> LoggedModel:
    from mlflow.entities import LoggedModelOutput

    client = tracker.client
    params = client.get_run(tracker.run_id).data.params
    model = client.create_logged_model(
        tracker.experiment_id,
        name=name,
        source_run_id=tracker.run_id,
        tags={CHECKPOINT_TAG: saved.path.name},
        params=params,
        model_type="checkpoint",
    )
    try:
        with tempfile.TemporaryDirectory(prefix="sparktrain-checkpoint-") as directory:
            _write(Path(directory), dataset, saved, has_weights)
            client.log_model_artifacts(model.model_id, directory)
    except BaseException:
        client.finalize_logged_model(model.model_id, "FAILED")
        raise
    client.log_outputs(tracker.run_id, [LoggedModelOutput(model.model_id, saved.step)])
    return client.finalize_logged_model(model.model_id, "READY")


def _write(into: Path, dataset: Dataset, saved: Checkpoint, has_weights: bool) -> None:
    about = {"path": str(saved.path), "step": saved.step, "sha256": dict(saved.files)}
    (into / "checkpoint.json").write_text(to_json(about), encoding="utf-8")
    if has_weights:
        export_weights(saved, into / WEIGHTS_FILE)
        (into / FEATURES_FILE).write_text(dataset.features.to_json(), encoding="utf-8")


def _times(events: Iterable[Mapping[str, Any]]) -> dict[tuple[str, int], tuple[float, int]]:
    """Return value and millisecond of each metric's step as the run has them: of its first event."""
    found: dict[tuple[str, int], tuple[float, int]] = {}
    for event in events:
        if event.get("kind") == "metrics":
            for key, value in event["values"].items():
                if key.startswith("train/") and key != "train/loss":
                    continue  # how fast the run was at that step says nothing about the model
                found.setdefault((key, int(event["step"])), (float(value), int(event["time"] * 1000)))
    return found


def _metrics(
    model: LoggedModel,
    dataset: Dataset,
    logged_at: Mapping[tuple[str, int], tuple[float, int]],
    step: int,
) -> Iterable[Metric]:
    """What was logged at the checkpoint's step: the same moment again, so that the run has it once."""
    for (key, at), (value, milliseconds) in logged_at.items():
        if at == step and math.isfinite(value):
            yield _metric(model, dataset, key, value, milliseconds, step)


def _test_metrics(tracker: Tracker, model: LoggedModel, dataset: Dataset, steps: int) -> Iterable[Metric]:
    for key in tracker.client.get_run(tracker.run_id).data.metrics:
        if key.startswith("test/"):
            for known in tracker.client.get_metric_history(tracker.run_id, key):
                if known.step == steps:
                    yield _metric(model, dataset, key, known.value, known.timestamp, steps)


def _metric(
    model: LoggedModel, dataset: Dataset, key: str, value: float, milliseconds: int, step: int
) -> Metric:
    from mlflow.entities import Metric

    measured_on = {"dataset_name": dataset.manifest.name, "dataset_digest": dataset.fingerprint}
    return Metric(key, value, milliseconds, step, model_id=model.model_id, **measured_on)
