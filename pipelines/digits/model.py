"""The model: three small convolutions, which halve the image twice, before a linear layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparktrain.features import FittedFeatures
from sparktrain.training.task import Batch, MulticlassClassification

INK = 16  # the highest value of a pixel


@dataclass(frozen=True)
class Task(MulticlassClassification):
    """Predicts the probability of each digit.

    Attributes:
        channels: of the first convolution, and of the other two.
        dropout: fraction of the values before the last layer set to zero while training; after the second
            convolution half as large a fraction of the channels.
    """

    channels: tuple[int, int] = (16, 64)
    dropout: float = 0.5

    def build_model(self, features: FittedFeatures) -> nn.Module:
        return DigitModel(features, self.channels, self.dropout)


class DigitModel(nn.Module):
    """Takes a batch with the images, uint8 [rows, height, width, 1]; returns logits [rows, classes]."""

    def __init__(self, features: FittedFeatures, channels: tuple[int, int], dropout: float) -> None:
        super().__init__()
        (self.image,) = features.outputs
        height, width, grey = self.image.shape
        few, many = channels
        self.layers = nn.Sequential(
            nn.Conv2d(grey, few, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(few, many, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Dropout2d(dropout / 2),
            nn.Conv2d(many, many, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(many * (height // 4) * (width // 4), len(features.target.classes)),
        )

    def forward(self, batch: Batch) -> Tensor:
        pixels = batch[self.image.name].permute(0, 3, 1, 2)  # [rows, 1, height, width]
        return self.layers(pixels.to(torch.float32) / INK)
