"""TorchClassifier: a spark.ml classifier that a gang of torch processes trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pyspark import keyword_only
from pyspark.ml.classification import ProbabilisticClassificationModel, ProbabilisticClassifier
from pyspark.ml.linalg import DenseVector, Vector

from sparktrain.estimator.estimator import TorchEstimator
from sparktrain.estimator.fitting import Fitted
from sparktrain.estimator.model import TorchModel
from sparktrain.estimator.summary import TrainingSummary


class TorchClassifier(TorchEstimator, ProbabilisticClassifier):
    """Learns classes 0, 1, 2, ... from a vector column or from plain columns, with a torch network.

        >>> classifier = TorchClassifier(featuresCol="features", labelCol="label", maxIter=5, numWorkers=2)
        >>> model = classifier.fit(training)
        >>> model.transform(test).select("probability", "prediction")

    Every Param is told by `explainParams()`. The network is a perceptron with embeddings for text and index
    columns unless `task` names your own. A fit raises the errors of `sparktrain.prepare` and
    `sparktrain.train`.
    """

    goal = "classes"
    _input_kwargs: dict[str, Any]

    @keyword_only
    def __init__(
        self,
        *,
        featuresCol: str = "features",
        labelCol: str = "label",
        predictionCol: str = "prediction",
        probabilityCol: str = "probability",
        rawPredictionCol: str = "rawPrediction",
        thresholds: list[float] | None = None,
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

    def _model(self, fitted: Fitted, summary: TrainingSummary) -> TorchClassificationModel:
        return TorchClassificationModel(fitted, summary)


class TorchClassificationModel(TorchModel, ProbabilisticClassificationModel):
    """What `TorchClassifier.fit` returns."""

    @property
    def numClasses(self) -> int:
        """How many classes there are."""
        return self.fitted.num_classes

    def predict(self, value: Vector | Mapping[str, Any]) -> float:
        """Predict the class of one row: its vector, or a dict of its input columns."""
        return float(self._predict_one(value).prediction[0])

    def predictProbability(self, value: Vector | Mapping[str, Any]) -> DenseVector:
        """Predict the probability of each class for one row: its vector, or a dict of its input columns."""
        return DenseVector(self._predict_one(value).probability[0])

    def predictRaw(self, value: Vector | Mapping[str, Any]) -> DenseVector:
        """Return the logit of each class for one row: its vector, or a dict of its input columns."""
        return DenseVector(self._predict_one(value).raw[0])
