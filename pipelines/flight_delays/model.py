"""The model: an embedding for each categorical column, beside the numeric ones, through a perceptron."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from sparktrain.features import FittedFeatures
from sparktrain.training.task import Batch, BinaryClassification, TrainTask


@dataclass(frozen=True)
class FlightTask(TrainTask):
    """What learns from a flight, whatever is to be predicted of it.

    Attributes:
        hidden_sizes: width of each hidden layer.
        embedding_size: length of each categorical column's vector.
        dropout: fraction of hidden values set to zero while training.
    """

    hidden_sizes: tuple[int, ...] = (256, 128)
    embedding_size: int = 8
    dropout: float = 0.1

    def build_model(self, features: FittedFeatures) -> nn.Module:
        return FlightModel(features, self.hidden_sizes, self.embedding_size, self.dropout)


@dataclass(frozen=True)
class Task(FlightTask, BinaryClassification):
    """Predicts the probability that a flight arrives late."""


class FlightModel(nn.Module):
    """Takes a batch of columns, returns one number per row, shape [rows]: here the logit of being late."""

    def __init__(
        self, features: FittedFeatures, hidden_sizes: tuple[int, ...], embedding_size: int, dropout: float
    ) -> None:
        super().__init__()
        self.numeric = [feature.name for feature in features.numeric]
        self.embeddings = nn.ModuleDict(
            {
                feature.name: nn.Embedding(feature.num_codes, embedding_size)
                for feature in features.categorical
            }
        )
        for embedding in self.embeddings.values():
            nn.init.normal_(embedding.weight, std=0.1)
        width = len(self.numeric) + embedding_size * len(self.embeddings)
        layers: list[nn.Module] = []
        for given, wanted in pairwise([width, *hidden_sizes]):
            layers += [nn.Linear(given, wanted), nn.ReLU(), nn.Dropout(dropout)]
        self.perceptron = nn.Sequential(*layers, nn.Linear([width, *hidden_sizes][-1], 1))

    def forward(self, batch: Batch) -> Tensor:
        columns = [batch[name].unsqueeze(1) for name in self.numeric]
        columns += [embedding(batch[name]) for name, embedding in self.embeddings.items()]
        return self.perceptron(torch.cat(columns, dim=1)).squeeze(1)
