"""The perceptron of `flight_delays`, whose one number is the expected delay."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pipelines.flight_delays.model import FlightTask
from sparktrain.training.task import Regression

MINUTES_PER_HOUR = 60


@dataclass(frozen=True)
class Task(FlightTask, Regression):
    """Predicts the minutes by which a flight arrives late, on average.

    Inside it counts in hours: a network that starts around zero is quicker to find numbers of about one. The
    loss is in hours squared, what it predicts and the metrics of that are in minutes.
    """

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        return super().loss(outputs, target / MINUTES_PER_HOUR)

    def predict(self, outputs: Tensor) -> Tensor:
        return super().predict(outputs) * MINUTES_PER_HOUR
