"""Strategies: how the ranks of a gang cooperate, one file each; the loop knows `Strategy` alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor, nn

from sparktrain.config import TrainConfig
from sparktrain.training.strategies.ddp import DataParallel
from sparktrain.training.strategies.fsdp import FullySharded
from sparktrain.training.strategies.local_sgd import LocalSGD
from sparktrain.training.strategies.powersgd import PowerSGD
from sparktrain.training.strategies.single import Single
from sparktrain.world import World


class Strategy(Protocol):
    """How ranks cooperate; made before the optimizers, because it may replace the model's parameters.

    All but `forward` and `accumulating` are collective: all ranks call them at the same steps.

    Attributes:
        forward: what is called in the model's place.
    """

    forward: nn.Module

    def accumulating(self) -> AbstractContextManager[None]:
        """Within it, backward passes add up on this rank, and nothing is sent."""

    def is_synchronous(self, step: int) -> bool:
        """Whether the gradient of step `step` (from 1) is that of all ranks' rows."""

    def reduce(self) -> None:
        """Called after a backward pass: average the gradients, if that has not been done in it."""

    def clip(self, parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
        """Scale gradients down to a norm of `max_norm` at most; return the norm before, a plain number []."""

    def stepped(self, step: int) -> None:
        """Called after the last optimizer update of step `step`."""

    def agree(self, optimizers: Iterable[torch.optim.Optimizer], others: Iterable[Tensor] = ()) -> None:
        """Make all ranks hold one state: before it is evaluated, and before it is saved.

        Args:
            others: tensors on each rank that go with the parameters, like their moving averages.
        """

    def evaluating(self) -> AbstractContextManager[None]:
        """Around forward passes without a backward pass."""

    def tensors(self) -> dict[str, Tensor]:
        """What of its own a checkpoint has to hold, as "strategy/<name>", or
        "strategy/rank-<n>/<name>" for what is of one rank alone."""

    def restore(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Go on after step `step` with what `tensors` returned then; less, where the ranks were others."""


def make_strategy(config: TrainConfig, model: nn.Module, world: World, *, in_parts: bool = False) -> Strategy:
    """Make the configured strategy; a gang of one rank needs none.

    Args:
        in_parts: a backward pass may reach a part of the parameters only.
    """
    if world.size == 1 or config.strategy == "single":
        return Single(model)
    if config.strategy == "fsdp":
        return FullySharded(config, model, world)
    if config.strategy == "ddp" and config.ddp.compression == "powersgd":
        return PowerSGD(config, model, world)
    kind = DataParallel if config.strategy == "ddp" else LocalSGD
    return kind(config, model, world, in_parts=in_parts)
