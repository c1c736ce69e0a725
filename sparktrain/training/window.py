"""What is logged together: sums over the steps since the last log."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from sparktrain.dataset import Stream
from sparktrain.world import World


@dataclass
class Window:
    """Sums since the last log."""

    world: World
    steps: int = 0
    rate: float = 0.0
    loss_and_rows: Tensor | None = None
    norms: list[Tensor] = field(default_factory=list)
    started: float = 0.0
    waited: float = 0.0

    def restart(self, stream: Stream) -> None:
        self.steps, self.loss_and_rows, self.norms = 0, None, []
        self.started, self.waited = time.monotonic(), stream.wait_seconds

    def add(self, loss: Tensor, rows: Tensor, norm: Tensor, rate: float) -> None:
        """Add a step: the sum of its losses, and how many rows these are; padding is none."""
        self.steps += 1
        step = torch.stack([loss.double(), rows.double()])
        self.loss_and_rows = step if self.loss_and_rows is None else self.loss_and_rows + step
        self.norms.append(norm)
        self.rate = rate

    def close(self, stream: Stream, global_batch_size: int) -> dict[str, float]:
        """Return means over the window (the loss over all ranks), and start the next; empty after no step."""
        if self.loss_and_rows is None:
            return {}
        if self.world.size > 1:
            dist.all_reduce(self.loss_and_rows)
        seconds = time.monotonic() - self.started
        loss, rows = self.loss_and_rows.tolist()
        values = {
            "train/loss": loss / max(rows, 1.0),  # all rows of a step can be masked
            "train/learning_rate": self.rate,
            "train/gradient_norm": float(torch.stack(self.norms).mean()),
            "train/rows_per_second": rows / seconds,
            "train/data_wait_fraction": (stream.wait_seconds - self.waited) / seconds,
        }
        if missing := self.steps * global_batch_size - round(rows):
            values["train/rows_masked"] = float(missing)
        self.restart(stream)
        return values
