"""Strategies: how ranks cooperate. The loop only ever calls `wrap`."""

from __future__ import annotations

from torch import nn

from sparktrain.training.strategies import ddp
from sparktrain.world import World

_STRATEGIES = {"ddp": ddp.wrap}


def wrap(strategy: str, model: nn.Module, world: World) -> nn.Module:
    """Return a module that trains `model` together with the other ranks; alone: `model` itself."""
    return _STRATEGIES[strategy](model, world) if world.size > 1 else model
