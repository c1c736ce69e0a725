"""What is logged together: sums over the steps since the last log, of all ranks in one exchange."""

from __future__ import annotations

import math
import resource
import sys
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
        elapsed: seconds that the last window took, the same number on all ranks.
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
    communicated: float = 0.0
    straggler: Straggler | None = None
    elapsed: float = 0.0

    def restart(self, stream: Stream) -> None:
        self.steps, self.skipped, self.loss_and_rows, self.norms = 0, 0, None, []
        self.started, self.waited = time.monotonic(), stream.wait_seconds
        self.worked, self.communicated = self.clock.seconds, self.clock.communication_seconds

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
        if not self.steps and not self.skipped:
            self.restart(stream)
            return {}
        found = self._exchange(stream)  # also by a rank that has skipped all its steps: others may not have
        skipped = max(rank["skipped"] for rank in found.ranks)
        values = {"train/steps_skipped": skipped} if skipped else {}
        rows, seconds = found.rows, found.mean("seconds")
        self.elapsed = seconds
        if not any(rank["steps"] for rank in found.ranks):
            self.restart(stream)
            return values
        times = [RankTime(rank["waited"], rank["worked"]) for rank in found.ranks]
        values |= {
            "train/loss": found.loss / max(rows, 1.0),  # all rows of a step can be masked
            "train/learning_rate": self.rate,
            "train/gradient_norm": found.mean("norm"),
            "train/rows_per_second": rows / seconds,
            "train/data_wait_fraction": found.mean("waited") / seconds,
            # Steps per second over those with batches that are always there; of the rank that waits most.
            "train/data_headroom": min(1 - rank["waited"] / rank["seconds"] for rank in found.ranks),
            "train/memory_bytes": max(rank["memory"] for rank in found.ranks),
        }
        if self.world.size > 1:
            values["train/communication_fraction"] = found.mean("communicated") / seconds
            values["train/straggler_fraction"] = lost_fraction(times, seconds)
            self.straggler = self.watch.add(times, seconds, self.steps + self.skipped)
        agree = (
            len({rank["steps"] for rank in found.ranks}) == 1
        )  # else what is missing may be a skipped step's
        if agree and math.isfinite(rows) and (missing := self.steps * global_batch_size - round(rows)):
            values["train/rows_masked"] = float(missing)
        self.restart(stream)
        return values

    def _exchange(self, stream: Stream) -> Exchanged:
        """Sum loss and rows over the ranks; with them goes what each rank did, in one exchange."""
        loss_and_rows = self.loss_and_rows
        if loss_and_rows is None:
            loss_and_rows = torch.zeros(2, dtype=torch.float64, device=self.world.device)
        own = {
            "waited": stream.wait_seconds - self.waited,
            "worked": self.clock.seconds - self.worked,
            "communicated": self.clock.communication_seconds - self.communicated,
            "seconds": time.monotonic() - self.started,
            "memory": memory_bytes(self.world),
            "norm": float(torch.stack(self.norms).mean()) if self.norms else 0.0,
            "steps": float(self.steps),
            "skipped": float(self.skipped),
        }
        device = loss_and_rows.device
        by_rank = torch.zeros(self.world.size, len(own), dtype=torch.float64)
        by_rank[self.world.rank] = torch.tensor(list(own.values()), dtype=torch.float64)
        # [2 + values * size]: every rank fills in places of its own
        packed = torch.cat([loss_and_rows, by_rank.flatten().to(device)])
        if self.world.size > 1:
            dist.all_reduce(packed)
        loss, rows = packed[:2].tolist()
        ranks = [dict(zip(own, row, strict=True)) for row in packed[2:].view(self.world.size, -1).tolist()]
        return Exchanged(loss, rows, ranks)


@dataclass(frozen=True)
class Exchanged:
    """Sums over all ranks, and of each rank what it measured; the same on all of them."""

    loss: float
    rows: float
    ranks: list[dict[str, float]]

    def mean(self, name: str) -> float:
        return sum(rank[name] for rank in self.ranks) / len(self.ranks)


def memory_bytes(world: World) -> float:
    """Return the most memory that this rank ever had: its GPU's, or the process's."""
    if world.device.startswith("cuda"):
        return float(torch.cuda.max_memory_allocated(world.device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)
