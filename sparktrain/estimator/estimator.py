"""What the estimators of both kinds have in common: fit, setters, saving."""

from __future__ import annotations

import json
import logging
import shutil
import threading
import weakref
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

from pyspark.ml.base import _FitMultipleIterator
from pyspark.ml.param import Param
from pyspark.sql import DataFrame

from sparktrain.errors import SparktrainError
from sparktrain.estimator.fitting import Fitted, Goal, Prepared, prepare_rows, storage_root, train_model
from sparktrain.estimator.params import TorchParams
from sparktrain.estimator.persistence import ParamsReader, ParamsWriter
from sparktrain.estimator.scoring import check_outputs, output_names
from sparktrain.estimator.summary import TrainingSummary
from sparktrain.runs.connection import mlflow_setting

logger = logging.getLogger(__name__)

# Params that change nothing about the prepared rows, so that fits which differ in them share these.
_OF_TRAINING = {
    "maxIter",
    "stepSize",
    "hiddenLayers",
    "dropout",
    "embeddingSize",
    "batchSize",
    "numWorkers",
    "task",
    "taskArguments",
    "trackingUri",
    "experiment",
    "parentRunId",
    "registeredModelName",
    "predictionCol",
    "probabilityCol",
    "rawPredictionCol",
    "thresholds",
    "standardization",
}


class SharedRows:
    """Prepared rows of one DataFrame, each kind of them prepared once, by whoever wants it first.

    Without `storageRoot` everything lies in a temporary directory, which goes with this object, unless an
    error names files there.
    """

    def __init__(self, params: TorchParams, df: DataFrame) -> None:
        self._df = df
        self.root = storage_root(params, df.sparkSession)
        self._removal = None
        if params.value("storageRoot") is None:
            self._removal = weakref.finalize(self, shutil.rmtree, self.root, ignore_errors=True)
        self._prepared: dict[str, Prepared] = {}
        self._preparing: dict[str, threading.Lock] = defaultdict(threading.Lock)
        self._choosing = threading.Lock()

    def train(self, estimator: TorchEstimator) -> tuple[Fitted, TrainingSummary]:
        """Prepare the rows unless they are there, and train on them."""
        try:
            # a model would refuse these rows; Spark's own estimators do so before training, too
            check_outputs(output_names(estimator, 2 if estimator.goal == "classes" else 0), self._df)
            prepared = self._rows_for(estimator)
            return train_model(estimator, prepared, self._df.sparkSession, self.root)
        except SparktrainError as error:
            names_files = bool(error.result) or str(self.root) in str(error)
            if names_files and self._removal is not None:
                self._removal.detach()
                logger.warning("what the failed fit left is in %s", self.root)
            raise

    def _rows_for(self, estimator: TorchEstimator) -> Prepared:
        names = sorted({param.name for param in estimator.params} - _OF_TRAINING)
        key = json.dumps({name: estimator.value(name) for name in names})
        with self._choosing:
            turn = self._preparing[key]
        with turn:
            if key not in self._prepared:
                self._prepared[key] = prepare_rows(estimator, self._df, estimator.goal, self.root)
            return self._prepared[key]


