"""What is logged together: sums over the steps since the last log, of all ranks in one exchange."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from sparktrain.dataset import Stream
from sparktrain.training.pace import RankTime, Straggler, StragglerWatch, WorkClock, lost_fraction
from sparktrain.world import World


@dataclass
class Window:
    """Sums since the last log.

    Attributes:
        straggler: what the last `close` found out about a slow rank; None when there is nothing new.
    """

    world: World
    clock: WorkClock
    watch: StragglerWatch = field(default_factory=StragglerWatch)
    steps: int = 0
    skipped: int = 0
    rate: float = 0.0
    loss_and_rows: Tensor | None = None
    norms: list[Tensor] = field(default_factory=list)
    started: float = 0.0
    waited: float = 0.0
    worked: float = 0.0
    straggler: Straggler | None = None

    def restart(self, stream: Stream) -> None:
        self.steps, self.skipped, self.loss_and_rows, self.norms = 0, 0, None, []
        self.started, self.waited = time.monotonic(), stream.wait_seconds
        self.worked = self.clock.seconds

    def add(self, loss: Tensor, rows: Tensor, norm: Tensor, rate: float) -> None:
        """Add a step: the sum of its losses, and how many rows these are; padding is none."""
        self.steps += 1
        step = torch.stack([loss.double(), rows.double()])
        self.loss_and_rows = step if self.loss_and_rows is None else self.loss_and_rows + step
        self.norms.append(norm)
        self.rate = rate

    def skip(self) -> None:
        """Count a step that changed nothing; its loss is no number and is left out of the mean."""
        self.skipped += 1

    def close(self, stream: Stream, global_batch_size: int) -> dict[str, float]:
        """Return means over the window (the loss over all ranks), and start the next; empty after no step."""
        self.straggler = None
        values = {"train/steps_skipped": float(self.skipped)} if self.skipped else {}
        if self.loss_and_rows is None:
            self.restart(stream)
            return values
        seconds = time.monotonic() - self.started
        waited = stream.wait_seconds - self.waited
        (loss, rows), times, seconds_of_all = self._exchange(seconds, waited)
        values |= {
            "train/loss": loss / max(rows, 1.0),  # all rows of a step can be masked
            "train/learning_rate": self.rate,
            "train/gradient_norm": float(torch.stack(self.norms).mean()),
            "train/rows_per_second": rows / seconds,
            "train/data_wait_fraction": waited / seconds,
        }
        if self.world.size > 1:
            values["train/straggler_fraction"] = lost_fraction(times, seconds_of_all)
            self.straggler = self.watch.add(times, seconds_of_all, self.steps + self.skipped)
        if math.isfinite(rows) and (missing := self.steps * global_batch_size - round(rows)):
            values["train/rows_masked"] = float(missing)
        self.restart(stream)
        return values

    def _exchange(self, seconds: float, waited: float) -> tuple[list[float], list[RankTime], float]:
        """Sum loss and rows over the ranks; with them goes what each rank did, in one exchange.

        Returns:
            [loss, rows]; the time of each rank; the mean of `seconds` over the ranks; the same on all.
        """
        assert self.loss_and_rows is not None
        by_rank = torch.zeros(self.world.size, 3, dtype=torch.float64)
        by_rank[self.world.rank] = torch.tensor([waited, self.clock.seconds - self.worked, seconds])
        # [2 + 3 * size]: every rank fills in places of its own
        packed = torch.cat([self.loss_and_rows, by_rank.flatten().to(self.loss_and_rows.device)])
        if self.world.size > 1:
            dist.all_reduce(packed)
        sums, found = packed[:2].tolist(), packed[2:].view(-1, 3).tolist()
        times = [RankTime(data, compute) for data, compute, _ in found]
        return sums, times, sum(row[2] for row in found) / len(found)
