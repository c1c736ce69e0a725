"""Local SGD: ranks train on their own for some steps, then average their weights.

Stich, "Local SGD Converges Fast and Communicates Little", 2019; synchronous at first: Lin et al., "Don't Use
Large Mini-Batches, Use Local SGD", 2020; an outer optimizer: Douillard et al., "DiLoCo", 2023.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import (
    PostLocalSGDState,
    post_localSGD_hook,
)

from sparktrain.config import TrainConfig
from sparktrain.training.strategies.ddp import broadcast_buffers, wrap
from sparktrain.training.strategies.single import Single
from sparktrain.world import World

_OUTER = "strategy/outer/"


class LocalSGD(Single):
    """Gradients stay with their rank; every so many steps the weights are averaged.

    A save or an evaluation between two averages is one itself, of the optimizers' states too, so that a
    checkpoint is one state at whatever number of ranks.
    """

    def __init__(self, config: TrainConfig, model: nn.Module, world: World, *, in_parts: bool) -> None:
        super().__init__(model)
        options = config.local_sgd
        self._start_step = options.start_step
        # Its own counter counts backward passes, of which a step can have several: see `_follow`.
        self._hook = PostLocalSGDState(  # type: ignore[no-untyped-call]
            None, None, sys.maxsize, post_local_gradient_allreduce=False
        )
        # The ranks' running statistics go their own ways, too.
        parallel = wrap(
            model,
            world,
            find_unused=in_parts,
            hook=post_localSGD_hook,
            state=self._hook,
            broadcast_buffers=False,
        )
        self._follow(0)
        self._period = options.average_every_steps
        self.parallel = self.forward = parallel
        self._outer: Outer | None = None
        if options.outer_learning_rate is not None:
            self._outer = Outer(model, options.outer_learning_rate, options.outer_momentum)
        self._weights_agree = self._states_agree = True

    def accumulating(self) -> AbstractContextManager[None]:
        return self.parallel.no_sync()

    def _follow(self, step: int) -> None:
        """Tell the hook whether the step after `step` is one of those together."""
        self._hook.iter = 0
        self._hook.start_localSGD_iter = sys.maxsize if step < self._start_step else 0

    def is_synchronous(self, step: int) -> bool:
        return step <= self._start_step

    def stepped(self, step: int) -> None:
        self._follow(step)
        if step <= self._start_step:
            if step == self._start_step and self._outer:
                self._outer.begin()
            return
        self._weights_agree = self._states_agree = False
        if (step - self._start_step) % self._period == 0:
            self._average_weights()

    def agree(self, optimizers: Iterable[torch.optim.Optimizer], others: Iterable[Tensor] = ()) -> None:
        if not self._weights_agree:
            self._average_weights()
        if not self._states_agree:
            _average([*(state for optimizer in optimizers for state in _states(optimizer)), *others])
        self._states_agree = True
        broadcast_buffers(self.model)

    def _average_weights(self) -> None:
        # Not by torch's own averager, which leaves out what has no gradient just now: the other optimizers'.
        _average([parameter.detach() for parameter in self.model.parameters()])
        if self._outer:
            self._outer.step()
        self._weights_agree = True

    def tensors(self) -> dict[str, Tensor]:
        return self._outer.tensors() if self._outer else {}

    def restore(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        self._follow(step)
        if self._outer:
            self._outer.restore(tensors)


def _states(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """Its tensors, in the same order on all ranks; counts of steps have no dimension and are left out."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter in parameters:
        slots = optimizer.state.get(parameter, {})
        yield from (slots[name] for name in sorted(slots) if getattr(slots[name], "ndim", 0))


@torch.no_grad()
def _average(tensors: Sequence[Tensor]) -> None:
    """Average over the ranks, all in one exchange: on a slow network each one costs its delay."""
    if not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors]).div_(dist.get_world_size())
    dist.all_reduce(flat)
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))


class Outer:
    """Takes the way that the ranks' average has gone since the last time as a gradient; Nesterov's momentum.

    All ranks do the same with the same numbers, so that nothing is sent.
    """

    def __init__(self, model: nn.Module, learning_rate: float, momentum: float) -> None:
        self._model = model
        self._before = {name: nn.Parameter(p.detach().clone()) for name, p in model.named_parameters()}
        self._optimizer = torch.optim.SGD(
            self._before.values(), lr=learning_rate, momentum=momentum, nesterov=momentum > 0
        )

    @torch.no_grad()
    def begin(self) -> None:
        """Measure the way from here on."""
        for name, parameter in self._model.named_parameters():
            self._before[name].copy_(parameter)

    @torch.no_grad()
    def step(self) -> None:
        for name, parameter in self._model.named_parameters():
            before = self._before[name]
            before.grad = before - parameter
        self._optimizer.step()
        for name, parameter in self._model.named_parameters():
            parameter.copy_(self._before[name])

    def tensors(self) -> dict[str, Tensor]:
        """The momentum; the weights themselves are the model's whenever ranks agree."""
        kept = {name: self._optimizer.state[before] for name, before in self._before.items()}
        found = {name: slots.get("momentum_buffer") for name, slots in kept.items()}
        return {_OUTER + name: momentum for name, momentum in found.items() if momentum is not None}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.begin()
        for name, before in self._before.items():
            if (momentum := tensors.get(_OUTER + name)) is not None:
                self._optimizer.state[before]["momentum_buffer"] = momentum.to(before.device)
