"""When a training is over, and which of its states is the best."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparktrain.config import TrainConfig
from sparktrain.errors import MetricWithoutDirection
from sparktrain.training.task import TrainTask


class Ending:
    """Counts towards each end that the configuration sets; all ranks count the same.

    Attributes:
        total_steps: optimizer updates, if nothing ends the training earlier.
    """

    def __init__(self, config: TrainConfig, steps_per_epoch: int) -> None:
        self._config = config
        self.total_steps = steps_per_epoch * config.epochs
        if config.max_steps is not None:
            self.total_steps = min(self.total_steps, config.max_steps)
        self._seconds, self._evaluations_without_best, self._is_stopped = 0.0, 0, False

    def is_reached(self, step: int, epoch: int) -> bool:
        patience, most = self._config.early_stopping_evaluations, self._config.max_seconds
        return (
            self._is_stopped
            or step >= self.total_steps
            or epoch >= self._config.epochs
            or (patience is not None and self._evaluations_without_best >= patience)
            or (most is not None and self._seconds >= most)
        )

    def add_seconds(self, seconds: float) -> None:
        """Count time of training; the same number on every rank."""
        if self._config.max_seconds is not None:  # else two equal runs would have unequal checkpoints
            self._seconds += seconds

    def add_evaluation(self, *, is_best: bool) -> None:
        self._evaluations_without_best = 0 if is_best else self._evaluations_without_best + 1

    def stop(self) -> None:
        """End it: a callback has said so, on all ranks."""
        self._is_stopped = True

    def state(self) -> dict[str, Any]:
        return {
            "seconds": self._seconds,
            "evaluations_without_best": self._evaluations_without_best,
            "is_stopped": self._is_stopped,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._seconds = state["seconds"]
        self._evaluations_without_best = state["evaluations_without_best"]
        self._is_stopped = state["is_stopped"]


def is_more_better(task: TrainTask, metric: str) -> bool:
    """Whether more of a validation metric is better; less of the loss is.

    Raises:
        MetricWithoutDirection: the metric does not say.
    """
    if metric == "loss":
        return False
    said = task.metrics()[metric].higher_is_better
    if said is None:
        raise MetricWithoutDirection(metric)
    return bool(said)
