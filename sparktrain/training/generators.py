"""Random numbers of a rank: another stream on every rank, saved with each checkpoint."""

from __future__ import annotations

import torch
from torch import Tensor

from sparktrain.world import World


def seed_rank(world: World, seed: int, step: int) -> None:
    """Start the rank's own stream, which depends on nothing but the arguments."""
    torch.manual_seed((seed * 1_000_003 + world.rank + 1) * 1_000_003 + step)


def generator_state(world: World) -> Tensor:
    """Return the CPU's state, and after it the GPU's, which dropout draws from there: uint8 [bytes]."""
    states = [torch.get_rng_state()]
    if _is_cuda(world):
        states.append(torch.cuda.get_rng_state(world.device))
    return torch.cat(states)


def restore_generator(state: Tensor, world: World) -> None:
    """Continue the stream that `generator_state` was taken of."""
    size = len(torch.get_rng_state())
    torch.set_rng_state(state[:size].clone())
    if _is_cuda(world) and len(state) > size:  # the save may come from a run on the CPU
        torch.cuda.set_rng_state(state[size:].clone(), world.device)


def _is_cuda(world: World) -> bool:
    return world.device.startswith("cuda")


def be_deterministic(wanted: bool | None, world: World) -> None:
    """Refuse operations whose results may differ next time; unless told otherwise, on CPUs alone."""
    is_wanted = not _is_cuda(world) if wanted is None else wanted
    torch.use_deterministic_algorithms(is_wanted)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # no result uses it
    torch.backends.cudnn.benchmark = not is_wanted
