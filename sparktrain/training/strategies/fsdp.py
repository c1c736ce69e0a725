"""Fully sharded: each rank holds a part of every weight and its optimizer's state; torch's `fully_shard`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from sparktrain.config import TrainConfig
from sparktrain.errors import TorchTooOld
from sparktrain.training.blocks import blocks_of
from sparktrain.training.strategies.ddp import broadcast_buffers, broadcast_weights
from sparktrain.training.strategies.single import Single
from sparktrain.world import World


class FullySharded(Single):
    """Whole weights exist for the block that works, and go when it is done; the model's own modules stay.

    Zhao et al., "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel", 2023.
    """

    def __init__(self, config: TrainConfig, model: nn.Module, world: World) -> None:
        if world.device == "cpu" and not hasattr(torch.cpu.Stream, "record_event"):  # 2.6 has none of it
            way_out = "take train.strategy=ddp, GPUs, or a newer torch"
            raise TorchTooOld("train.strategy=fsdp on CPUs", torch.__version__, way_out)
        mesh = init_device_mesh(world.device.partition(":")[0], (world.size,))
        half = torch.bfloat16 if config.precision == "bf16" else None
        # Weights travel as bf16, gradients are added as float32.
        policy = MixedPrecisionPolicy(
            param_dtype=half,
            reduce_dtype=torch.float32 if half else None,
            cast_forward_inputs=False,  # a large number among the columns would lose its digits
        )
        broadcast_weights(model)
        reshard = config.fsdp.reshard_after_forward
        for module in [*blocks_of(model, config.blocks), model]:
            fully_shard(module, mesh=mesh, reshard_after_forward=reshard, mp_policy=policy)
        super().__init__(model)
        self._autocast = torch.autocast(mesh.device_type, torch.bfloat16, enabled=half is not None)
        self._sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]

    @contextmanager
    def accumulating(self) -> Iterator[None]:
        whole = self._sharded[0]  # the model itself; the blocks follow it
        whole.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            whole.set_requires_gradient_sync(True)

    def clip(self, parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
        norm = super().clip(parameters, max_norm)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def agree(self, optimizers: Iterable[torch.optim.Optimizer], others: Iterable[Tensor] = ()) -> None:
        broadcast_buffers(self.model)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        try:
            with self._autocast:  # the weights that it gathers are bf16 here as well
                yield
        finally:
            for module in self._sharded:  # a backward pass would have done it
                module.reshard()
