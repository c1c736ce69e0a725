"""Columns of scores: what `predict` gave becomes Arrow columns, as `score_schema` lays them out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from sparktrain.features import NUMBER, NUMBERS, FittedFeatures, FittedTarget, score_schema
from sparktrain.features.raw import ARROW_TYPES
from sparktrain.features.vectors import lists_of_rows

Values = dict[str, NDArray[np.float64]]
"""By target, [rows], or [rows, numbers]; the only one of a Task without target is called ""."""

NO_NUMBER = "the model gave NaN or infinity"


class PredictionsUnfit(ValueError):
    """`predict` gave what is no score of these rows; the text says what, and `way_out` what to return."""

    def __init__(self, given: str, way_out: str) -> None:
        super().__init__(given)
        self.way_out = way_out


@dataclass(frozen=True)
class ScoreColumns:
    """How a model's predictions become columns.

    Attributes:
        features: whose targets they are of.
        numbers: of a Task without target: how many it predicts a row; None: one, without a dimension.
    """

    features: FittedFeatures
    numbers: int | None = None

    @property
    def schema(self) -> pa.Schema:
        return score_schema(self.features, NUMBER if self.numbers is None else NUMBERS)

    def empty(self, rows: int) -> Values:
        """Room for the values of so many rows: NaN, which is no score."""
        return {name: np.full(shape, np.nan) for name, shape in self._shapes(rows).items()}

    def values(self, predictions: Any, rows: int) -> Values:
        """Take what `predict` gave for these rows.

        Raises:
            PredictionsUnfit: it is of another shape, or has not all targets.
        """
        wanted = self._shapes(rows)
        if len(wanted) > 1:
            if not isinstance(predictions, Mapping) or set(wanted) - set(predictions):
                there = list(predictions) if isinstance(predictions, Mapping) else type(predictions).__name__
                raise PredictionsUnfit(f"predict gave {there}", f"return a dict of {', '.join(wanted)}")
        else:
            predictions = {name: predictions for name in wanted}
        several = len(wanted) > 1
        return {n: _shaped(n if several else "", predictions[n], shape) for n, shape in wanted.items()}

    def to_arrow(self, values: Values, errors: Mapping[int, str]) -> pa.RecordBatch:
        """Return the columns of all rows; one without a finite value for each target has no score.

        Args:
            errors: why rows have no score, by their place; what lacks there gave no finite number.
        """
        finite = [np.isfinite(v) if v.ndim == 1 else np.isfinite(v).all(axis=1) for v in values.values()]
        missing = ~np.logical_and.reduce(finite)
        rows = len(missing)
        reasons = {int(place): NO_NUMBER for place in np.flatnonzero(missing)} | dict(errors)
        reason = pa.array([reasons.get(row) for row in range(rows)], pa.string()) if reasons else None
        columns = [*self._columns(values, missing if reasons else None)]
        error = pa.nulls(rows, pa.string()) if reason is None else reason
        return pa.RecordBatch.from_arrays([*columns, error], schema=self.schema)

    def _shapes(self, rows: int) -> dict[str, tuple[int, ...]]:
        if not self.features.targets:
            return {"": (rows,) if self.numbers is None else (rows, self.numbers)}
        return {t.name: (rows, len(t.classes)) if t.classes else (rows,) for t in self.features.targets}

    def _columns(self, values: Values, missing: NDArray[np.bool_] | None) -> Iterator[pa.Array]:
        for target in self.features.targets:
            yield from _of_target(target, values[target.name], missing)
        if not self.features.targets:
            yield _numbers(values[""], missing)


def _of_target(
    target: FittedTarget, values: NDArray[np.float64], missing: NDArray[np.bool_] | None
) -> Iterator[pa.Array]:
    if target.kind == "binary":
        chosen = pa.array(values >= 0.5, mask=missing)
        yield chosen if target.input_type == "boolean" else chosen.cast(pa.int64()).cast(_type_of(target))
    elif target.kind == "multiclass":
        classes = pa.array(target.classes, pa.string()).cast(_type_of(target))
        number = values.argmax(axis=1) if len(values) else np.empty(0, np.int64)
        yield classes.take(pa.array(number, mask=missing))
    yield _numbers(values, missing)


def _type_of(target: FittedTarget) -> pa.DataType:
    return ARROW_TYPES[target.input_type]


def _numbers(values: NDArray[np.float64], missing: NDArray[np.bool_] | None) -> pa.Array:
    if values.ndim == 1:
        return pa.array(values, mask=missing)
    return lists_of_rows(values, missing).cast(NUMBERS)


def _shaped(name: str, given: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
    rows = shape[0]
    of = f" of `{name}`" if name else ""
    if not isinstance(given, Tensor):
        raise PredictionsUnfit(f"predict gave {type(given).__name__}{of}", f"return a tensor [{rows}, …]")
    found = tuple(given.shape)
    # numpy would spread one value over all rows
    if found != shape and not (found[:1] == (rows,) and given.numel() == np.prod(shape)):
        wanted = "one number a row, shape [rows]"
        if len(shape) > 1:
            wanted = f"{shape[1]} numbers a row, shape [rows, {shape[1]}]"
        raise PredictionsUnfit(f"predict gave shape {found} for {rows} rows{of}", f"return {wanted}")
    values: NDArray[np.float64] = given.double().cpu().numpy().reshape(shape)
    return values
