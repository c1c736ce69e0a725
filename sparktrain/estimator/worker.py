"""What a Python worker does to score: batches in, spark.ml's columns out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sparktrain.errors import ModelUnusable, RowsInvalid
from sparktrain.estimator.inputs import Input, raw_rows, rows_at_once
from sparktrain.features.vectors import lists_of_rows
from sparktrain.scoring.model import Piece, ServedModel
from sparktrain.scoring.on_spark import loaded_model
from sparktrain.scoring.packed import PackedModel

_BATCH_ROWS = 8192


@dataclass(frozen=True)
class Job:
    """What a Python worker needs to score.

    Attributes:
        packed: the model's files.
        inputs: what it is given.
        trained_on: names of these columns when it was trained.
        num_classes: 0 for a number.
        columns: to add, in order: of "rawPrediction", "probability" and "prediction".
        handle_invalid: "error", "skip" or "keep".
        thresholds: of classes; the one with the largest probability / threshold is predicted.
    """

    packed: PackedModel
    inputs: tuple[Input, ...]
    trained_on: tuple[str, ...]
    num_classes: int
    columns: tuple[str, ...]
    handle_invalid: str
    thresholds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Predictions:
    """float64, NaN where a row has none: [rows], and for classes [rows, classes]."""

    prediction: NDArray[np.float64]
    probability: NDArray[np.float64]
    raw: NDArray[np.float64]

    def check(self) -> None:
        """Refuse rows without a prediction.

        Raises:
            ModelUnusable: the model gives no finite number.
        """
        if lost := int(np.isnan(self.prediction).sum()):
            raise ModelUnusable(
                "of this stage",
                f"it gives NaN or infinity for {lost:,} of {len(self.prediction):,} rows that are valid",
                "train it again with a smaller stepSize, or set handleInvalid to keep, which gives them null",
            )


def score_partition(
    job: Job, names: list[str], batches: Iterable[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """Run in a Python worker, once a partition, whose columns come by number."""
    named = (pa.RecordBatch.from_arrays(batch.columns, names=names) for batch in batches)
    yield from score_batches(job, named)


def score_batches(job: Job, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Score the batches of a partition; the last column says which rows are valid, and goes."""
    model = loaded_model(job.packed)
    for batch in _narrowed(job, batches):
        errors: dict[int, str] = {}
        valid = batch.column(batch.num_columns - 1)
        if job.handle_invalid == "error" and not valid.to_numpy(zero_copy_only=False).all():
            raise RowsInvalid("A row has a null, a NaN or an infinity", [item.name for item in job.inputs])
        # by place, for the user's own columns may have the same name twice
        batch = pa.RecordBatch.from_arrays(batch.columns[:-1], schema=pa.schema(list(batch.schema)[:-1]))
        found = predict(model, job, raw_rows(batch, job.inputs, job.trained_on, errors), errors)
        if errors and job.handle_invalid == "error":
            raise RowsInvalid(
                f"A row can't be scored: {next(iter(errors.values()))}", list(batch.schema.names)
            )
        if job.handle_invalid == "error":
            found.check()
        columns = [*batch.columns, *(_arrow(found, kind) for kind in job.columns)]
        # Spark goes by place, and takes two columns of one name for one
        names = [f"_{place}" for place in range(len(columns))]
        scored = pa.RecordBatch.from_arrays(columns, names=names)
        if errors and job.handle_invalid == "skip":
            scored = scored.filter(pa.array(~np.isin(np.arange(batch.num_rows), list(errors))))
        yield scored


def _narrowed(job: Job, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Cut batches of wide vectors, which become dense."""
    most = rows_at_once(sum(item.size for item in job.inputs))
    for batch in batches:
        for start in range(0, max(batch.num_rows, 1), most):
            yield batch.slice(start, most)


def predict(model: ServedModel, job: Job, rows: pa.Table, errors: dict[int, str]) -> Predictions:
    """Put raw rows through a model.

    Args:
        errors: gets why a row has no prediction; those that are there have none, and neither have those of
            which the model makes no finite number.
    """
    shape = (rows.num_rows, max(job.num_classes, 1))
    nothing = (np.full(rows.num_rows, np.nan), np.full(shape, np.nan), np.full(shape, np.nan))
    found = Predictions(*nothing)
    for piece in model.outputs(rows, errors, _BATCH_ROWS):
        if job.num_classes:
            probability, raw = _of_classes(model, piece, job.num_classes)
            found.probability[piece.places], found.raw[piece.places] = probability, raw
            finite = np.isfinite(probability).all(axis=1)
            found.prediction[piece.places] = np.where(finite, _decide(probability, job.thresholds), np.nan)
        else:
            numbers = _numbers(piece.predictions)
            found.prediction[piece.places] = np.where(np.isfinite(numbers), numbers, np.nan)
    return found


def _numbers(values: Any) -> NDArray[np.float64]:
    numbers: NDArray[np.float64] = values.detach().double().cpu().numpy()
    return numbers


def _of_classes(
    model: ServedModel, piece: Piece, num_classes: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Probabilities and raw predictions, [rows, classes]; raw is the logits where the module gives them."""
    target = model.features.target
    probability = _numbers(piece.predictions)
    logits = _numbers(piece.outputs) if hasattr(piece.outputs, "detach") else None
    with np.errstate(divide="ignore"):
        if target.kind == "binary":
            if logits is None or logits.shape != probability.shape:
                logits = np.log(probability) - np.log1p(-probability)
            return np.stack([1 - probability, probability], axis=1), np.stack([-logits, logits], axis=1)
        if logits is None or logits.shape != probability.shape:
            logits = np.log(probability)
    # a class that no training row had is never predicted
    classes = [int(name) for name in target.classes]
    spread = np.zeros((len(probability), num_classes)), np.full((len(probability), num_classes), -np.inf)
    spread[0][:, classes], spread[1][:, classes] = probability, logits
    return spread


def _decide(probability: NDArray[np.float64], thresholds: tuple[float, ...]) -> NDArray[np.int64]:
    if thresholds:
        with np.errstate(divide="ignore", invalid="ignore"):
            probability = np.nan_to_num(probability / np.array(thresholds), nan=0.0, posinf=np.inf)
    best: NDArray[np.int64] = probability.argmax(axis=1)
    return best


def _arrow(found: Predictions, kind: str) -> pa.Array:
    missing = np.isnan(found.prediction)
    if kind == "prediction":
        return pa.array(found.prediction, mask=missing)
    rows = found.probability if kind == "probability" else found.raw
    num_rows = len(rows)
    nothing = pa.nulls(num_rows, pa.int32()), pa.nulls(num_rows, pa.list_(pa.int32()))
    # as Spark stores a dense vector
    dense = [pa.array(np.ones(num_rows, np.int8)), *nothing, lists_of_rows(rows)]
    return pa.StructArray.from_arrays(dense, ["type", "size", "indices", "values"], mask=pa.array(missing))
