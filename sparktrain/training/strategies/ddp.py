"""Data parallel: every rank holds the whole model, gradients are averaged in the backward pass."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sparktrain.world import World


def wrap(model: nn.Module, world: World) -> nn.Module:
    devices = [world.device] if world.device.startswith("cuda") else None
    return DistributedDataParallel(model, device_ids=devices)
