"""Batch scoring on Spark: raw rows and a registered model give the same rows with predictions."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql.pandas.types import from_arrow_schema, to_arrow_type
from pyspark.sql.types import DataType, StructType, TimestampType

from sparktrain.errors import ModelUnusable, SchemaMismatch
from sparktrain.features import FittedFeatures, InputType, is_readable, marked_rows, score_schema
from sparktrain.scoring.lookup import fetch_model
from sparktrain.scoring.model import BATCH_ROWS, ServedModel
from sparktrain.scoring.packed import PackedModel
from sparktrain.scoring.spark_task import device_and_threads

_JOINED_BYTES = 32 << 20

_KEPT_MODELS = 3
_KEPT_BYTES = 256 << 20

_loaded: dict[str, ServedModel] = {}  # of this Python worker, which Spark uses again; the last used is last


def score(
    df: DataFrame, model_uri: str | None, *, tracking_uri: str | None = None, batch_rows: int = BATCH_ROWS
) -> DataFrame:
    """Add the columns of `score_schema` to raw rows, such as `prediction` and `probability`.

    The rows' own columns keep names, types and order. A row that can't be scored, of a value that a feature
    refuses say, has nulls and the reason in `score_error`; no job fails for it. So has a row that `read_csv`,
    `read_json` or `cast_columns` marked, as preparation quarantines it.

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
        SchemaMismatch: columns missing or of another type, or one that has the name of a column to be added.
        TrackingUnavailable: MLflow does not answer.
    """
    if model_uri is None:
        raise ModelUnusable(
            "None",
            "the training registered none",
            "see what `unpublished` of the training's result says, or train one until it finishes",
        )
    if batch_rows < 1:
        raise ValueError(f"batch_rows is {batch_rows}; it must be 1 or more")
    with tempfile.TemporaryDirectory(prefix="sparktrain-model-") as folder:
        directory = fetch_model(model_uri, tracking_uri, Path(folder))
        packed = PackedModel.of(directory, model_uri)
        features = packed.features
        # without a target, only the model knows what it predicts
        added = score_schema(features) if features.targets else packed.load(Path(folder)).columns.schema
    check_columns(df.schema, features, added.names, model_uri)
    schema = StructType([*df.schema.fields, *from_arrow_schema(added).fields])
    # partial of a module's function: the worker imports this module, and only the model travels
    score_rows = partial(_score_partition, packed, df.columns, batch_rows)
    return by_number(df).mapInArrow(score_rows, schema)


def by_number(df: DataFrame) -> DataFrame:
    """Name the columns by their places: mapInArrow asks for them by name, and takes a dot for a field."""
    return df.toDF(*(f"_{place}" for place in range(len(df.columns))))


def check_columns(schema: StructType, features: FittedFeatures, added: Sequence[str], model_uri: str) -> None:
    """Refuse, before any job, a DataFrame that can't be scored; lists everything that is wrong.

    Args:
        added: names of the columns that scoring adds.

    Raises:
        SchemaMismatch
    """
    names = schema.fieldNames()
    taken = [name for name in names if name.lower() in {new.lower() for new in added}]
    if taken:
        columns = ", ".join(f'"{name}"' for name in taken)
        raise SchemaMismatch(
            "the DataFrame to score",
            unexpected=taken,
            way_out=f"scoring adds columns of these names: rename yours or drop them: df.drop({columns})",
        )
    doubled = sorted({name for name in features.input_types if names.count(name) > 1})
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
            way_out="give the raw columns as the training read them, cast and renamed as its pipeline does; "
            f"there are: {', '.join(names)}",
        )


def _is_readable(given: DataType, wanted: InputType) -> bool:
    if isinstance(given, TimestampType):  # whose zone, the session's, Spark 4 wants to be told, and 3.5 not
        return is_readable(pa.timestamp("us", tz="UTC"), wanted)
    try:
        read = to_arrow_type(given)
    except Exception:  # Arrow has no such type
        return False
    return is_readable(read, wanted)


def _score_partition(
    packed: PackedModel, names: list[str], batch_rows: int, batches: Iterator[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """Runs in a Python worker, once a partition: columns come by number, and Spark takes them by place."""
    model = loaded_model(packed)
    for joined in _joined(batches, 2 * batch_rows):
        given = pa.Table.from_batches(joined).rename_columns(names)
        rows = given.select(list(model.features.input_types))
        try:
            scores = model.score_arrow(rows, batch_rows, marked_rows(model.features, given))
        except RuntimeError:  # perhaps the GPU's, and then no model here works again
            _loaded.clear()
            raise
        schema = pa.schema([*joined[0].schema, *scores.schema])
        start = 0
        for batch in joined:  # as they came: nothing of the rows' own columns is copied
            columns = [*batch.columns, *scores.slice(start, batch.num_rows).columns]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)
            start += batch.num_rows


def _joined(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[list[pa.RecordBatch]]:
    """Put batches together until there are so many rows or bytes: Spark's can be of a few rows each."""
    joined: list[pa.RecordBatch] = []
    num_rows = num_bytes = 0
    for batch in batches:
        joined.append(batch)
        num_rows += batch.num_rows
        num_bytes += batch.nbytes
        if num_rows >= rows or num_bytes >= _JOINED_BYTES:
            yield joined
            joined, num_rows, num_bytes = [], 0, 0
    if joined:
        yield joined


def loaded_model(packed: PackedModel) -> ServedModel:
    """Return the model, loaded once in a Python worker, however many of its Spark tasks take it.

    A worker keeps a few, because tasks of one plan can be of several models. It lives as long as the
    application, so all but the last used may take only so many bytes.
    """
    model = _loaded.pop(packed.digest, None)
    _loaded[packed.digest] = model or packed.load(_worker_folder(), device_and_threads())
    newest_first = list(reversed(_loaded))
    kept = 0
    for number, digest in enumerate(newest_first[1:], start=1):
        kept += _num_bytes(_loaded[digest])
        if number >= _KEPT_MODELS or kept > _KEPT_BYTES:
            del _loaded[digest]
    return _loaded[packed.digest]


def _num_bytes(model: ServedModel) -> int:
    return sum(tensor.nbytes for tensor in model.module.state_dict().values())


def _worker_folder() -> Path:
    """Return a folder that belongs to this application, so that Spark removes it with everything else."""
    from pyspark import SparkFiles

    try:
        root = Path(SparkFiles.getRootDirectory())
    except Exception:  # a worker without SparkFiles
        root = Path(tempfile.mkdtemp(prefix="sparktrain-"))
    return root / "sparktrain-models"
