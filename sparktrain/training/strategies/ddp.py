"""Data parallel: every rank holds the whole model, gradients are averaged while the backward pass goes on."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import GradBucket  # type: ignore[attr-defined]  # exported, not by its stubs
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook, fp16_compress_hook
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from sparktrain.config import TrainConfig
from sparktrain.training.strategies.single import Single
from sparktrain.world import World

_HOOKS = {"bf16": bf16_compress_hook, "fp16": fp16_compress_hook}


class DataParallel(Single):
    """torch's DistributedDataParallel, its gradients halved on their way if the configuration says so."""

    def __init__(self, config: TrainConfig, model: nn.Module, world: World, *, in_parts: bool) -> None:
        super().__init__(model)
        hook = _HOOKS.get(config.ddp.compression)
        self.parallel = self.forward = wrap(model, world, find_unused=in_parts, hook=hook)

    def accumulating(self) -> AbstractContextManager[None]:
        return self.parallel.no_sync()

    def agree(self, optimizers: Iterable[torch.optim.Optimizer], others: Iterable[Tensor] = ()) -> None:
        broadcast_buffers(self.model)


def wrap(
    model: nn.Module,
    world: World,
    *,
    find_unused: bool,
    hook: Callable[[Any, GradBucket], Future[Tensor]] | None = None,
    state: object = None,
    broadcast_buffers: bool = True,
) -> DistributedDataParallel:
    """Wrap a model; `hook` sends the gradients in torch's place, `state` is its first argument."""
    devices = [world.device] if world.device.startswith("cuda") else None
    options: dict[str, Any] = {} if broadcast_buffers else {"broadcast_buffers": False}
    with warnings.catch_warnings():
        # The name that takes its place is not known before torch 2.13.
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
        parallel = DistributedDataParallel(
            model, device_ids=devices, find_unused_parameters=find_unused, **options
        )
    if hook is not None:
        parallel.register_comm_hook(state, hook)
    if not find_unused:
        _arrange_buckets(parallel, model)
    return parallel


def _arrange_buckets(parallel: DistributedDataParallel, model: nn.Module) -> None:
    """Let DDP arrange its buckets now, and not after the first step.

    In which order the ranks' gradients are added hangs on the place in a bucket. A resume has a first step
    of its own: without this, it would not have the bits of a training that went on.
    """
    parallel.module = _AllParameters(model)
    parallel().backward()
    parallel.module = model
    model.zero_grad(set_to_none=True)


class _AllParameters(nn.Module):
    """Reaches each parameter, the last ones first in the backward pass, as that of most models does."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self) -> Tensor:
        return torch.stack([p.sum() for p in self.model.parameters() if p.requires_grad]).sum()


def broadcast_weights(model: nn.Module) -> None:
    """Begin with rank 0's weights, as DistributedDataParallel does: not all come from torch's generators."""
    for tensor in [*model.parameters(), *model.buffers()]:
        dist.broadcast(tensor.detach(), src=0)


def broadcast_buffers(model: nn.Module) -> None:
    """Take rank 0's running statistics: each rank counts its own, of its own rows."""
    for buffer in model.buffers():
        dist.broadcast(buffer, src=0)
