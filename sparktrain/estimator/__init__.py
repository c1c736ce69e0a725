"""The spark.ml face: an Estimator and a Model for classes, and one for numbers.

The names below are loaded on first use: a Python worker that looks at rows needs none of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparktrain.estimator.classifier import TorchClassificationModel, TorchClassifier
    from sparktrain.estimator.regressor import TorchRegressionModel, TorchRegressor
    from sparktrain.estimator.summary import TrainingSummary

_HOMES = {
    "TorchClassificationModel": "classifier",
    "TorchClassifier": "classifier",
    "TorchRegressionModel": "regressor",
    "TorchRegressor": "regressor",
    "TrainingSummary": "summary",
}

__all__ = [
    "TorchClassificationModel",
    "TorchClassifier",
    "TorchRegressionModel",
    "TorchRegressor",
    "TrainingSummary",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
