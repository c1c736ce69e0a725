"""Batch scoring on Spark: raw rows and a registered model give the same rows with probabilities."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql.types import DataType, DoubleType, StructField, StructType

from sparktrain.errors import ModelUnusable, SchemaMismatch
from sparktrain.features import FittedFeatures, InputType, read_as
from sparktrain.scoring.lookup import fetch_model
from sparktrain.scoring.model import FEATURES_FILE, PROBABILITY, ServedModel
from sparktrain.scoring.packed import PackedModel

_loaded: dict[str, ServedModel] = {}  # of this Python worker, which Spark uses again for other tasks


def score(
    df: DataFrame, model_uri: str | None, *, tracking_uri: str | None = None, batch_rows: int = 8192
) -> DataFrame:
    """Add the column `probability` (double) to raw rows; their own columns keep names, types and order.

    Nothing is computed before an action on the result; the model's files are fetched now, so that an alias
    means the version that it points to now. Executors need sparktrain and torch, but neither the pipeline's
    code nor MLflow.

    Args:
        df: raw rows, with every column that the features were declared on; nulls and unknown values are fine.
        model_uri: models:/name@alias or models:/name/version; None, of a training that registered no model,
            is refused.
        tracking_uri: where the model is registered; None takes MLflow's own setting.
        batch_rows: most rows that go through the model at once.

    Raises:
        ModelNotFound: with the models that there are.
        ModelUnusable: a model that sparktrain did not log, or none.
        SchemaMismatch: columns missing or of another type, or a column `probability` that is there already.
        TrackingUnavailable: MLflow does not answer.
    """
    if model_uri is None:
        raise ModelUnusable(
            "None",
            "the training registered none",
            "train one with one binary target, until it finishes; other kinds can't be scored yet",
        )
    if batch_rows < 1:
        raise ValueError(f"batch_rows is {batch_rows}; it must be 1 or more")
    with tempfile.TemporaryDirectory(prefix="sparktrain-model-") as folder:
        directory = fetch_model(model_uri, tracking_uri, Path(folder))
        packed = PackedModel.of(directory, model_uri)
        features = FittedFeatures.from_json((directory / "artifacts" / FEATURES_FILE).read_bytes())
    check_columns(df.schema, features, model_uri)
    schema = StructType([*df.schema.fields, StructField(PROBABILITY, DoubleType(), nullable=False)])
    return df.mapInArrow(_scorer(packed, batch_rows), schema)


def check_columns(schema: StructType, features: FittedFeatures, model_uri: str) -> None:
    """Refuse, before any job, a DataFrame that can't be scored; lists everything that is wrong.

    Raises:
        SchemaMismatch
    """
    names = schema.fieldNames()
    taken = [name for name in names if name.lower() == PROBABILITY]
    if taken:
        raise SchemaMismatch(
            "the DataFrame to score", unexpected=taken, way_out=f'rename it or drop it: df.drop("{taken[0]}")'
        )
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise SchemaMismatch(
            "the DataFrame to score", unexpected=doubled, way_out="keep one of the columns with the same name"
        )
    missing = [name for name in features.input_types if name not in names]
    retyped = {
        name: (schema[name].dataType.simpleString(), kind)
        for name, kind in features.input_types.items()
        if name not in missing and not _is_readable(schema[name].dataType, kind)
    }
    if missing or retyped:
        raise SchemaMismatch(
            f"the DataFrame to score with {model_uri}",
            missing=missing,
            retyped=retyped,
            way_out=f"give the raw columns that the model was trained on; there are: {', '.join(names)}",
        )


def _is_readable(given: DataType, wanted: InputType) -> bool:
    from pyspark.sql.pandas.types import to_arrow_type

    try:
        read_as(pa.array([], to_arrow_type(given)), wanted)
    except Exception:
        return False
    return True


def _scorer(
    packed: PackedModel, batch_rows: int
) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    # partial of a module's function: the worker imports this module, and only the model travels
    return partial(_score_partition, packed, batch_rows)


def _score_partition(
    packed: PackedModel, batch_rows: int, batches: Iterator[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """Runs in a Python worker, once a partition."""
    model = _model_of(packed)
    field = pa.field(PROBABILITY, pa.float64(), nullable=False)
    for batch in batches:
        probability = pa.array(model.score_arrow(batch, batch_rows))
        yield pa.RecordBatch.from_arrays([*batch.columns, probability], schema=batch.schema.append(field))


def _model_of(packed: PackedModel) -> ServedModel:
    if packed.digest not in _loaded:
        import torch

        torch.set_num_threads(1)  # Spark runs one task a core; more threads would only fight
        _loaded.clear()  # one model at a time: workers live as long as the application
        _loaded[packed.digest] = packed.load(_worker_folder())
    return _loaded[packed.digest]


def _worker_folder() -> Path:
    """Return a folder that belongs to this application, so that Spark removes it with everything else."""
    from pyspark import SparkFiles

    try:
        root = Path(SparkFiles.getRootDirectory())
    except Exception:  # a worker without SparkFiles
        root = Path(tempfile.mkdtemp(prefix="sparktrain-"))
    return root / "sparktrain-models"
