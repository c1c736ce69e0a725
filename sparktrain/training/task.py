"""TrainTask: what a user writes. A model, a loss, metrics; nothing about ranks, steps or storage."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import Metric
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC, BinaryAveragePrecision

from sparktrain.features import FittedFeatures

Batch = Mapping[str, Tensor]
"""Columns of one batch by name, each of shape [rows]: float32 numeric features, int32 codes of categorical
ones, the float32 target, int64 `row_id`, and float32 `row_weight` (0 for rows that only pad the batch)."""


class TrainTask(ABC):
    """Base of a task.

    A pipeline's `model.py` defines a subclass named `Task`, a frozen dataclass whose fields are the
    configuration's `train.model`.
    """

    @abstractmethod
    def build_model(self, features: FittedFeatures) -> nn.Module:
        """Build the module; its `forward` takes a `Batch` and returns outputs."""

    @abstractmethod
    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each row, shape [rows]; training minimizes the mean over all ranks' rows."""

    @abstractmethod
    def predict(self, outputs: Tensor) -> Tensor:
        """Turn outputs into what people want to see (a probability, say), shape [rows]."""

    @abstractmethod
    def metrics(self) -> dict[str, Metric]:
        """Metrics of (prediction, target) by name; computed exactly over all ranks' rows."""


class BinaryClassification(TrainTask):
    """A model of one logit per row, shape [rows], for a target of 0 and 1: cross entropy, AUROC."""

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(outputs, target, reduction="none")

    def predict(self, outputs: Tensor) -> Tensor:
        return torch.sigmoid(outputs)

    def metrics(self) -> dict[str, Metric]:
        return {
            "auroc": BinaryAUROC(),
            "average_precision": BinaryAveragePrecision(),
            "accuracy": BinaryAccuracy(),
        }