class TorchEstimator(TorchParams):
    """Fits by a gang of torch processes; see the subclasses."""

    goal: Goal

    def copy(self, extra: Mapping[Param[Any], Any] | None = None) -> Self:
        """Copy, with further Params; the copy remembers the MLflow run that is active here.

        MLflow's active run belongs to a thread, and a CrossValidator fits its copies in others.
        """
        that: Self = super().copy(extra)  # type: ignore[arg-type]
        that.caller_run = mlflow_setting()[1] or self.caller_run
        return that

    def write(self) -> ParamsWriter:
        """Return a writer for this estimator."""
        return ParamsWriter(self)

    @classmethod
    def read(cls) -> ParamsReader:
        """Return a reader for estimators of this class."""
        return ParamsReader(cls)

    def fitMultiple(
        self, dataset: DataFrame, paramMaps: Sequence[Mapping[Param[Any], Any]]
    ) -> Iterator[tuple[int, Any]]:
        """Fit a model for each map, in whatever order; maps that differ in training alone share their rows.

        Returns:
            An iterator of (index of the map, model) that threads may share.
        """
        estimator = self.copy()
        shared = SharedRows(estimator, dataset)

        def fit_one(index: int) -> Any:
            one = estimator.copy(paramMaps[index])
            elsewhere = one.value("storageRoot") != estimator.value("storageRoot")
            return one._fit_on(SharedRows(one, dataset) if elsewhere else shared)

        return _FitMultipleIterator(fit_one, len(paramMaps))

    def _fit(self, dataset: DataFrame) -> Any:
        return self._fit_on(SharedRows(self, dataset))

    def _fit_on(self, shared: SharedRows) -> Any:
        fitted, summary = shared.train(self)
        model = self._model(fitted, summary)
        model._resetUid(self.uid)
        return self._copyValues(model)

    def _model(self, fitted: Fitted, summary: TrainingSummary) -> Any:
        raise NotImplementedError

    def setInputCols(self, value: list[str]) -> Self:
        """Sets the value of inputCols."""
        return self._set(inputCols=value)

    def setMaxIter(self, value: int) -> Self:
        """Sets the value of maxIter."""
        return self._set(maxIter=value)

    def setStepSize(self, value: float) -> Self:
        """Sets the value of stepSize."""
        return self._set(stepSize=value)

    def setSeed(self, value: int) -> Self:
        """Sets the value of seed."""
        return self._set(seed=value)

    def setWeightCol(self, value: str) -> Self:
        """Sets the value of weightCol."""
        return self._set(weightCol=value)

    def setValidationIndicatorCol(self, value: str) -> Self:
        """Sets the value of validationIndicatorCol."""
        return self._set(validationIndicatorCol=value)

    def setStandardization(self, value: bool) -> Self:
        """Sets the value of standardization."""
        return self._set(standardization=value)

    def setHiddenLayers(self, value: Sequence[int]) -> Self:
        """Sets the value of hiddenLayers."""
        return self._set(hiddenLayers=value)

    def setDropout(self, value: float) -> Self:
        """Sets the value of dropout."""
        return self._set(dropout=value)

    def setEmbeddingSize(self, value: int) -> Self:
        """Sets the value of embeddingSize."""
        return self._set(embeddingSize=value)

    def setBatchSize(self, value: int) -> Self:
        """Sets the value of batchSize."""
        return self._set(batchSize=value)

    def setNumWorkers(self, value: int) -> Self:
        """Sets the value of numWorkers."""
        return self._set(numWorkers=value)

    def setPatience(self, value: int) -> Self:
        """Sets the value of patience."""
        return self._set(patience=value)

    def setValidationFraction(self, value: float) -> Self:
        """Sets the value of validationFraction."""
        return self._set(validationFraction=value)

    def setDeclaredFeatures(self, value: Sequence[Any]) -> Self:
        """Sets the value of declaredFeatures."""
        return self._set(declaredFeatures=value)

    def setTask(self, value: str) -> Self:
        """Sets the value of task."""
        return self._set(task=value)

    def setTaskArguments(self, value: Mapping[str, Any]) -> Self:
        """Sets the value of taskArguments."""
        return self._set(taskArguments=value)

    def setStorageRoot(self, value: str) -> Self:
        """Sets the value of storageRoot."""
        return self._set(storageRoot=value)

    def setTrackingUri(self, value: str) -> Self:
        """Sets the value of trackingUri."""
        return self._set(trackingUri=value)

    def setExperiment(self, value: str) -> Self:
        """Sets the value of experiment."""
        return self._set(experiment=value)

    def setParentRunId(self, value: str) -> Self:
        """Sets the value of parentRunId."""
        return self._set(parentRunId=value)

    def setRegisteredModelName(self, value: str) -> Self:
        """Sets the value of registeredModelName."""
        return self._set(registeredModelName=value)

    def setConfig(self, value: Mapping[str, Any]) -> Self:
        """Sets the value of config."""
        return self._set(config=value)
