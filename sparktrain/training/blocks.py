"""Blocks: the repeated modules of a model, by the names of their classes; what is done to each of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from sparktrain.config import TrainConfig
from sparktrain.errors import BlocksUnknown


def blocks_of(model: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    """Return the modules of these classes, in the model's order; not the model itself.

    Raises:
        BlocksUnknown: the model has none of a class.
    """
    there = [module for module in model.modules() if module is not model]
    classes = Counter(type(module).__name__ for module in there)
    if missing := [name for name in names if name not in classes]:
        raise BlocksUnknown(missing, classes)
    return [module for module in there if type(module).__name__ in names]


def prepare_model(model: nn.Module, config: TrainConfig) -> None:
    """Switch on what the configuration asks for, in place: names of weights and hooks stay as they are.

    Before the strategy wraps anything: then what it adds, like the gathering of weights, comes around it.
    """
    blocks = blocks_of(model, config.blocks)
    if config.activation_checkpointing:
        for module in blocks or [model]:
            _replace_forward(module, partial(checkpoint, module.forward, use_reentrant=False))
    if config.compile:
        # Sharded weights come and go between the blocks, where a graph ends anyway.
        for module in blocks if blocks and config.strategy == "fsdp" else [model]:
            _replace_forward(module, torch.compile(module.forward))


def _replace_forward(module: nn.Module, forward: object) -> None:
    module.forward = forward  # type: ignore[assignment]
