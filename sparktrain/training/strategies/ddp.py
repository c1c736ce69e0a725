"""Data parallel: every rank holds the whole model, gradients are averaged while the backward pass goes on."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook, fp16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from sparktrain.config import TrainConfig
from sparktrain.training.strategies.single import Single
from sparktrain.world import World

_HOOKS = {"bf16": bf16_compress_hook, "fp16": fp16_compress_hook}


class DataParallel(Single):
    """torch's DistributedDataParallel, its gradients halved on their way if the configuration says so."""

    def __init__(self, config: TrainConfig, model: nn.Module, world: World, *, in_parts: bool) -> None:
        super().__init__(model)
        self.parallel = self.forward = wrap(model, world, find_unused=in_parts)
        if config.ddp.compression in _HOOKS:
            self.parallel.register_comm_hook(None, _HOOKS[config.ddp.compression])

    def accumulating(self) -> AbstractContextManager[None]:
        return self.parallel.no_sync()

    def agree(self, optimizers: Iterable[torch.optim.Optimizer], others: Iterable[Tensor] = ()) -> None:
        broadcast_buffers(self.model)


def wrap(
    model: nn.Module, world: World, *, find_unused: bool, broadcast_buffers: bool = True
) -> DistributedDataParallel:
    devices = [world.device] if world.device.startswith("cuda") else None
    return DistributedDataParallel(
        model, device_ids=devices, find_unused_parameters=find_unused, broadcast_buffers=broadcast_buffers
    )


def broadcast_buffers(model: nn.Module) -> None:
    """Take rank 0's running statistics: each rank counts its own, of its own rows."""
    for buffer in model.buffers():
        dist.broadcast(buffer, src=0)
