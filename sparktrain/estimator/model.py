"""What the models of both kinds have in common: transform, single rows, saving."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
from pyspark.ml.linalg import Vector
from pyspark.sql import DataFrame

from sparktrain.errors import ModelUnusable, RowsInvalid, SchemaMismatch
from sparktrain.estimator.fitting import Fitted
from sparktrain.estimator.params import TorchParams
from sparktrain.estimator.persistence import ModelReader, ModelWriter
from sparktrain.estimator.scoring import job_of, transform
from sparktrain.estimator.summary import TrainingSummary
from sparktrain.estimator.worker import Predictions, predict
from sparktrain.scoring.model import ServedModel


class TorchModel(TorchParams):
    """A fitted model; made by `fit` or `load`."""

    def __init__(self, fitted: Fitted | None = None, summary: TrainingSummary | None = None) -> None:
        super().__init__()
        self._fitted, self._summary = fitted, summary
        self._served: ServedModel | None = None

    @property
    def fitted(self) -> Fitted:
        """What makes it a model.

        Raises:
            ModelUnusable: it was neither fitted nor loaded.
        """
        if self._fitted is None:
            raise ModelUnusable("of no fit", "it was made empty", "take what fit or load returns")
        return self._fitted

    @property
    def numFeatures(self) -> int:
        """How many numbers a row of the vector has, or how many input columns there are."""
        inputs = self.fitted.inputs
        return inputs[0].size if len(inputs) == 1 and inputs[0].is_shaped else len(inputs)

    @property
    def runId(self) -> str | None:
        """The training's MLflow run; None without MLflow."""
        return self.fitted.run_id

    @property
    def hasSummary(self) -> bool:
        """Whether there is a summary: of a model that was fitted here, not of a loaded one."""
        return self._summary is not None

    @property
    def summary(self) -> TrainingSummary:
        """How it was trained.

        Raises:
            RuntimeError: the model was loaded.
        """
        if self._summary is None:
            raise RuntimeError(f"No training summary available for this {type(self).__name__}")
        return self._summary

    def __repr__(self) -> str:
        if self._fitted is None:
            return super().__repr__()
        sizes = {"numClasses": self._fitted.num_classes, "numFeatures": self.numFeatures}
        told = "".join(f", {name}={size}" for name, size in sizes.items() if size)  # a regressor has no class
        return f"{type(self).__name__}: uid={self.uid}{told}"

    def setInputCols(self, value: list[str]) -> Self:
        """Sets the value of inputCols: the same columns in the same order, by other names."""
        return self._set(inputCols=value)

    def write(self) -> ModelWriter:
        """Return a writer for this model."""
        return ModelWriter(self)

    @classmethod
    def read(cls) -> ModelReader:
        """Return a reader for models of this class."""
        return ModelReader(cls)

    def _transform(self, dataset: DataFrame) -> DataFrame:
        return transform(dataset, self, self.fitted)

    def _predict_one(self, value: Vector | Mapping[str, Any]) -> Predictions:
        """Put one row through the model, here."""
        inputs = self.fitted.inputs
        if not isinstance(value, Mapping):
            if len(inputs) != 1 or not inputs[0].is_shaped:
                names = ", ".join(item.name for item in inputs)
                raise TypeError(f"{value!r} given; give a dict of the columns {names}")
            value = {inputs[0].name: value}
        if missing := [item.name for item in inputs if item.name not in value]:
            names = ", ".join(item.name for item in inputs)
            raise SchemaMismatch("the row", missing=missing, way_out=f"give all of {names}; None is a null")
        columns = {}
        for item in inputs:
            given = value[item.name]
            if item.is_shaped and given is not None:
                given = given.toArray().tolist() if isinstance(given, Vector) else list(given)
            elif item.shape == "index" and given is not None:
                given = int(given) if math.isfinite(given) else None
            columns[item.name] = [given]
        errors: dict[int, str] = {}
        found = predict(self._here(), job_of(self, self.fitted, inputs), pa.table(columns), errors)
        if errors:
            raise RowsInvalid(f"The row can't be scored: {errors[0]}", [item.name for item in inputs])
        found.check()
        return found

    def _here(self) -> ServedModel:
        if self._served is None:
            with tempfile.TemporaryDirectory(prefix="sparktrain-model-") as folder:
                self._served = self.fitted.packed.load(Path(folder))
        return self._served
