"""Random numbers of a rank: another stream on every rank, saved with each checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sparktrain.world import World


def seed_rank(world: World, seed: int, step: int) -> None:
    """Start the rank's own stream, which depends on nothing but the arguments."""
    torch.manual_seed((seed * 1_000_003 + world.rank + 1) * 1_000_003 + step)


def gather_generators(world: World) -> dict[str, Tensor]:
    """Return the state of every rank's generators, uint8 of shape [bytes], by name; a collective call."""
    states: list[Any] = [_state(world)]
    if world.size > 1:
        states = [None] * world.size
        dist.all_gather_object(states, _state(world))
    return {f"rank-{rank}": state for rank, state in enumerate(states)}


def restore_generators(states: Mapping[str, Tensor], world: World) -> None:
    """Continue the stream of the rank of the same number."""
    state = states[f"rank-{world.rank}"]
    size = len(torch.get_rng_state())
    torch.set_rng_state(state[:size].clone())
    if _is_cuda(world) and len(state) > size:  # the save may come from a run on the CPU
        torch.cuda.set_rng_state(state[size:].clone(), world.device)


def _state(world: World) -> Tensor:
    """The CPU's state, and after it the GPU's, which is the one that dropout draws from there."""
    states = [torch.get_rng_state()]
    if _is_cuda(world):
        states.append(torch.cuda.get_rng_state(world.device))
    return torch.cat(states)


def _is_cuda(world: World) -> bool:
    return world.device.startswith("cuda")
