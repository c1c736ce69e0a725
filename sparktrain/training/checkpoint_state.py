"""What of a training a checkpoint holds: tensors by name, and the settings of the optimizer as JSON.

"model/<name>", "optimizer/<parameter>/<slot>", "generator/rank-<n>". The optimizer's state is named by
parameter, so that it does not hang on the parameters' order.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from sparktrain.errors import CheckpointInvalid
from sparktrain.training.checkpoint import Checkpoint
from sparktrain.training.checkpoint_read import empty_tensors, read_tensors

_MODEL, _OPTIMIZER, _GENERATOR = "model/", "optimizer/", "generator/"


def tensors_of(
    model: nn.Module, optimizer: torch.optim.Optimizer, generator: Tensor, rank: int
) -> dict[str, Tensor]:
    """Return everything that a rank holds, by name: the tensors themselves, no copies.

    Args:
        generator: uint8 state of the rank's random generators, shape [bytes].
    """
    names = _names(model)
    state = {
        f"{_OPTIMIZER}{names[parameter]}/{slot}": torch.as_tensor(value)
        for parameter, slots in optimizer.state.items()
        for slot, value in slots.items()
    }
    return {**_of_model(model), **state, f"{_GENERATOR}rank-{rank}": generator}


def settings_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Return what JSON can hold of each group of the optimizer, and the names of its parameters."""
    names = _names(model)
    return [
        {**_plain(group), "params": [names[parameter] for parameter in group["params"]]}
        for group in optimizer.param_groups
    ]


def load_weights(saved: Checkpoint, model: nn.Module) -> None:
    """Load the weights into `model`, in place; raises what `read_tensors` raises."""
    read_tensors(saved, _check_names(saved, model))


def export_weights(saved: Checkpoint, file: Path) -> None:
    """Write the weights alone as one safetensors file, under the names of the module's state."""
    weights = empty_tensors(saved, _MODEL)
    read_tensors(saved, weights)
    safetensors.torch.save_file({name.removeprefix(_MODEL): tensor for name, tensor in weights.items()}, file)


def restore(
    saved: Checkpoint,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rank: int | None,
) -> Tensor | None:
    """Load weights and optimizer, in place, in one go.

    Args:
        rank: whose generators' state is wanted; None: nobody's.

    Returns:
        That state, uint8 of shape [bytes].
    """
    state = empty_tensors(saved, _OPTIMIZER)
    generator = {} if rank is None else empty_tensors(saved, f"{_GENERATOR}rank-{rank}")
    read_tensors(saved, {**_check_names(saved, model), **state, **generator})
    _load_optimizer(saved, model, optimizer, state)
    return next(iter(generator.values()), None)


def _load_optimizer(
    saved: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Hand the optimizer its state under the numbers that its parameters have now."""
    names, settings = _names(model), saved.state["optimizer"]
    groups = [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]
    if [sorted(group) for group in groups] != [sorted(group["params"]) for group in settings]:
        raise CheckpointInvalid(str(saved.path), "its optimizer has other parameters than the model's")
    numbers = {name: number for number, name in enumerate(name for group in groups for name in group)}
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, slot = key.removeprefix(_OPTIMIZER).rpartition("/")
        state.setdefault(numbers[name], {})[slot] = tensor
    param_groups = [
        {**was, "params": [numbers[name] for name in group]}
        for was, group in zip(settings, groups, strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": param_groups})


def _of_model(model: nn.Module) -> dict[str, Tensor]:
    return {_MODEL + name: tensor for name, tensor in model.state_dict().items()}


def _check_names(saved: Checkpoint, model: nn.Module) -> dict[str, Tensor]:
    """Return the model's tensors; what it lacks is refused here, what the checkpoint lacks later."""
    tensors = _of_model(model)
    if unknown := sorted(n for n in saved.tensors.keys() - tensors.keys() if n.startswith(_MODEL)):
        raise CheckpointInvalid(str(saved.path), f"the model has nothing that is called {', '.join(unknown)}")
    return tensors


def _names(model: nn.Module) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in model.named_parameters()}


def _plain(group: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a parameter group that JSON can hold."""
    kinds = (bool, int, float, str, list, tuple, type(None))
    return {name: value for name, value in group.items() if name != "params" and isinstance(value, kinds)}
