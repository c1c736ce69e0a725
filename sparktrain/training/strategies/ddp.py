"""Data parallel: every rank holds the whole model, gradients are averaged while the backward pass goes on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sparktrain.config import TrainConfig
from sparktrain.training.strategies.compression import compress
from sparktrain.training.strategies.single import Single
from sparktrain.world import World


class DataParallel(Single):
    """torch's DistributedDataParallel, its gradients compressed on their way if the configuration says so."""

    def __init__(self, config: TrainConfig, model: nn.Module, world: World, *, in_parts: bool) -> None:
        super().__init__(model)
        # PowerSGD keeps an error for each bucket, and DDP arranges its buckets anew after the first step,
        # also after the first one of a resume: unless parameters may be unused.
        keeps_buckets = config.strategy == "ddp" and config.ddp.compression == "powersgd"
        self.parallel = wrap(model, world, find_unused=in_parts or keeps_buckets)
        self.forward = self.parallel
        self._compression = compress(self.parallel, config, world) if config.strategy == "ddp" else None

    def accumulating(self) -> AbstractContextManager[None]:
        return self.parallel.no_sync()

    def agree(self, optimizers: Iterable[torch.optim.Optimizer], others: Iterable[Tensor] = ()) -> None:
        broadcast_buffers(self.model)

    def tensors(self) -> dict[str, Tensor]:
        return self._compression.tensors() if self._compression else {}

    def restore(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        if self._compression:
            self._compression.restore(step, tensors)


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
