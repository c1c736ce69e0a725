"""TorchRegressor: a spark.ml regressor that a gang of torch processes trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pyspark import keyword_only
from pyspark.ml.linalg import Vector
from pyspark.ml.regression import RegressionModel, Regressor

from sparktrain.estimator.estimator import TorchEstimator
from sparktrain.estimator.fitting import Fitted
from sparktrain.estimator.model import TorchModel
from sparktrain.estimator.summary import TrainingSummary


class TorchRegressor(TorchEstimator, Regressor[Any]):
    """Learns a number from a vector column or from plain columns, with a torch network.

        >>> regressor = TorchRegressor(featuresCol="features", labelCol="label", maxIter=5, numWorkers=2)
        >>> model = regressor.fit(training)
        >>> model.transform(test).select("label", "prediction")

    Every Param is told by `explainParams()`. The network is a perceptron with embeddings for text and index
    columns unless `task` names your own. A fit raises the errors of `sparktrain.prepare` and
    `sparktrain.train`.
    """

    goal = "number"
    _input_kwargs: dict[str, Any]

    @keyword_only
    def __init__(
        self,
        *,
        featuresCol: str = "features",
        labelCol: str = "label",
        predictionCol: str = "prediction",
        inputCols: list[str] | None = None,
        weightCol: str | None = None,
        validationIndicatorCol: str | None = None,
        handleInvalid: str = "error",
        maxIter: int = 10,
        stepSize: float = 1e-3,
        seed: int = 0,
        standardization: bool = True,
        hiddenLayers: list[int] | None = None,
        dropout: float = 0.1,
        embeddingSize: int = 8,
        batchSize: int = 256,
        numWorkers: int = 1,
        patience: int = 0,
        validationFraction: float = 0.1,
        declaredFeatures: list[Any] | None = None,
        task: str | None = None,
        taskArguments: dict[str, Any] | None = None,
        storageRoot: str | None = None,
        trackingUri: str | None = None,
        experiment: str | None = None,
        parentRunId: str | None = None,
        registeredModelName: str | None = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._set(**self._input_kwargs)

    def setParams(self, **params: Any) -> Self:
        """Set several Params by name: the constructor's arguments."""
        return self._set(**params)

    def _model(self, fitted: Fitted, summary: TrainingSummary) -> TorchRegressionModel:
        return TorchRegressionModel(fitted, summary)


class TorchRegressionModel(TorchModel, RegressionModel[Any]):
    """What `TorchRegressor.fit` returns."""

    def predict(self, value: Vector | Mapping[str, Any]) -> float:
        """Predict the number of one row: its vector, or a dict of its input columns."""
        return float(self._predict_one(value).prediction[0])
