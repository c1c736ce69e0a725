"""The training loop of one rank. It names its steps; each is a function below or a module beside."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sparktrain.config import TrainConfig
from sparktrain.dataset import Dataset, Stream
from sparktrain.errors import NonFiniteLoss, StepFailed
from sparktrain.training import checkpoint as checkpoints
from sparktrain.training.checkpoint import Checkpoint
from sparktrain.training.evaluate import Evaluation, evaluate, rows_to_device
from sparktrain.training.strategies import wrap
from sparktrain.training.task import Batch, TrainTask
from sparktrain.world import World

logger = logging.getLogger(__name__)

Emit = Callable[[Mapping[str, Any]], None]
LOG_EVERY_STEPS = 10


@dataclass(frozen=True)
class Outcome:
    """What a rank knows when it is done; the same on every rank but for `test`'s rows.

    Attributes:
        steps: optimizer updates of the whole run, earlier attempts included.
        metrics: "validation/…" and "test/…" of the best checkpoint.
        best: directory of that checkpoint.
        test: the test split's evaluation, None if the split is empty.
    """

    steps: int
    metrics: dict[str, float]
    best: Path
    test: Evaluation | None


class Loop:
    """Everything a rank holds while it trains."""

    def __init__(
        self, task: TrainTask, dataset: Dataset, config: TrainConfig, world: World, directory: Path, emit: Emit
    ) -> None:
        self.task, self.dataset, self.config, self.world = task, dataset, config, world
        self.directory, self.emit = directory, emit
        torch.manual_seed(config.seed)  # the same weights on every rank
        self.model = task.build_model(dataset.features).to(world.device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.parallel = wrap(config.strategy, self.model, world)
        torch.manual_seed(_rank_seed(config.seed, world.rank, 0))  # from here on: dropout, another on every rank
        self.stream: Stream = dataset.stream(
            "train", config.global_batch_size, num_lanes=config.num_lanes, world=world, seed=config.seed, tail="drop"
        )
        self.total_steps = self.stream.steps_per_epoch * config.epochs
        self.step = 0
        self.best: dict[str, Any] | None = None
        self.window = Window(world)

    def run(self, resume_from: Checkpoint | None) -> Outcome:
        if resume_from is not None:
            self._restore(resume_from)
        self.emit({"kind": "phase", "name": "train"})
        self._report_progress()
        while self.stream.epoch < self.config.epochs:
            self._train_epoch()
            self._save(self._validate())
        return self._finish()

    def _train_epoch(self) -> None:
        self.window.restart(self.stream)
        for batch in self.stream:
            try:
                self._update(rows_to_device(batch, self.world.device))
            except Exception as error:
                raise StepFailed(self.step + 1) from error
            self.step += 1
            every = self.config.checkpoint_every_steps
            # The epoch's last step is saved after its validation, with the metrics.
            within_epoch = self.stream.step < self.stream.steps_per_epoch
            checkpoint_due = every is not None and self.step % every == 0 and within_epoch
            if self.step % LOG_EVERY_STEPS == 0 or checkpoint_due:
                self._log_window()
            if checkpoint_due:
                self._save({})
        self._log_window()

    def _update(self, batch: Batch) -> None:
        """One optimizer update from this rank's rows of the global batch."""
        rate = learning_rate(self.step, self.total_steps, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        outputs = self.parallel(batch)
        losses = self.task.loss(outputs, batch[self.dataset.features.target.name])
        # Ranks can hold different numbers of rows. DDP averages over ranks, so the sum over this rank's rows times
        # size / G becomes the mean over the whole global batch.
        total = (losses * batch["row_weight"]).sum()
        (total * (self.world.size / self.config.global_batch_size)).backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_gradient_norm or math.inf)
        self.optimizer.step()
        self.window.add(total.detach(), norm, rate)

    def _log_window(self) -> None:
        values = self.window.close(self.stream, self.config.global_batch_size)
        if not values:
            return
        if not math.isfinite(values["train/loss"]):  # summed over all ranks, so that all of them stop here
            raise StepFailed(self.step) from NonFiniteLoss(self.step, values["train/loss"])
        if self.world.is_first:
            self.emit({"kind": "metrics", "step": self.step, "values": values})
            self._report_progress()

    def _report_progress(self) -> None:
        if self.world.is_first:
            self.emit(
                {"kind": "progress", "step": self.step, "num_steps": self.total_steps, "epoch": self.stream.epoch}
            )

    def _validate(self) -> dict[str, float]:
        if self.dataset.num_rows("validation") == 0:
            return {}
        metrics = {f"validation/{name}": value for name, value in self._evaluate("validation").metrics.items()}
        if self.world.is_first:
            self.emit({"kind": "metrics", "step": self.step, "values": metrics})
        return metrics

    def _evaluate(self, split: str) -> Evaluation:
        self.emit({"kind": "phase", "name": split})
        config = self.config
        return evaluate(
            self.model, self.task, self.dataset, split, config.global_batch_size, config.num_lanes, self.world
        )

    def _save(self, metrics: dict[str, float]) -> None:
        """Commit a checkpoint; after a validation, compare with the best so far."""
        name = f"validation/{self.config.best_metric}"
        path = self.directory / checkpoints.checkpoint_name(self.step, self.world.attempt)
        is_epoch_end = self.stream.step == 0
        if is_epoch_end and (name not in metrics or self.best is None or metrics[name] > self.best["metrics"][name]):
            self.best = {"step": self.step, "checkpoint": path.name, "metrics": metrics}
        generators = self._gather_generators()
        if self.world.is_first:
            checkpoints.save_checkpoint(
                path,
                step=self.step,
                model=self.model,
                optimizer=self.optimizer,
                generators=generators,
                state={"stream": self.stream.state_dict(), "best": self.best, "world_size": self.world.size},
            )
            best = self.directory / self.best["checkpoint"] if self.best else None
            checkpoints.delete_old(self.directory, self.config.keep_checkpoints, also_keep=best)
            self.emit({"kind": "checkpoint", "step": self.step, "path": path.name})
        self._wait_for_all()

    def _restore(self, saved: Checkpoint) -> None:
        checkpoints.load_weights(saved.path, self.model)
        checkpoints.load_optimizer(saved.path, self.model, self.optimizer)
        self.stream.load_state_dict(dict(saved.state["stream"]))
        self.step = saved.step
        self.best = saved.state["best"]
        generators = checkpoints.load_generators(saved.path)
        if saved.state["world_size"] == self.world.size:
            torch.set_rng_state(generators[f"rank-{self.world.rank}"])
        else:  # other ranks than before: no state to continue, so a fresh one that depends on the place alone
            torch.manual_seed(_rank_seed(self.config.seed, self.world.rank, self.step))
        self.emit({"kind": "resumed", "step": self.step})

    def _gather_generators(self) -> dict[str, Tensor]:
        states: list[Any] = [torch.get_rng_state()]
        if self.world.size > 1:
            states = [None] * self.world.size
            dist.all_gather_object(states, torch.get_rng_state())
        return {f"rank-{rank}": state for rank, state in enumerate(states)}

    def _wait_for_all(self) -> None:
        if self.world.size > 1:
            dist.barrier()

    def _finish(self) -> Outcome:
        assert self.best is not None, "every epoch ends with a save"
        best = self.directory / self.best["checkpoint"]
        metrics: dict[str, float] = dict(self.best["metrics"])
        test: Evaluation | None = None
        if self.dataset.num_rows("test"):
            checkpoints.load_weights(checkpoints.verify_checkpoint(best).path, self.model)
            test = self._evaluate("test")
            metrics |= {f"test/{name}": value for name, value in test.metrics.items()}
        return Outcome(self.step, metrics, best, test)


