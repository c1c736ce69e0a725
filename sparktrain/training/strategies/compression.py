"""Compressed gradients for data parallel training, by torch's communication hooks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook, fp16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from sparktrain.config import TrainConfig
from sparktrain.world import World


def compress(parallel: DistributedDataParallel, config: TrainConfig, world: World) -> PowerSGD | None:
    """Register the configured hook; return what has a state to keep."""
    kind = config.ddp.compression
    if kind == "powersgd":
        return PowerSGD(parallel, config, world)
    if kind != "none":
        hook = bf16_compress_hook if kind == "bf16" else fp16_compress_hook
        parallel.register_comm_hook(None, hook)
    return None


class PowerSGD:
    """Gradients as products of two thin matrices; what that loses is added to the next step's gradient.

    Vogels et al., "PowerSGD: Practical Low-Rank Gradient Compression for Distributed Optimization", 2019.
    """

    def __init__(self, parallel: DistributedDataParallel, config: TrainConfig, world: World) -> None:
        self._state = PowerSGDState(
            process_group=None,
            matrix_approximation_rank=config.ddp.powersgd_rank,
            start_powerSGD_iter=config.ddp.powersgd_start_step,
            random_seed=config.seed,
            orthogonalization_epsilon=1e-8,  # the gradient of a layer that nothing reaches is zero
        )
        self._rank = world.rank
        parallel.register_comm_hook(self._state, powerSGD_hook)

    @property
    def _parts(self) -> dict[str, dict[int, Tensor]]:
        """Errors are the rank's own, both factors are alike on all ranks."""
        state = self._state
        own = f"strategy/rank-{self._rank}/powersgd-error/"
        return {
            own: state.error_dict,
            "strategy/powersgd-p/": state.p_memory_dict,
            "strategy/powersgd-q/": state.q_memory_dict,
        }

    def tensors(self) -> dict[str, Tensor]:
        found = {f"{name}{bucket}": t for name, part in self._parts.items() for bucket, t in part.items()}
        return {**found, "strategy/powersgd-steps": torch.tensor(self._state.iter)}

    def restore(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        counted = tensors.get("strategy/powersgd-steps")
        self._state.iter = step if counted is None else int(counted)
        for name, part in self._parts.items():
            part.update(
                {int(key.removeprefix(name)): t for key, t in tensors.items() if key.startswith(name)}
            )
