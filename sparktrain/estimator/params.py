"""The Params that estimators and models share, with what each is when it is not set."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Self

from pydantic import TypeAdapter, ValidationError
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.param.shared import (
    HasHandleInvalid,
    HasInputCols,
    HasMaxIter,
    HasSeed,
    HasStandardization,
    HasStepSize,
    HasValidationIndicatorCol,
    HasWeightCol,
)
from pyspark.ml.util import MLReadable, MLWritable

from sparktrain.features import Feature
from sparktrain.features.declare import Declared

ESTIMATOR = "the estimator's Params"
MODEL = "the model's Params"
"""Where the values of a ConfigError come from."""

_FEATURES: TypeAdapter[list[Feature]] = TypeAdapter(list[Feature])


def to_settings(value: Any) -> dict[str, Any]:
    """Take a mapping of names to plain values, which a saved estimator can keep."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise TypeError(f"{value!r} is no dict of names and values")
    try:
        json.dumps(dict(value))
    except (TypeError, ValueError) as error:
        raise TypeError(f"it holds what JSON can't: {error}") from error
    return dict(value)


def to_declarations(value: Any) -> list[dict[str, Any]]:
    """Take declared features, or what they were saved as."""
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence):
        raise TypeError(f"{value!r} is no list of features such as Numeric('distance')")
    plain = [v.model_dump(mode="json") if isinstance(v, Declared) else v for v in value]
    try:
        _FEATURES.validate_python(plain)
    except ValidationError as error:
        raise TypeError(f"these are no declared features: {error}") from error
    return plain


def declared_features(plain: Sequence[Mapping[str, Any]]) -> list[Feature]:
    """Return the features again that `to_declarations` took."""
    return _FEATURES.validate_python(list(plain))


def _param(name: str, doc: str, converter: Any) -> Any:
    return Param(Params._dummy(), name, doc, typeConverter=converter)


