"""Data parallel over a slow network: gradients travel as products of two thin matrices.

Vogels et al., "PowerSGD: Practical Low-Rank Gradient Compression for Distributed Optimization", 2019.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook

from sparktrain.config import TrainConfig
from sparktrain.training.strategies.ddp import broadcast_buffers, broadcast_weights
from sparktrain.training.strategies.single import Single
from sparktrain.world import World

_STEPS, _P, _Q = "strategy/powersgd-steps", "strategy/powersgd-p", "strategy/powersgd-q"


class PowerSGD(Single):
    """torch's hook of that name, over all gradients at once after the backward pass.

    Not within DistributedDataParallel: that arranges its buckets anew after the first step, of a resume as
    well, and what the approximation lost of a bucket would be added to another's.
    """

    def __init__(self, config: TrainConfig, model: nn.Module, world: World) -> None:
        super().__init__(model)
        broadcast_weights(model)
        self._error_name = f"strategy/rank-{world.rank}/powersgd-error"
        self._state = PowerSGDState(
            process_group=dist.group.WORLD,
            matrix_approximation_rank=config.ddp.powersgd_rank,
            start_powerSGD_iter=config.ddp.powersgd_start_step,
            random_seed=config.seed,
            orthogonalization_epsilon=1e-8,  # the gradient of a layer that nothing reaches is zero
        )
        self._parameters = [p for p in model.parameters() if p.requires_grad]

    def reduce(self) -> None:
        given = [p.grad for p in self._parameters]
        flat = torch.cat(
            [
                (torch.zeros_like(p) if grad is None else grad).flatten()
                for p, grad in zip(self._parameters, given, strict=True)
            ]
        )
        parts = torch.split(flat, [p.numel() for p in self._parameters])
        # the hook wants a first dimension
        views = [part.view_as(p) if p.ndim else part for part, p in zip(parts, self._parameters, strict=True)]
        state, before = self._state, self._kept()
        powerSGD_hook(state, cast(Any, _Bucket(flat, views))).wait()
        if not flat.isfinite().all():  # a step to be left out must not live on in what it lost
            for part in (state.error_dict, state.p_memory_dict, state.q_memory_dict):
                part.clear()
            if before:
                state.error_dict[0], state.p_memory_dict[0], state.q_memory_dict[0] = before
        for parameter, grad, view in zip(self._parameters, given, views, strict=True):
            parameter.grad = view.view_as(parameter) if grad is not None or view.any() else None

    def _kept(self) -> tuple[Tensor, Tensor, Tensor] | None:
        state = self._state
        if 0 not in state.error_dict:
            return None
        return state.error_dict[0], state.p_memory_dict[0].clone(), state.q_memory_dict[0].clone()

    def agree(self, optimizers: Iterable[torch.optim.Optimizer], others: Iterable[Tensor] = ()) -> None:
        broadcast_buffers(self.model)

    def tensors(self) -> dict[str, Tensor]:
        steps = {_STEPS: torch.tensor(self._state.iter)}
        kept = self._kept()
        return {**steps, **dict(zip([self._error_name, _P, _Q], kept, strict=True))} if kept else steps

    def restore(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Go on; ranks that were others before begin without an error of their own."""
        state = self._state
        state.iter = int(tensors.get(_STEPS, torch.tensor(step)))
        device = self._parameters[0].device
        if (error := tensors.get(self._error_name)) is not None:
            state.error_dict[0] = error.to(device)
        if _P in tensors:
            state.p_memory_dict[0], state.q_memory_dict[0] = tensors[_P].to(device), tensors[_Q].to(device)


@dataclass(frozen=True)
class _Bucket:
    """What the hook asks of DDP's buckets: the only one there is."""

    flat: Tensor  # [values]
    views: list[Tensor]  # of `flat`, one a parameter, of its shape

    def index(self) -> int:
        return 0

    def buffer(self) -> Tensor:
        return self.flat

    def gradients(self) -> list[Tensor]:
        return self.views

    def is_last(self) -> bool:
        return True
