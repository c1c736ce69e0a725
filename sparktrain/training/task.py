"""TrainTask: what a user writes. A model, a loss, metrics; nothing about ranks, steps or storage."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC, BinaryAveragePrecision
from torchmetrics.functional.classification import multiclass_auroc
from torchmetrics.utilities import dim_zero_cat

from sparktrain.config import TrainConfig
from sparktrain.dataset import Dataset
from sparktrain.features import FittedFeatures

if TYPE_CHECKING:
    from sparktrain.training.step import Step

Batch = Mapping[str, Tensor]
"""Columns of one batch by name, each of shape [rows], or [rows, *shape] for a feature of a shape: float32
numeric features, int32 codes of categorical ones, the targets (float32, or int64 class numbers), the float32
weight if the dataset has one, int64 `row_id`, and float32 `row_weight` (0 for rows that only pad the batch).
"""


class TrainTask(ABC):
    """Base of a task.

    A pipeline's `model.py` defines a subclass named `Task`, a frozen dataclass whose fields are the
    configuration's `train.model`.
    """

    @abstractmethod
    def build_model(self, features: FittedFeatures) -> nn.Module:
        """Build the module; its `forward` takes a `Batch` and returns outputs."""

    @abstractmethod
    def loss(self, outputs: Any, target: Any) -> Tensor:
        """Return the loss of each row, shape [rows], before the row's weight.

        Training minimizes the mean over all ranks' rows of loss times weight (1 if the dataset has none).

        Args:
            outputs: what the module returned.
            target: the target, shape [rows]: float32, or int64 for a class number; a dict of these by name
                unless there is exactly one target.
        """

    @abstractmethod
    def predict(self, outputs: Any) -> Any:
        """Turn outputs into what people want to see, by row: a probability, say, shape [rows].

        A tensor of shape [rows, ...], or a dict of such for several targets.
        """

    def reference(self, dataset: Dataset) -> Mapping[str, float]:
        """Metrics of something simple on the test split, fitted on the train split, to compare with.

        Called on the driver after the training, with `train.reference: task`; nothing unless overridden.
        """
        return {}

    @abstractmethod
    def metrics(self) -> dict[str, Metric]:
        """Metrics of (prediction, target) by name; computed exactly over all ranks' rows, without weights.

        They are given what `predict` returned, as float32, and the target as `loss` has it, but a binary one
        as int64. The best checkpoint is picked by one of them, in the direction of its `higher_is_better`.
        """

    def optimizers(
        self, model: nn.Module, config: TrainConfig
    ) -> torch.optim.Optimizer | Mapping[str, torch.optim.Optimizer]:
        """Make the optimizer, or several by name, each for parameters of its own; AdamW unless overridden.

        The learning rate of each group is multiplied by `rate_factor` at every step.
        """
        return torch.optim.AdamW(
            model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )

    def train_step(self, step: Step, batch: Batch) -> None:
        """Train on this rank's rows of a global batch; to be overridden where one loss is not enough.

        Each `step.minimize` goes with a `step.forward` before it. `train.micro_batch_size` is for steps that
        are not overridden.
        """
        step.minimize(self.loss(step.forward(batch), step.target(batch)))

    def callbacks(self) -> Sequence[Callback]:
        """Return what is to be called while training, on every rank."""
        return ()


class Callback:
    """Called by the loop, on every rank alike; a subclass overrides what it wants."""

    def on_step(self, step: int, model: nn.Module) -> None:
        """A step is done; `step` counts from 1."""

    def on_evaluation(self, step: int, metrics: Mapping[str, float]) -> bool:
        """The validation split was evaluated; return True to end the training here.

        Args:
            metrics: "validation/<name>", the same on every rank, so that all decide alike.
        """
        return False

    def on_end(self, step: int, metrics: Mapping[str, float]) -> None:
        """Training is over; `metrics` are those of the best checkpoint, "test/<name>" among them."""


class AUROC(BinaryAUROC):
    """The area under the ROC curve; NaN of rows that are all of one class, for which torchmetrics says 0."""

    def compute(self) -> Tensor:  # type: ignore[override]  # as torchmetrics' own has it
        return super().compute() if _has_both_classes(self.target) else torch.tensor(torch.nan)


class AveragePrecision(BinaryAveragePrecision):
    """The average precision; NaN of rows that are all of one class."""

    def compute(self) -> Tensor:  # type: ignore[override]  # as torchmetrics' own has it
        return super().compute() if _has_both_classes(self.target) else torch.tensor(torch.nan)


def _has_both_classes(target: Tensor | list[Tensor]) -> bool:
    return len(torch.unique(dim_zero_cat(target))) > 1


class BinaryClassification(TrainTask):
    """A model of one logit per row, shape [rows], for a target of 0 and 1: cross entropy, AUROC."""

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(outputs, target, reduction="none")

    def predict(self, outputs: Tensor) -> Tensor:
        return torch.sigmoid(outputs)

    def metrics(self) -> dict[str, Metric]:
        return {
            "auroc": AUROC(),
            "average_precision": AveragePrecision(),
            "accuracy": BinaryAccuracy(),
        }


class MulticlassClassification(TrainTask):
    """A model of one logit per class, shape [rows, classes], for a target of class numbers: cross entropy.

    The module needs `len(features.target.classes)` outputs. Its predictions are probabilities, of that shape.
    """

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, target, reduction="none")

    def predict(self, outputs: Tensor) -> Tensor:
        return torch.softmax(outputs, dim=1)

    def metrics(self) -> dict[str, Metric]:
        return {"auroc": MacroAUROC(), "accuracy": Accuracy()}


class Regression(TrainTask):
    """A model of one number per row, shape [rows], for a target that is a number: squared error.

    `best_metric` is one of r2, rmse and mae.
    """

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        return functional.mse_loss(outputs, target, reduction="none")

    def predict(self, outputs: Tensor) -> Tensor:
        return outputs

    def metrics(self) -> dict[str, Metric]:
        return {"r2": R2(), "rmse": MeanSquaredError(squared=False), "mae": MeanAbsoluteError()}


class MacroAUROC(Metric):
    """The AUROC of each class against all others, averaged; NaN unless each class is among the rows.

    torchmetrics' own wants the number of classes beforehand, which a Task has no way to know.
    """

    higher_is_better = True
    full_state_update = False
    predictions: list[Tensor]
    targets: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("predictions", [], dist_reduce_fx="cat")
        self.add_state("targets", [], dist_reduce_fx="cat")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        self.predictions.append(prediction)
        self.targets.append(target)

    def compute(self) -> Tensor:
        predictions, targets = dim_zero_cat(self.predictions), dim_zero_cat(self.targets)
        num_classes = predictions.shape[1]
        if num_classes < 2 or len(torch.unique(targets)) < num_classes:
            return torch.tensor(float("nan"))
        return multiclass_auroc(predictions, targets, num_classes, average="macro")


class Accuracy(Metric):
    """The part of the rows whose most probable class is the target."""

    higher_is_better = True
    full_state_update = False
    hits_and_rows: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("hits_and_rows", torch.zeros(2, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        hits = prediction.argmax(dim=1) == target
        self.hits_and_rows += torch.stack([hits.sum(), torch.tensor(len(hits), device=hits.device)])

    def compute(self) -> Tensor:
        return self.hits_and_rows[0] / self.hits_and_rows[1]


class R2(Metric):
    """1 - squared error / the target's own spread around its mean; NaN if the target does not vary.

    torchmetrics' own sums in float32, where the spread of a target with a large mean drowns.
    """

    higher_is_better = True
    full_state_update = False
    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(4, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        wanted = target.double()
        error = wanted - prediction.double()
        rows = torch.ones_like(wanted)
        self.sums += torch.stack([rows, wanted, wanted**2, error**2]).sum(dim=1)

    def compute(self) -> Tensor:
        rows, total, squares, error = self.sums
        spread = squares - total**2 / rows
        varies = spread > 1e-14 * squares  # less is rounding
        return torch.where(varies, 1 - error / spread, torch.nan)
