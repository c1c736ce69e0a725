"""A rank that trains until the validation loss is low enough, and notes what each step took and sent."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from pipelines.flight_delays.model import Task
from sparktrain.config import TrainConfig
from sparktrain.dataset import open_dataset
from sparktrain.training.loop import Loop
from sparktrain.training.task import Callback
from sparktrain.world import World


class Spent(NamedTuple):
    """Up to now: seconds, and bytes that this host has sent."""

    seconds: float
    num_bytes: int

    @classmethod
    def read(cls, device: str) -> Spent:
        # of the namespace that this process is in, unlike /sys
        lines = Path("/proc/self/net/dev").read_text().splitlines()
        found = [line.split() for line in lines if line.strip().startswith(f"{device}:")]
        return cls(time.monotonic(), int(found[0][9]) if found else 0)


class Journal(Callback):
    """Ends the training at a validation loss.

    Attributes:
        steps: (step, seconds, bytes) of each, without logs, evaluations and saves.
        evaluations: (step, seconds since the start, loss).
    """

    def __init__(self, device: str, target_loss: float) -> None:
        self._device, self._target_loss = device, target_loss
        self.steps: list[tuple[int, float, int]] = []
        self.evaluations: list[tuple[int, float, float]] = []
        self._started = self._before = Spent.read(device)

    def on_event(self, event: Mapping[str, Any]) -> None:
        """Whatever the loop does between two steps ends with an event."""
        self._before = Spent.read(self._device)
        if (event["kind"], event.get("name")) == ("phase", "train"):
            self._started = self._before

    def on_step(self, step: int, model: nn.Module) -> None:
        now, before = Spent.read(self._device), self._before
        self.steps.append((step, now.seconds - before.seconds, now.num_bytes - before.num_bytes))
        self._before = now

    def on_evaluation(self, step: int, metrics: Mapping[str, float]) -> bool:
        self._before = Spent.read(self._device)
        loss = metrics["validation/loss"]
        self.evaluations.append((step, self._before.seconds - self._started.seconds, loss))
        return loss <= self._target_loss


@dataclass(frozen=True)
class Journaled(Task):
    journal: Journal | None = None

    def callbacks(self) -> list[Callback]:
        return [self.journal] if self.journal else []


def train_to_target(
    hidden_sizes: tuple[int, ...],
    dataset: Path,
    config: TrainConfig,
    directory: Path,
    device: str,
    target_loss: float,
) -> None:
    """Train a rank until `target_loss`; rank 0 leaves its journal as `journal.json` in `directory`.

    Args:
        device: of the network, whose bytes are counted.
    """
    world = World.from_environment()
    journal = Journal(device, target_loss)
    task = Journaled(hidden_sizes=hidden_sizes, dropout=0.0, journal=journal)
    Loop(task, open_dataset(dataset), config, world, directory / "saves", journal.on_event).run(None)
    if world.is_first:
        found = {"steps": journal.steps, "evaluations": journal.evaluations}
        (directory / "journal.json").write_text(json.dumps(found))
