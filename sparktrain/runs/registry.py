"""Logging and registering a model: weights, features and code become a version that an alias points to.

Uses MLflow's client with explicit URIs; `mlflow.pyfunc.log_model` would change process-wide settings.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

import sparktrain
from sparktrain.errors import ModelUnusable
from sparktrain.features import FittedFeatures
from sparktrain.runs.connection import bounded_http, is_database, quiet_mlflow
from sparktrain.runs.package import copy_code, find_package
from sparktrain.runs.tracking import Tracker
from sparktrain.storage import to_json

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.models import Model, ModelSignature

FEATURES_FILE = "features.json"
_MLFLOW_TYPES = {"double", "boolean", "string", "binary"}  # of raw columns, that MLflow is told
TASK_FILE = "task.json"
WEIGHTS_FILE = "model.safetensors"
CHECKPOINT_TAG = "sparktrain.checkpoint"  # of a version: which of the run's checkpoints it is

_REQUIREMENTS = ("mlflow", "numpy", "pandas", "pyarrow", "pydantic", "safetensors", "torch", "torchmetrics")
_UPLOAD_TIMEOUT_SECONDS = 120
_EXAMPLE_ROWS = 5


def log_model(
    tracker: Tracker,
    *,
    weights: Path,
    features: FittedFeatures,
    pipeline: str,
    arguments: Mapping[str, Any],
    sample: pa.Table,
    registered_name: str,
    alias: str,
    step: int = 0,
    tags: Mapping[str, str] | None = None,
    package_folder: Path | None = None,
    requirements: Sequence[str] = (),
) -> str:
    """Log a model with the tracker's run, register it, point the alias at the new version.

    Args:
        weights: a safetensors file with the module's state.
        pipeline: package with `model.py`, such as "pipelines.flight_delays".
        arguments: of its `Task`; plain values.
        sample: a few raw rows, all columns of the features; they become the input example.
        step: of the run, whose weights these are.
        tags: of the version, and of MLflow's record of the model.
        package_folder: where the package lies; None finds it on the Python path.
        requirements: of the pipeline's model.py, beyond torch and what sparktrain needs.

    Returns:
        "models:/<registered_name>/<version>"

    Raises:
        ModelUnusable: when the files, loaded again, can't score the sample; nothing is registered then.
    """
    folder = package_folder or find_package(pipeline)
    with tempfile.TemporaryDirectory(prefix="sparktrain-log-") as name, quiet_mlflow():
        work = Path(name)
        artifacts = _write_artifacts(work / "artifacts", weights, features, pipeline, arguments)
        code = copy_code(pipeline, folder, work / "code")
        example = _example(sample, features)
        with (
            bounded_http(_UPLOAD_TIMEOUT_SECONDS, max_retries=3),
            _logged_model(tracker, registered_name, tags) as model,
        ):
            _save(model, work / "model", artifacts, code, features, example, requirements)
            _prove(work / "model", example)
            assert model.model_id is not None  # _logged_model gave it
            tracker.client.log_model_artifacts(model.model_id, str(work / "model"))
            _link(tracker, model.model_id, step)
        return _register(tracker, model, registered_name, alias, tags)


def _write_artifacts(
    into: Path, weights: Path, features: FittedFeatures, pipeline: str, arguments: Mapping[str, Any]
) -> dict[str, str]:
    into.mkdir()
    (into / FEATURES_FILE).write_text(features.to_json(), encoding="utf-8")
    task = {"pipeline": pipeline, "arguments": dict(arguments)}
    (into / TASK_FILE).write_text(to_json(task), encoding="utf-8")
    shutil.copyfile(weights, into / WEIGHTS_FILE)
    return {name: str(into / name) for name in (FEATURES_FILE, TASK_FILE, WEIGHTS_FILE)}


@contextmanager
def _logged_model(tracker: Tracker, name: str, tags: Mapping[str, str] | None) -> Iterator[Model]:
    """Make MLflow's record of the model; its status says whether the files came through."""
    from mlflow.models import Model

    params = tracker.client.get_run(tracker.run_id).data.params
    record = tracker.client.create_logged_model(
        tracker.experiment_id, name=name, source_run_id=tracker.run_id, tags=dict(tags or {}), params=params
    )
    try:
        yield Model(
            artifact_path=record.artifact_location,
            run_id=tracker.run_id,
            model_uuid=record.model_id,
            model_id=record.model_id,
        )
    except BaseException:
        tracker.client.finalize_logged_model(record.model_id, "FAILED")
        raise
    tracker.client.finalize_logged_model(record.model_id, "READY")


