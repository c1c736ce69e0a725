"""The training loop of one rank. It names its steps; each is a function below or a module beside."""

from __future__ import annotations

import logging
import math
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
import torch.distributed as dist
from torch import nn

from sparktrain import pulse
from sparktrain.config import DataConfig, TrainConfig
from sparktrain.dataset import Dataset, Stream
from sparktrain.errors import NonFiniteLoss, StepFailed
from sparktrain.faults import FaultPlan
from sparktrain.storage import AnyPath
from sparktrain.training.checkpoint import Checkpoint, open_checkpoint
from sparktrain.training.checkpoint_state import load_weights, restore, settings_of, tensors_of
from sparktrain.training.evaluate import Evaluation, evaluate, rows_to_device, weighted_losses
from sparktrain.training.finite import GuardedStep, refuse_non_finite_state
from sparktrain.training.generators import generator_state, restore_generator, seed_rank
from sparktrain.training.pace import WorkClock
from sparktrain.training.saving import Emit, Saver
from sparktrain.training.strategies import wrap
from sparktrain.training.task import Batch, TrainTask
from sparktrain.training.window import Window
from sparktrain.world import World

logger = logging.getLogger(__name__)

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
    best: AnyPath
    test: Evaluation | None


class Loop:
    """Everything a rank holds while it trains."""

    def __init__(
        self,
        task: TrainTask,
        dataset: Dataset,
        config: TrainConfig,
        world: World,
        directory: AnyPath,
        emit: Emit,
        data: DataConfig | None = None,
        faults: FaultPlan | None = None,
    ) -> None:
        self.task, self.dataset, self.config, self.world = task, dataset, config, world
        self.stream_options = (data or DataConfig()).stream_options
        self.directory, self.emit, self.faults = directory, emit, faults
        torch.manual_seed(config.seed)  # the same weights on every rank
        self.model = task.build_model(dataset.features).to(world.device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.parallel = wrap(config.strategy, self.model, world)
        seed_rank(world, config.seed, step=0)  # from here on: dropout, another on every rank
        self.stream: Stream = dataset.stream(
            "train",
            config.global_batch_size,
            num_lanes=config.num_lanes,
            world=world,
            seed=config.seed,
            tail="drop",
            **self.stream_options,
        )
        self.total_steps = self.stream.steps_per_epoch * config.epochs
        self.step = 0
        self.saver = Saver(directory, config, world, emit)
        self.window = Window(world, WorkClock(self.model, self.parallel))
        self.guard = GuardedStep(config.on_nonfinite, self.model)
        self.masked: dict[str, str] = {}

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
            self.window.clock.start()
            pulse.beat(self.step)
            try:
                if self.faults is not None:
                    self.faults.strike(self.world, self.step + 1, batch)
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
        self.guard.begin()
        outputs = self.parallel(batch)
        losses, _ = weighted_losses(self.task, self.dataset.features, outputs, batch)
        # Ranks can hold different numbers of rows. DDP averages over ranks, so the sum over this rank's rows
        # times size / G becomes the mean over the whole global batch. G and not the batch's weights: they
        # are 1 on average over all training rows, and a batch of heavy rows is to count for more.
        total = losses.sum()
        mean = total * (self.world.size / self.config.global_batch_size)
        self.guard.backward(mean)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_gradient_norm or math.inf)
        if self.guard.must_skip(norm, self.step + 1):
            self.window.skip()
            return
        self.optimizer.step()
        self.window.add(total.detach(), batch["row_weight"].sum(), norm, rate)

    def _log_window(self) -> None:
        values = self.window.close(self.stream, self.config.global_batch_size)
        self._tell_masked(self.stream.masked)
        if not values:
            return
        # Both are of all ranks together, so that all of them stop here. A finite loss can have an infinite
        # gradient (of a square root at zero, say), which has ruined the weights already.
        for name in ("train/loss", "train/gradient_norm"):
            if not math.isfinite(values.get(name, 0.0)):
                raise StepFailed(self.step) from NonFiniteLoss(self.step, values[name], what=_NAMES[name])
        self._tell_straggler()
        if self.world.is_first:
            self.emit({"kind": "metrics", "step": self.step, "values": values})
            self._report_progress()

    def _report_progress(self) -> None:
        if self.world.is_first:
            progress = {"step": self.step, "num_steps": self.total_steps, "epoch": self.stream.epoch}
            self.emit({"kind": "progress", **progress})

    def _validate(self) -> dict[str, float]:
        if self.dataset.num_rows("validation") == 0:
            return {}
        found = self._evaluate("validation").metrics
        metrics = {f"validation/{name}": value for name, value in found.items()}
        if self.world.is_first:
            self.emit({"kind": "metrics", "step": self.step, "values": metrics})
        return metrics

    def _evaluate(self, split: str) -> Evaluation:
        self.emit({"kind": "phase", "name": split})
        self._agree_on_buffers()
        config = self.config
        sizes = config.global_batch_size, config.num_lanes
        found = evaluate(self.model, self.task, self.dataset, split, *sizes, self.world, self.stream_options)
        self._tell_masked(found.masked)
        return found

    def _tell_masked(self, masked: Mapping[str, str]) -> None:
        """Name what this rank could not read; ranks have row groups of their own."""
        if new := {where: why for where, why in masked.items() if where not in self.masked}:
            self.masked |= new
            self.emit({"kind": "masked", "rank": self.world.rank, "row_groups": new})

    def _tell_straggler(self) -> None:
        """All ranks know who is slow; the slow one says it, since it knows its host."""
        found = self.window.straggler
        if found is not None and found.rank == self.world.rank:
            self.emit({"kind": "straggler", "host": socket.gethostname(), **asdict(found)})

    def _agree_on_buffers(self) -> None:
        """Take rank 0's running statistics, which a checkpoint holds too: each rank counts its own."""
        if self.world.size > 1:
            for buffer in self.model.buffers():
                dist.broadcast(buffer, src=0)

    def _save(self, metrics: dict[str, float]) -> None:
        """Take a checkpoint; after a validation, compare with the best so far."""
        pulse.beat(self.step)
        self._agree_on_buffers()  # any rank may be the one that writes them
        self.saver.wait()  # what became of the one before says which is the best so far
        refuse_non_finite_state(self.model, self.optimizer, self.world, self.step)
        best, is_epoch_end = self.saver.best, self.stream.step == 0
        if is_epoch_end and self._is_best(metrics):
            name = self.saver.name(self.step)
            best = {"step": self.step, "checkpoint": name, "metrics": _to_plain(metrics)}
        state = {
            "stream": self.stream.state_dict(),
            "best": best,
            "world_size": self.world.size,
            "optimizer": settings_of(self.model, self.optimizer),
            "scheduler": None,  # the learning rate is a function of the step
        }
        generator = generator_state(self.world)
        self.saver.save(self.step, tensors_of(self.model, self.optimizer, generator, self.world.rank), state)

    def _is_best(self, metrics: Mapping[str, float]) -> bool:
        name = f"validation/{self.config.best_metric}"
        if self.saver.best is None or name not in metrics:
            return True
        best = float(self.saver.best["metrics"].get(name, "nan"))
        return metrics[name] > best or math.isnan(best)

    def _restore(self, saved: Checkpoint) -> None:
        same_ranks = saved.state["world_size"] == self.world.size
        generator = restore(saved, self.model, self.optimizer, self.world.rank if same_ranks else None)
        for group in self.optimizer.param_groups:
            # may be another one than in the save, like the rate
            group["weight_decay"] = self.config.weight_decay
        self.stream.load_state_dict(dict(saved.state["stream"]))
        self.step, self.saver.best = saved.step, saved.state["best"]
        if generator is not None:
            restore_generator(generator, self.world)
        else:  # other ranks than before: no state to continue, so a fresh one that depends on the place alone
            seed_rank(self.world, self.config.seed, self.step)
        self.emit({"kind": "resumed", "step": self.step})

    def _finish(self) -> Outcome:
        self.saver.wait()
        best = self.saver.best
        if best is None:  # every epoch ends with a save
            assert self.saver.last_error is not None
            raise self.saver.last_error
        path = self.directory / best["checkpoint"]
        metrics = {name: float(value) for name, value in best["metrics"].items()}
        test: Evaluation | None = None
        if self.dataset.num_rows("test"):
            load_weights(open_checkpoint(path), self.model)
            test = self._evaluate("test")
            metrics |= {f"test/{name}": value for name, value in test.metrics.items()}
        return Outcome(self.step, metrics, path, test)


def learning_rate(step: int, total_steps: int, config: TrainConfig) -> float:
    """Linear warm-up, then half a cosine down to zero: a function of the step, so resuming needs no state."""
    warmup = round(total_steps * config.warmup_fraction)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(total_steps - warmup, 1)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))


_NAMES = {"train/loss": "loss", "train/gradient_norm": "norm of the gradients"}


def _to_plain(metrics: Mapping[str, float]) -> dict[str, float | str]:
    """Write a non-finite metric as text, because JSON has no number for it: `float()` reads both."""
    return {name: value if math.isfinite(value) else str(value) for name, value in metrics.items()}
