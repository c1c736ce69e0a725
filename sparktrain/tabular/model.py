"""The Task for rows of columns: two classes, several, or a number; for those who bring no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn
from torchmetrics import Metric

from sparktrain.features import FittedFeatures
from sparktrain.tabular.network import TabularNetwork
from sparktrain.training.task import BinaryClassification, MulticlassClassification, Regression, TrainTask

Kind = Literal["binary", "multiclass", "regression"]


_KINDS: dict[str, Any] = {  # whose methods do not look at self
    "binary": BinaryClassification,
    "multiclass": MulticlassClassification,
    "regression": Regression,
}


@dataclass(frozen=True)
class Task(TrainTask):
    """Predicts one target of whatever kind with a `TabularNetwork`.

    Attributes:
        kind: "binary" gives a probability [rows], "multiclass" one for each class [rows, classes],
            "regression" a number [rows]; the same as the target's.
        hidden_sizes: width of each hidden layer; none: a linear model.
        embedding_size: length of each categorical column's vector.
        dropout: fraction of hidden values set to zero while training.
        target_mean: of a regression: what the network's 0 stands for, in the target's units.
        target_scale: of a regression: what the network's 1 is more than its 0, in the target's units; the
            target's spread makes a learning rate mean the same for metres and millimetres.
        scaling: of vectors by name: mean and scale of each of their numbers, flattened.
    """

    kind: Kind = "binary"
    hidden_sizes: tuple[int, ...] = (128, 64)
    embedding_size: int = 8
    dropout: float = 0.1
    target_mean: float = 0.0
    target_scale: float = 1.0
    scaling: Mapping[str, tuple[Sequence[float], Sequence[float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(f"kind is {self.kind!r}; it is one of {', '.join(_KINDS)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it is at least 0 and below 1")
        if self.target_scale <= 0:
            raise ValueError(f"target_scale is {self.target_scale}; it is above 0")

    def build_model(self, features: FittedFeatures) -> nn.Module:
        """Build the network.

        Raises:
            ValueError: the target is of another kind, or a feature is one that the network can't take.
        """
        target = features.target
        if target.kind != self.kind:
            raise ValueError(
                f"the target `{target.name}` is {target.kind} and kind is {self.kind}: "
                f"set train.model.kind={target.kind}"
            )
        num_outputs = len(target.classes) if self.kind == "multiclass" else 1
        if self.kind == "multiclass" and num_outputs == 1:
            raise ValueError(
                f"every row has the `{target.name}` {target.classes[0]}: there is nothing to learn"
            )
        return TabularNetwork(
            features, num_outputs, self.hidden_sizes, self.embedding_size, self.dropout, self.scaling
        )

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        if self.kind == "regression":
            target = (target - self.target_mean) / self.target_scale
        losses: Tensor = _KINDS[self.kind].loss(self, outputs, target)
        return losses

    def predict(self, outputs: Tensor) -> Tensor:
        prediction: Tensor = _KINDS[self.kind].predict(self, outputs)
        if self.kind == "regression":
            return prediction * self.target_scale + self.target_mean
        return prediction

    def metrics(self) -> dict[str, Metric]:
        found: dict[str, Metric] = _KINDS[self.kind].metrics(self)
        return found