def _save(
    model: Model,
    path: Path,
    artifacts: dict[str, str],
    code: list[Path],
    features: FittedFeatures,
    example: pd.DataFrame,
    requirements: Sequence[str],
) -> None:
    from mlflow import pyfunc

    served = Path(sparktrain.__file__).parent / "scoring" / "served.py"
    with _same_python_path():
        pyfunc.save_model(
            path=str(path),
            mlflow_model=model,
            python_model=str(served),
            artifacts=artifacts,
            code_paths=[str(folder) for folder in code],
            pip_requirements=[*_pinned(_REQUIREMENTS), *requirements],
            signature=_signature(features),
            metadata={"input_types": dict(features.input_types)},
            input_example=example,
        )
    for cache in path.rglob("__pycache__"):
        shutil.rmtree(cache, ignore_errors=True)


@contextmanager
def _same_python_path() -> Iterator[None]:
    """MLflow puts the folders of models that it tries in front, and leaves them there."""
    before = list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = before


def _pinned(names: Sequence[str]) -> list[str]:
    # "+cpu" and the like name a build that other indexes don't have
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in names]


def _signature(features: FittedFeatures) -> ModelSignature:
    """Declare the raw columns; each may hold nulls, which the features have a rule for.

    Integers are "any": MLflow refuses floats for "long", and int64 for "double", but pandas delivers one or
    the other as a missing value is among the rows or not. So are times and arrays, which pandas delivers in
    several ways. What can't be read is refused when the rows are.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec
    from mlflow.types.schema import AnyType

    any_type = AnyType()  # type: ignore[no-untyped-call]
    inputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType[kind] if kind in _MLFLOW_TYPES else any_type, name, required=False)
        for name, kind in features.input_types.items()
    ]
    return ModelSignature(Schema(inputs), Schema([ColSpec(DataType.double, "probability")]))


def _example(sample: pa.Table, features: FittedFeatures) -> pd.DataFrame:
    """Return a few raw rows, complete ones first: an example should look like what people send."""
    rows = sample.select(list(features.input_types)).to_pandas()
    complete_first = rows.isna().sum(axis=1).sort_values(kind="stable").index
    example: pd.DataFrame = rows.loc[complete_first[:_EXAMPLE_ROWS]].reset_index(drop=True)
    return example


def _prove(path: Path, example: pd.DataFrame) -> None:
    """Load what was written as a server would, and score the example: better now than in production."""
    from mlflow import pyfunc

    try:
        with _same_python_path():
            scores = pyfunc.load_model(str(path), suppress_warnings=True).predict(example)
    except ModelUnusable:
        raise
    except Exception as error:
        raise ModelUnusable(
            "to register",
            f"it can't score raw rows: {error}",
            "see that model.py and its imports stand alone",
        ) from error
    if list(scores.columns) != ["probability"] or len(scores) != len(example):
        raise ModelUnusable(
            "to register",
            f"predict gave shape {scores.shape} for {len(example)} rows",
            "return one probability a row, shape [rows]",
        )


def _link(tracker: Tracker, model_id: str, step: int) -> None:
    """Show the model among the run's outputs."""
    from mlflow.entities import LoggedModelOutput

    tracker.client.log_outputs(tracker.run_id, [LoggedModelOutput(model_id, step)])


def registered_already(tracker: Tracker, name: str, alias: str, checkpoint: str) -> str | None:
    """Point the alias at the version that this run registered of a checkpoint, if there is one.

    A run that was cut off between the two would register the same weights twice.

    Returns:
        Its URI, or None.
    """
    with quiet_mlflow(), bounded_http(_UPLOAD_TIMEOUT_SECONDS, max_retries=3):
        found = tracker.client.search_model_versions(f"name='{name}' and run_id='{tracker.run_id}'")
        ours = [v for v in found if v.tags.get(CHECKPOINT_TAG) == checkpoint]
        if not ours:
            return None
        version = max(int(v.version) for v in ours)
        tracker.client.set_registered_model_alias(name, alias, str(version))
    return f"models:/{name}/{version}"


def _register(tracker: Tracker, model: Model, name: str, alias: str, tags: Mapping[str, str] | None) -> str:
    from mlflow.exceptions import MlflowException

    client = tracker.client
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # A database resolves models:/ with the process-wide URI, which may be another; a server has only its own.
    source = model.artifact_path if is_database(tracker.uri) else f"models:/{model.model_id}"
    record = client.create_model_version(
        name, source, tracker.run_id, tags=dict(tags or {}), model_id=model.model_id
    )
    version = record.version
    client.set_registered_model_alias(name, alias, version)
    return f"models:/{name}/{version}"
