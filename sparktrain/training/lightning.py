"""LightningTask: trains a LightningModule by its own `training_step`, without Lightning's Trainer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparktrain.config import TrainConfig
from sparktrain.errors import LightningUnsupported
from sparktrain.features import FittedFeatures
from sparktrain.training.evaluate import target_of
from sparktrain.training.module_task import ModuleTask
from sparktrain.training.task import Batch

_REQUIRED = ("forward", "training_step", "configure_optimizers")
_NEVER_CALLED = {
    "backward",
    "configure_callbacks",
    "configure_gradient_clipping",
    "configure_model",
    "lr_scheduler_step",
    "optimizer_step",
    "optimizer_zero_grad",
    "setup",
    "transfer_batch_to_device",
}
_NOT_MISSED = ("on_validation", "on_test", "on_predict")  # evaluation is ours


class LightningTask(ModuleTask):
    """A LightningModule as the `module` of a ModuleTask.

    Training takes the loss that `training_step(batch, batch_idx)` returns, which has to be the mean over the
    batch's rows, each counting the same: then the gradient is that of the mean over all ranks' rows. `batch`
    is `(*inputs, target)`; `batch_idx` counts the calls in this process, from 0. Evaluation calls `forward`
    with the inputs and goes by `loss_name`; `validation_step` and others are not called, `log` does nothing.

    The optimizer is that of `configure_optimizers`, its learning rates instead of `train.learning_rate`; the
    configuration's schedule, clipping and precision hold. Names of weights begin with "module.".

    Raises:
        LightningUnsupported: in `build_model` and `optimizers`, for what only Lightning's Trainer does.
    """

    def build_model(self, features: FittedFeatures) -> nn.Module:
        arguments, module = self.arguments(features), self.make_module(features)
        _refuse_unsupported(module)
        if features.weight is not None:
            what, way_out = "gives one loss for a batch, and the rows have weights", "Use a ModuleTask"
            raise LightningUnsupported(type(module).__name__, what, way_out)
        return Stepping(module, arguments, features)

    def optimizers(self, model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
        assert isinstance(model, Stepping)
        made = model.module.configure_optimizers()  # type: ignore[operator]
        if isinstance(made, Mapping) and not made.get("lr_scheduler"):
            made = made.get("optimizer")
        if isinstance(made, list | tuple) and len(made) == 1:
            made = made[0]
        if not isinstance(made, torch.optim.Optimizer):
            what = "returns more or other than one optimizer from configure_optimizers"
            way_out = "Schedules are train.schedule; several optimizers go with a train_step in a TrainTask"
            raise LightningUnsupported(type(model.module).__name__, what, way_out)
        return made

    def loss(self, outputs: Any, target: Any) -> Tensor:
        if isinstance(outputs, Tensor) and outputs.dim() == 0:  # of a training step
            rows = len(next(iter(target.values())) if isinstance(target, Mapping) else target)
            return outputs.expand(rows)
        return super().loss(outputs, target)


class Stepping(nn.Module):
    """Takes a `Batch`; returns the loss of a training step, or in evaluation the module's outputs."""

    def __init__(
        self,
        module: nn.Module,
        arguments: Callable[[Batch], tuple[Tensor, ...]],
        features: FittedFeatures,
    ) -> None:
        super().__init__()
        self.module, self._arguments, self._features = module, arguments, features
        self._num_steps = 0
        vars(module).update(log=_ignore, log_dict=_ignore)

    def forward(self, batch: Batch) -> Any:
        if not self.training:
            return self.module(*self._arguments(batch))
        real = batch["row_weight"] > 0
        if not bool(real.all()) and bool(real.any()):  # the mean is to be of these alone
            batch = {name: column[real] for name, column in batch.items()}
        given = (*self._arguments(batch), target_of(self._features, batch))
        step: Any = self.module.training_step
        takes_number = len(inspect.signature(step).parameters) > 1
        loss = step(given, self._num_steps) if takes_number else step(given)
        self._num_steps += 1
        loss = loss.get("loss") if isinstance(loss, Mapping) else loss
        if not isinstance(loss, Tensor) or loss.dim():
            what = f"returns no plain number from training_step but {_shape(loss)}"
            raise LightningUnsupported(
                type(self.module).__name__, what, "Return the mean of the rows' losses"
            )
        return loss

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Let the module know its device, too: it asks nobody but its own `to`."""
        found = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        first = next(self.module.parameters(), None)
        if first is not None:
            self.module.to(first.device)
        return found


def _refuse_unsupported(module: nn.Module) -> None:
    kind, name = type(module), type(module).__name__
    base = next((parent for parent in kind.__mro__ if parent.__name__ == "LightningModule"), None)
    if base is None:
        raise LightningUnsupported(name, "is no LightningModule", "Use a ModuleTask")
    own = {method for method in dir(base) if getattr(kind, method, None) is not getattr(base, method, None)}
    if missing := [method for method in _REQUIRED if method not in own]:
        raise LightningUnsupported(name, f"lacks {', '.join(missing)}", "Define it")
    if not getattr(module, "automatic_optimization", True):
        what, way_out = (
            "has automatic_optimization off",
            "Write train_step and optimizers of a TrainTask instead",
        )
        raise LightningUnsupported(name, what, way_out)
    hooks = {m for m in own if m.startswith("on_") and not m.startswith(_NOT_MISSED)}
    if wrong := sorted(hooks | (own & _NEVER_CALLED)):
        what, way_out = f"defines {', '.join(wrong)}", "Leave that out, or use TrainTask.callbacks for it"
        raise LightningUnsupported(name, what, way_out)


def _ignore(*values: Any, **options: Any) -> None:
    pass


def _shape(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
