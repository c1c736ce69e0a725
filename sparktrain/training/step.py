"""One step of a rank: passes over its rows, the gradient of the whole global batch, the update."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sparktrain.config import TrainConfig
from sparktrain.errors import ParametersUnused, StepMisused
from sparktrain.features import FittedFeatures
from sparktrain.training.evaluate import target_of, weighted, weights_of
from sparktrain.training.finite import GuardedStep
from sparktrain.training.schedule import rate_factor
from sparktrain.training.strategies import Strategy
from sparktrain.training.task import Batch, TrainTask
from sparktrain.training.window import Window
from sparktrain.world import World

_ONLY = "optimizer"


class Step:
    """Makes the steps of one rank; also what a Task's own `train_step` works with.

    Attributes:
        number: of the step under way, from 1.
        optimizers: by name.
    """

    def __init__(
        self,
        task: TrainTask,
        features: FittedFeatures,
        model: nn.Module,
        config: TrainConfig,
        world: World,
        strategy: Strategy,
        window: Window,
        *,
        total_steps: int,
        most_rows: int,
        has_masks: bool,
    ) -> None:
        """
        Args:
            most_rows: of a global batch on any rank.
            has_masks: some rows of a batch may have weight 0.
        """
        self._task, self._features, self._config, self._world = task, features, config, world
        self._strategy, self._window, self._total_steps = strategy, window, total_steps
        self._model = model
        self._unreached: list[str] | None = None  # parameters without a gradient, after the first step
        made = task.optimizers(model, config)
        self.optimizers = {_ONLY: made} if isinstance(made, torch.optim.Optimizer) else dict(made)
        self._rates: dict[str, list[float]] = {
            name: [g["lr"] for g in o.param_groups] for name, o in self.optimizers.items()
        }
        self._device = world.device.partition(":")[0]
        is_fp16 = config.precision == "fp16"
        self.scalers = {name: torch.amp.GradScaler(self._device, enabled=is_fp16) for name in self.optimizers}
        self.guard = GuardedStep(config.on_nonfinite, model, is_scaled=is_fp16)
        self._most_rows, self._has_masks = most_rows, has_masks
        self._has_own_step = has_own_step(task)
        self.number = 0
        self._weights: Tensor | None = None  # [rows]: of the rows that were last given to `forward`
        self._losses: list[Tensor] = []
        self._norms: list[Tensor] = []
        self._is_skipped = False
        self._count: tuple[Tensor, dist.Work | None] | None = None
        self._share, self._nominal = 0.0, 0

    def make(self, batch: Batch, number: int) -> None:
        """Make one step from this rank's rows of the global batch."""
        self.number = number
        rate = self._set_rates()
        self._losses, self._norms, self._is_skipped = [], [], False
        self._begin_count(batch["row_weight"])
        self._zero()
        self.guard.begin()
        if self._has_own_step:
            self._task.train_step(self, batch)
        else:
            self._accumulate(batch)
        if self._unreached is None:
            named = self._model.named_parameters()
            self._unreached = [name for name, p in named if p.requires_grad and p.grad is None]
        with self._window.clock.communicating():
            self._strategy.stepped(number)
        if self._is_skipped or not self._norms:
            self._window.skip()
        else:
            norm = self._norms[0] if len(self._norms) == 1 else torch.stack(self._norms).norm()
            self._window.add(torch.stack(self._losses).sum(), batch["row_weight"].sum(), norm, rate)

    def forward(self, batch: Batch) -> Any:
        """Return the model's outputs for a batch; gradients of all ranks meet in the next `minimize`."""
        self._weights = weights_of(self._features, batch)
        try:
            with self._autocast():
                outputs: Any = self._strategy.forward(batch)
        except RuntimeError as error:
            if "Expected to have finished reduction" in str(error):  # DDP's, about the step before
                raise ParametersUnused(self._unreached or []) from error
            raise
        return outputs

    def target(self, batch: Batch) -> Any:
        """Return what `TrainTask.loss` takes as target."""
        return target_of(self._features, batch)

    def minimize(self, losses: Tensor, optimizer: str = _ONLY) -> None:
        """Update the parameters of an optimizer by the gradient of all ranks' mean loss.

        Args:
            losses: of the rows of the last `forward`, [rows].
            optimizer: one of those that `TrainTask.optimizers` named.

        Raises:
            StepMisused: no `forward` came before, or there is no optimizer of that name.
            LossNotByRow: they are not of shape [rows].
        """
        if self._weights is None:
            what = "calls minimize twice after one forward"
            raise StepMisused(what, "let each minimize have a forward before it: in it gradients meet")
        if optimizer not in self.optimizers:
            names = ", ".join(self.optimizers)
            raise StepMisused(f"minimizes with an optimizer {optimizer!r}", f"optimizers() made: {names}")
        self._zero()
        self._backward(losses, optimizer)
        self._update(optimizer)

    def _accumulate(self, batch: Batch) -> None:
        *first, last = self._micro_batches(batch)
        for rows in first:
            with self._strategy.accumulating():
                self._pass(rows)
        self._pass(last)
        self._update(_ONLY)

    def _pass(self, batch: Batch) -> None:
        outputs = self.forward(batch)
        with self._autocast():
            losses = self._task.loss(outputs, self.target(batch))
        self._backward(losses, _ONLY)

    def _micro_batches(self, batch: Batch) -> list[Batch]:
        """Cut a batch; into equally many on every rank, since sharded weights are gathered at each pass."""
        size, rows = self._config.micro_batch_size, len(batch["row_weight"])
        if size is None:
            return [batch]
        count = -(-max(self._most_rows, rows) // size)
        bounds = [rows * number // count for number in range(count + 1)]
        return [
            {name: column[start:end] for name, column in batch.items()}
            if end > start
            else _without_weight(batch)
            for start, end in pairwise(bounds)
        ]

    def _set_rates(self) -> float:
        """Give every group its learning rate at this step; return that of the first."""
        factor = rate_factor(self.number - 1, self._total_steps, self._config)
        for name, optimizer in self.optimizers.items():
            for group, rate in zip(optimizer.param_groups, self._rates[name], strict=True):
                group["lr"] = rate * factor
        return self._rates[next(iter(self._rates))][0] * factor

    def _backward(self, losses: Tensor, optimizer: str) -> None:
        assert self._weights is not None
        total = weighted(self._task, losses, self._weights).sum()
        self._weights = None
        self.guard.backward(self.scalers[optimizer].scale(total * self._scale()))
        self._window.clock.stop()
        self._losses.append(total.detach())

    def _update(self, name: str) -> None:
        optimizer, scaler = self.optimizers[name], self.scalers[name]
        with self._window.clock.communicating():
            self._strategy.reduce()
        scaler.unscale_(optimizer)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = self._strategy.clip(parameters, self._config.clip_gradient_norm or math.inf)
        if self.guard.must_skip(norm, self.number):
            self._is_skipped = True
        else:
            scaler.step(optimizer)
            self._norms.append(norm)
        scaler.update()

    def _zero(self) -> None:
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._config.precision == "fp32":
            return nullcontext()
        return torch.autocast(self._device, getattr(torch, _DTYPES[self._config.precision]))

    def _begin_count(self, row_weight: Tensor) -> None:
        """Ask how many rows of the global batch are real, if some may not be; the answer comes meanwhile."""
        self._nominal = len(row_weight)
        self._count, self._share = None, 0.0
        if not self._has_masks:
            return
        real = (row_weight > 0).sum().to(torch.float64)
        is_shared = self._world.size > 1 and self._strategy.is_synchronous(self.number)
        self._count = (real, dist.all_reduce(real, async_op=True) if is_shared else None)

    def _scale(self) -> float:
        """What makes the sum of this rank's losses its share of the mean over all real rows.

        Strategies average gradients over ranks, which can hold different numbers of rows: so it is the
        number of ranks over that of all rows. Of rows, not of their weights: they are 1 on average over all
        training rows, and a batch of heavy rows is to count for more.
        """
        if self._share == 0.0:
            self._share = self._world.size / self._num_rows()
        return self._share

    def _num_rows(self) -> float:
        """How many rows the gradient of this step is the mean of."""
        if self._count is None:
            return self._config.global_batch_size
        real, answer = self._count
        if answer is not None:
            answer.wait()
        elif self._world.size > 1:  # nothing is sent: as if of the other ranks' rows as many were real
            return self._config.global_batch_size * max(float(real), 1.0) / self._nominal
        return max(float(real), 1.0)


_DTYPES: Mapping[str, str] = {"bf16": "bfloat16", "fp16": "float16"}


def has_own_step(task: TrainTask) -> bool:
    """Whether the Task overrides `train_step`."""
    return type(task).train_step is not TrainTask.train_step


def _without_weight(batch: Batch) -> Batch:
    """Rows that count for nothing: all there are, which are few; one alone would not do for a batch norm."""
    return {**batch, "row_weight": torch.zeros_like(batch["row_weight"])}
