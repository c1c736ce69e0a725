"""sparktrain: from a Spark DataFrame to a trained, registered PyTorch model.

    DataFrame --prepare--> Dataset --train--> Run (MLflow) --register--> Model --score--> DataFrame

The names below are loaded on first use: `import sparktrain` loads neither Spark nor torch nor MLflow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparktrain.dataset import Dataset, open_dataset
    from sparktrain.estimator import (
        TorchClassificationModel,
        TorchClassifier,
        TorchRegressionModel,
        TorchRegressor,
    )
    from sparktrain.gang import Gang, train
    from sparktrain.new_pipeline import init_pipeline
    from sparktrain.preparation import append, prepare
    from sparktrain.runs.replay import register
    from sparktrain.scoring import score

__version__ = "0.1.0"

_HOMES = {
    "Dataset": "sparktrain.dataset",
    "Gang": "sparktrain.gang",
    "TorchClassificationModel": "sparktrain.estimator",
    "TorchClassifier": "sparktrain.estimator",
    "TorchRegressionModel": "sparktrain.estimator",
    "TorchRegressor": "sparktrain.estimator",
    "append": "sparktrain.preparation",
    "init_pipeline": "sparktrain.new_pipeline",
    "open_dataset": "sparktrain.dataset",
    "prepare": "sparktrain.preparation",
    "register": "sparktrain.runs.replay",
    "score": "sparktrain.scoring",
    "train": "sparktrain.gang",
}

__all__ = [
    "Dataset",
    "Gang",
    "TorchClassificationModel",
    "TorchClassifier",
    "TorchRegressionModel",
    "TorchRegressor",
    "append",
    "init_pipeline",
    "open_dataset",
    "prepare",
    "register",
    "score",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