@dataclass
class Window:
    """What is logged together: sums since the last log."""

    world: World
    steps: int = 0
    rate: float = 0.0
    loss: Tensor | None = None
    norms: list[Tensor] = field(default_factory=list)
    started: float = 0.0
    waited: float = 0.0

    def restart(self, stream: Stream) -> None:
        self.steps, self.loss, self.norms = 0, None, []
        self.started, self.waited = time.monotonic(), stream.wait_seconds

    def add(self, loss: Tensor, norm: Tensor, rate: float) -> None:
        self.steps += 1
        self.loss = loss.double() if self.loss is None else self.loss + loss.double()
        self.norms.append(norm)
        self.rate = rate

    def close(self, stream: Stream, global_batch_size: int) -> dict[str, float]:
        """Return means over the window (the loss over all ranks), and start the next; empty after no step."""
        if self.loss is None:
            return {}
        if self.world.size > 1:
            dist.all_reduce(self.loss)
        seconds = time.monotonic() - self.started
        rows = self.steps * global_batch_size
        values = {
            "train/loss": float(self.loss) / rows,
            "train/learning_rate": self.rate,
            "train/gradient_norm": float(torch.stack(self.norms).mean()),
            "train/rows_per_second": rows / seconds,
            "train/data_wait_fraction": (stream.wait_seconds - self.waited) / seconds,
        }
        self.restart(stream)
        return values


def learning_rate(step: int, total_steps: int, config: TrainConfig) -> float:
    """Linear warm-up, then half a cosine down to zero: a function of the step alone, so resuming needs no state."""
    warmup = round(total_steps * config.warmup_fraction)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(total_steps - warmup, 1)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))


def _rank_seed(seed: int, rank: int, step: int) -> int:
    return (seed * 1_000_003 + rank + 1) * 1_000_003 + step
