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

from sparktrain.errors import ModelUnusable
from sparktrain.features import NUMBER, NUMBERS, PREDICTION, SCORE_ERROR, FittedFeatures, score_schema
from sparktrain.runs.connection import bounded_http, is_database, quiet_mlflow
from sparktrain.runs.package import (
    FEATURES_FILE,
    IMPORTING,
    TASK_FILE,
    WEIGHTS_FILE,
    copy_own,
    copy_pipeline,
    find_package,
    own_folder,
    write_artifacts,
)
from sparktrain.runs.tracking import Tracker

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.models import Model, ModelSignature
    from mlflow.types import DataType
    from mlflow.types.schema import Array

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
        files = work / "artifacts"
        write_artifacts(files, features, pipeline, arguments)
        shutil.copyfile(weights, files / WEIGHTS_FILE)
        artifacts = {name: str(files / name) for name in (FEATURES_FILE, TASK_FILE, WEIGHTS_FILE)}
        code = [*copy_pipeline(pipeline, folder, work / "code"), copy_own(work / "code")]
        example = _example(sample, features)
        with (
            bounded_http(_UPLOAD_TIMEOUT_SECONDS, max_retries=3),
            _logged_model(tracker, registered_name, tags) as model,
        ):
            _save(model, work / "model", artifacts, code, features, example, requirements)
            scores = _prove(work / "model", example)
            if not features.targets:  # what such a Task predicts is known only now
                _correct_signature(model, work / "model", features, scores)
            assert model.model_id is not None  # _logged_model gave it
            tracker.client.log_model_artifacts(model.model_id, str(work / "model"))
            _link(tracker, model.model_id, step)
        return _register(tracker, model, registered_name, alias, tags)


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

    served = own_folder() / "scoring" / "served.py"
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
    with IMPORTING:
        before = list(sys.path)
        try:
            yield
        finally:
            sys.path[:] = before


def _pinned(names: Sequence[str]) -> list[str]:
    # "+cpu" and the like name a build that other indexes don't have
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in names]


def _signature(features: FittedFeatures, without_target: pa.DataType = NUMBER) -> ModelSignature:
    """Name the raw columns, each of which may hold nulls, and the columns of scores.

    Only text has its type. Whatever else MLflow is told it casts to, all rows or none, before the model sees
    them: a missing boolean becomes False, one bad number in a request fails all of it, and int64 is refused
    for "double" though pandas delivers one or the other as a value is missing or not. What can't be read, the
    model says, row by row. The types that the features read columns as are in the model's metadata.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec
    from mlflow.types.schema import AnyType

    any_type = AnyType()  # type: ignore[no-untyped-call]
    inputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.string if kind == "string" else any_type, name, required=False)
        for name, kind in features.input_types.items()
    ]
    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(_mlflow_type(field.type), field.name, required=False)
        for field in score_schema(features, without_target)
    ]
    return ModelSignature(Schema(inputs), Schema(outputs))


def _mlflow_type(given: pa.DataType) -> DataType | Array:
    from mlflow.types import DataType
    from mlflow.types.schema import Array

    if given == NUMBERS:
        return Array(DataType.double)
    return DataType["long" if given == pa.int64() else "boolean" if given == pa.bool_() else str(given)]


def _correct_signature(model: Model, path: Path, features: FittedFeatures, scores: pd.DataFrame) -> None:
    if scores[PREDICTION].dtype == object:
        model.signature = _signature(features, NUMBERS)
        model.save(str(path / "MLmodel"))


def _example(sample: pa.Table, features: FittedFeatures) -> pd.DataFrame:
    """Return a few raw rows, complete ones first: an example should look like what people send."""
    rows = sample.select(list(features.input_types)).to_pandas()
    complete_first = rows.isna().sum(axis=1).sort_values(kind="stable").index
    example: pd.DataFrame = rows.loc[complete_first[:_EXAMPLE_ROWS]].reset_index(drop=True)
    return example


def _prove(path: Path, example: pd.DataFrame) -> pd.DataFrame:
    """Load what was written as a server would, and score the example: better now than in production."""
    from mlflow import pyfunc

    try:
        with _same_python_path():
            scores: pd.DataFrame = pyfunc.load_model(str(path), suppress_warnings=True).predict(example)
    except ModelUnusable:
        raise
    except Exception as error:
        raise ModelUnusable(
            "to register",
            f"it can't score raw rows: {error}",
            "see that model.py and its imports stand alone",
        ) from error
    reasons = scores[SCORE_ERROR]
    if len(scores) and reasons.notna().all():
        raise ModelUnusable(
            "to register",
            f"it can score none of {len(scores)} rows of its dataset: {reasons.iloc[0]}",
            "see that its predictions are finite numbers",
        )
    return scores


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