class TorchParams(
    HasInputCols,
    HasMaxIter,
    HasStepSize,
    HasSeed,
    HasWeightCol,
    HasValidationIndicatorCol,
    HasHandleInvalid,
    HasStandardization,
    MLWritable,
    MLReadable[Any],
):
    """What estimators and models share."""

    inputCols: Param[list[str]] = _param(
        "inputCols",
        "plain columns to learn from instead of featuresCol: numbers, booleans, text, dates, timestamps, "
        "vectors.",
        TypeConverters.toListString,
    )
    maxIter: Param[int] = _param("maxIter", "epochs to train, at most (> 0).", TypeConverters.toInt)
    stepSize: Param[float] = _param("stepSize", "learning rate of AdamW (> 0).", TypeConverters.toFloat)
    handleInvalid: Param[str] = _param(
        "handleInvalid",
        "what to do with rows that have a null, a NaN or an infinity among the inputs: error, skip (leave "
        "them out), or keep (a number becomes its mean, text and booleans have a place for it, a "
        "vector's number is 0; transform gives null where even that can't be scored).",
        TypeConverters.toString,
    )
    standardization: Param[bool] = _param(
        "standardization",
        "whether vectors' numbers are brought to mean 0 and deviation 1 before they go in.",
        TypeConverters.toBoolean,
    )
    hiddenLayers: Param[list[int]] = _param(
        "hiddenLayers", "width of each hidden layer; none: a linear model.", TypeConverters.toListInt
    )
    dropout: Param[float] = _param(
        "dropout", "fraction of hidden values set to zero while training, [0, 1).", TypeConverters.toFloat
    )
    embeddingSize: Param[int] = _param(
        "embeddingSize", "length of the vector that each text or index column becomes.", TypeConverters.toInt
    )
    batchSize: Param[int] = _param(
        "batchSize", "rows per optimizer step, over all workers (> 0).", TypeConverters.toInt
    )
    numWorkers: Param[int] = _param(
        "numWorkers", "processes that train together; each takes one slot of Spark.", TypeConverters.toInt
    )
    patience: Param[int] = _param(
        "patience",
        "ends after so many epochs in a row without a better validation loss; 0: never.",
        TypeConverters.toInt,
    )
    validationFraction: Param[float] = _param(
        "validationFraction",
        "part of the rows to validate on where patience is set and validationIndicatorCol is not, (0, 1).",
        TypeConverters.toFloat,
    )
    declaredFeatures: Param[list[dict[str, Any]]] = _param(
        "declaredFeatures",
        "features as sparktrain.features declares them (Numeric, Categorical, ...), in place of inputCols; "
        "what they say of nulls holds in place of handleInvalid.",
        to_declarations,
    )
    task: Param[str] = _param(
        "task",
        "package whose model.py has a Task of your own, such as pipelines.flight_delays; else a perceptron "
        "with embeddings is trained.",
        TypeConverters.toString,
    )
    taskArguments: Param[dict[str, Any]] = _param("taskArguments", "arguments of that Task.", to_settings)
    storageRoot: Param[str] = _param(
        "storageRoot",
        "directory that driver and executors see, for the prepared rows, checkpoints and logs, which stay "
        "there; a local master does without and leaves nothing.",
        TypeConverters.toString,
    )
    trackingUri: Param[str] = _param(
        "trackingUri",
        "MLflow server to log a run to; where it is not set, MLflow's own setting holds if there is one, "
        "else nothing is logged.",
        TypeConverters.toString,
    )
    experiment: Param[str] = _param("experiment", "MLflow experiment of the run.", TypeConverters.toString)
    parentRunId: Param[str] = _param(
        "parentRunId",
        "MLflow run to show this one under; where it is not set, the active run if there is one.",
        TypeConverters.toString,
    )
    registeredModelName: Param[str] = _param(
        "registeredModelName", "name to register the model under; else it is not.", TypeConverters.toString
    )
    config: Param[dict[str, Any]] = _param(
        "config",
        "further keys of sparktrain's configuration by dotted name, such as {'train.precision': 'bf16'}.",
        to_settings,
    )

    caller_run: str | None = None  # MLflow's, that was active where this was copied

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._setDefault(
            maxIter=10,
            stepSize=1e-3,
            seed=0,
            handleInvalid="error",
            standardization=True,
            hiddenLayers=[128, 64],
            dropout=0.1,
            embeddingSize=8,
            batchSize=256,
            numWorkers=1,
            patience=0,
            validationFraction=0.1,
            taskArguments={},
            config={},
        )

    def getHiddenLayers(self) -> list[int]:
        """Gets the value of hiddenLayers or its default value."""
        return self.getOrDefault(self.hiddenLayers)

    def getDropout(self) -> float:
        """Gets the value of dropout or its default value."""
        return self.getOrDefault(self.dropout)

    def getEmbeddingSize(self) -> int:
        """Gets the value of embeddingSize or its default value."""
        return self.getOrDefault(self.embeddingSize)

    def getBatchSize(self) -> int:
        """Gets the value of batchSize or its default value."""
        return self.getOrDefault(self.batchSize)

    def getNumWorkers(self) -> int:
        """Gets the value of numWorkers or its default value."""
        return self.getOrDefault(self.numWorkers)

    def getPatience(self) -> int:
        """Gets the value of patience or its default value."""
        return self.getOrDefault(self.patience)

    def getValidationFraction(self) -> float:
        """Gets the value of validationFraction or its default value."""
        return self.getOrDefault(self.validationFraction)

    def getDeclaredFeatures(self) -> list[dict[str, Any]]:
        """Gets the value of declaredFeatures or its default value."""
        return self.getOrDefault(self.declaredFeatures)

    def getTask(self) -> str:
        """Gets the value of task or its default value."""
        return self.getOrDefault(self.task)

    def getTaskArguments(self) -> dict[str, Any]:
        """Gets the value of taskArguments or its default value."""
        return self.getOrDefault(self.taskArguments)

    def getStorageRoot(self) -> str:
        """Gets the value of storageRoot or its default value."""
        return self.getOrDefault(self.storageRoot)

    def getTrackingUri(self) -> str:
        """Gets the value of trackingUri or its default value."""
        return self.getOrDefault(self.trackingUri)

    def getExperiment(self) -> str:
        """Gets the value of experiment or its default value."""
        return self.getOrDefault(self.experiment)

    def getParentRunId(self) -> str:
        """Gets the value of parentRunId or its default value."""
        return self.getOrDefault(self.parentRunId)

    def getRegisteredModelName(self) -> str:
        """Gets the value of registeredModelName or its default value."""
        return self.getOrDefault(self.registeredModelName)

    def getConfig(self) -> dict[str, Any]:
        """Gets the value of config or its default value."""
        return self.getOrDefault(self.config)

    def setHandleInvalid(self, value: str) -> Self:
        """Sets the value of handleInvalid."""
        return self._set(handleInvalid=value)

    def value(self, name: str) -> Any:
        """Return a Param's value, None if it is neither set nor has a default; an empty text is none."""
        param = self.getParam(name)
        found = self.getOrDefault(param) if self.isDefined(param) else None
        return None if found == "" else found
