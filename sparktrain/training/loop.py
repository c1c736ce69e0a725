"""The training loop of one rank. It names its steps; each is a function below or a module beside."""

from __future__ import annotations

import logging
import math
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist

from sparktrain import pulse
from sparktrain.config import DataConfig, TrainConfig
from sparktrain.dataset import Dataset, Stream
from sparktrain.errors import NonFiniteLoss, StepFailed
from sparktrain.faults import FaultPlan
from sparktrain.storage import AnyPath
from sparktrain.training.blocks import prepare_model
from sparktrain.training.checkpoint import Checkpoint, open_checkpoint
from sparktrain.training.checkpoint_state import load_weights, restore, settings_of, tensors_of
from sparktrain.training.ema import MovingAverage
from sparktrain.training.ending import Ending, is_more_better
from sparktrain.training.evaluate import Evaluation, evaluate, rows_to_device
from sparktrain.training.finite import refuse_non_finite_state
from sparktrain.training.generators import (
    be_deterministic,
    generator_state,
    restore_generator,
    seed_rank,
)
from sparktrain.training.pace import WorkClock
from sparktrain.training.profile import StepProfiler
from sparktrain.training.saving import Emit, Saver
from sparktrain.training.step import Step, has_own_step
from sparktrain.training.strategies import make_strategy
from sparktrain.training.task import TrainTask
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
        profiler: StepProfiler | None = None,
    ) -> None:
        self.task, self.dataset, self.config, self.world = task, dataset, config, world
        self.data = data or DataConfig()
        self.directory, self.emit, self.faults = directory, emit, faults
        self.profiler = profiler
        be_deterministic(config.deterministic, world)
        torch.manual_seed(config.seed)  # the same weights on every rank
        self.model = task.build_model(dataset.features).to(world.device)
        prepare_model(self.model, config)
        self.strategy = make_strategy(config, self.model, world, in_parts=has_own_step(task))
        seed_rank(world, config.seed, step=0)  # from here on: dropout, another on every rank
        self.stream: Stream = dataset.stream(
            "train",
            config.global_batch_size,
            num_lanes=config.num_lanes,
            world=world,
            seed=config.seed,
            tail=self.data.tail,
            **self.data.stream_options,
        )
        self.ending = Ending(config, self.stream.steps_per_epoch)
        self.window = Window(world, WorkClock(self.model, self.strategy.forward))
        self.updates = Step(
            task,
            dataset.features,
            self.model,
            config,
            world,
            self.strategy,
            self.window,
            total_steps=self.ending.total_steps,
            most_rows=_most(self.stream.rows_per_step, world),
            has_masks=self.data.can_mask,
        )
        self.average = MovingAverage(self.model, config.ema_decay)
        self.callbacks = task.callbacks()
        self.step = 0
        self.saver = Saver(directory, config, world, emit)
        self.masked: dict[str, str] = {}

    def run(self, resume_from: Checkpoint | None) -> Outcome:
        if resume_from is not None:
            self._restore(resume_from)
        self.emit({"kind": "phase", "name": "train"})
        self._report_progress()
        while not self._is_over:
            self._train_epoch()
        return self._finish()

    def _train_epoch(self) -> None:
        self.window.restart(self.stream)
        for batch in self.stream:
            self.window.clock.start()
            pulse.beat(self.step)
            try:
                if self.profiler is not None:
                    self.profiler.step(self.step + 1)
                if self.faults is not None:
                    self.faults.strike(self.world, self.step + 1, batch)
                self.updates.make(rows_to_device(batch, self.world.device), self.step + 1)
            except Exception as error:
                raise StepFailed(self.step + 1) from error
            self.step += 1
            self.average.update()
            for callback in self.callbacks:
                callback.on_step(self.step, self.model)
            # After an epoch's last step the stream stands before the next one only when it has ended.
            within_epoch = self.stream.step < self.stream.steps_per_epoch
            due = self._due() if within_epoch else None
            if due or self.step % LOG_EVERY_STEPS == 0 or self._is_over:
                self._log_window()
            if due == "evaluation" or (within_epoch and self._is_over):
                self._evaluate_and_save()
                self.window.restart(self.stream)
            elif due == "checkpoint":
                self._save()
            if within_epoch and self._is_over:
                return
        self._log_window()
        self._evaluate_and_save()

    @property
    def _is_over(self) -> bool:
        return self.ending.is_reached(self.step, self.stream.epoch)

    def _due(self) -> Literal["evaluation", "checkpoint"] | None:
        """What comes after this step within an epoch; the end of each is followed by an evaluation, too."""
        if self._is_multiple(self.config.evaluate_every_steps):
            return "evaluation"
        return "checkpoint" if self._is_multiple(self.config.checkpoint_every_steps) else None

    def _is_multiple(self, every: int | None) -> bool:
        return every is not None and self.step % every == 0

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
        self.ending.add_seconds(self.window.elapsed)
        self._tell_straggler()
        if self.world.is_first:
            self.emit({"kind": "metrics", "step": self.step, "values": values})
            self._report_progress()

    def _report_progress(self) -> None:
        if self.world.is_first:
            progress = {"step": self.step, "num_steps": self.ending.total_steps, "epoch": self.stream.epoch}
            self.emit({"kind": "progress", **progress})

    def _evaluate_and_save(self) -> None:
        """Evaluate the validation split; keep the state if it is the best so far, or an epoch's last."""
        self._agree()
        self.saver.wait()  # what became of the save before says which is the best so far
        metrics: dict[str, float] = {}
        if self.dataset.num_rows("validation"):
            found = self._evaluate("validation").metrics
            metrics = {f"validation/{name}": value for name, value in found.items()}
            if self.world.is_first:
                self.emit({"kind": "metrics", "step": self.step, "values": metrics})
        is_best = self._is_best(metrics)
        is_number = not math.isnan(metrics.get(f"validation/{self.config.best_metric}", math.nan))
        self.ending.add_evaluation(is_best=is_best and is_number)
        for callback in self.callbacks:
            if callback.on_evaluation(self.step, metrics):
                self.ending.stop()
        is_due = self.stream.step == 0 or self._is_multiple(self.config.checkpoint_every_steps)
        if is_best or is_due or self._is_over:
            best = {
                "step": self.step,
                "checkpoint": self.saver.name(self.step),
                "metrics": _to_plain(metrics),
            }
            self._save(best if is_best else None)

    def _evaluate(self, split: str) -> Evaluation:
        self.emit({"kind": "phase", "name": split})
        config = self.config
        sizes = config.global_batch_size, config.num_lanes
        with self.average.in_place_of_weights(), self.strategy.evaluating():
            options = self.data.stream_options
            found = evaluate(self.model, self.task, self.dataset, split, *sizes, self.world, options)
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

    def _agree(self) -> None:
        self.strategy.agree(self.updates.optimizers.values(), self.average.tensors.values())

    def _save(self, best: Mapping[str, Any] | None = None) -> None:
        """Take a checkpoint; `best` describes it if it is the best so far."""
        pulse.beat(self.step)
        self._agree()  # any rank may be the one that writes what all hold
        self.saver.wait()
        tensors = tensors_of(
            self.model,
            self.updates.optimizers,
            generator_state(self.world),
            self.world.rank,
            self.average.tensors,
        )
        tensors |= self.strategy.tensors()
        refuse_non_finite_state(tensors.values(), self.world, self.step)
        state = {
            "stream": self.stream.state_dict(),
            "best": best or self.saver.best,
            "ending": self.ending.state(),
            "world_size": self.world.size,
            "optimizer": settings_of(self.model, self.updates.optimizers),
            "scaler": {name: scaler.state_dict() for name, scaler in self.updates.scalers.items()},
        }
        self.saver.save(self.step, tensors, state)

    def _is_best(self, metrics: Mapping[str, float]) -> bool:
        name = f"validation/{self.config.best_metric}"
        if self.saver.best is None or name not in metrics:
            return True
        best, found = float(self.saver.best["metrics"].get(name, "nan")), metrics[name]
        is_better = found > best if is_more_better(self.task, self.config.best_metric) else found < best
        return is_better or math.isnan(best)

    def _restore(self, saved: Checkpoint) -> None:
        rank = self.world.rank if saved.state["world_size"] == self.world.size else None
        optimizers = self.updates.optimizers
        decays = [group.get("weight_decay") for o in optimizers.values() for group in o.param_groups]
        restored = restore(saved, self.model, optimizers, rank, self.average.tensors)
        groups = [group for o in optimizers.values() for group in o.param_groups]
        for group, decay in zip(groups, decays, strict=True):
            if decay is not None:
                group["weight_decay"] = decay  # may be another one than in the save, like the rate
        self.strategy.restore(saved.step, restored.strategy)
        for name, state in saved.state["scaler"].items():
            if state and name in self.updates.scalers:
                self.updates.scalers[name].load_state_dict(dict(state))
        self.stream.load_state_dict(dict(saved.state["stream"]))
        self.ending.restore(saved.state["ending"])
        self.step, self.saver.best = saved.step, saved.state["best"]
        if restored.generator is not None:
            restore_generator(restored.generator, self.world)
        else:  # other ranks than before: no state to continue, so a fresh one that depends on the place alone
            seed_rank(self.world, self.config.seed, self.step)
        self.emit({"kind": "resumed", "step": self.step})

    def _finish(self) -> Outcome:
        self.saver.wait()
        best = self.saver.best
        if best is None:  # the last step is followed by a save
            assert self.saver.last_error is not None
            raise self.saver.last_error
        path = self.directory / best["checkpoint"]
        metrics = {name: float(value) for name, value in best["metrics"].items()}
        test: Evaluation | None = None
        if self.dataset.num_rows("test"):
            load_weights(open_checkpoint(path), self.model)
            self.average.forget()  # they are the model's weights now
            test = self._evaluate("test")
            metrics |= {f"test/{name}": value for name, value in test.metrics.items()}
        for callback in self.callbacks:
            callback.on_end(self.step, metrics)
        return Outcome(self.step, metrics, path, test)


def _most(rows: int, world: World) -> int:
    """The most rows that any rank has of a global batch."""
    most = torch.tensor([rows], device=world.device)
    if world.size > 1:
        dist.all_reduce(most, dist.ReduceOp.MAX)
    return int(most)


_NAMES = {"train/loss": "loss", "train/gradient_norm": "norm of the gradients"}


def _to_plain(metrics: Mapping[str, float]) -> dict[str, float | str]:
    """Write a non-finite metric as text, because JSON has no number for it: `float()` reads both."""
    return {name: value if math.isfinite(value) else str(value) for name, value in metrics.items()}
