"""What of a run's metrics MLflow already has, so that no step of a key is logged twice."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from sparktrain.runs.events import METRIC_KINDS

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

NONFINITE = "_nonfinite"


class Position:
    """The last step that MLflow has of each key, and how many values of it were not finite."""

    def __init__(self) -> None:
        self.last_step: dict[str, int] = {}
        self.nonfinite: dict[str, int] = {}

    @classmethod
    def of(cls, client: MlflowClient, run_id: str) -> Position:
        position = cls()
        for key in client.get_run(run_id).data.metrics:
            last = max(client.get_metric_history(run_id, key), key=lambda metric: metric.step)
            base = key.removesuffix(NONFINITE)
            if base != key:
                position.nonfinite[base] = int(last.value)
            position.last_step[base] = max(last.step, position.last_step.get(base, -1))
        return position

    def metrics_of(self, event: Mapping[str, Any]) -> Iterator[Metric]:
        from mlflow.entities import Metric

        if event.get("kind") not in METRIC_KINDS:
            return
        step, milliseconds = int(event["step"]), int(event["time"] * 1000)
        for key, value in event["values"].items():
            if step <= self.last_step.get(key, -1):
                continue
            self.last_step[key] = step
            if math.isfinite(value):
                yield Metric(key, float(value), milliseconds, step)
            else:
                self.nonfinite[key] = self.nonfinite.get(key, 0) + 1
                yield Metric(key + NONFINITE, self.nonfinite[key], milliseconds, step)
