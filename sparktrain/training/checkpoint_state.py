"""What of a training a checkpoint holds: tensors by name, and the settings of the optimizer as JSON.

"model/<name>", "optimizer/<parameter>/<slot>", "average/<parameter>", "generator/rank-<n>", and what a
strategy keeps: "strategy/<name>", "strategy/rank-<n>/<name>". The optimizer's state is named by parameter, so
that it does not hang on the parameters' order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from sparktrain.errors import CheckpointInvalid
from sparktrain.training.checkpoint import Checkpoint
from sparktrain.training.checkpoint_read import empty_tensors, read_tensors

_MODEL, _OPTIMIZER, _GENERATOR = "model/", "optimizer/", "generator/"
_AVERAGE, _STRATEGY = "average/", "strategy/"

Optimizers = Mapping[str, torch.optim.Optimizer]


def tensors_of(
    model: nn.Module,
    optimizers: Optimizers,
    generator: Tensor,
    rank: int,
    average: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return everything that a rank holds, by name: the tensors themselves, no copies.

    Args:
        optimizers: each of parameters of its own.
        generator: uint8 state of the rank's random generators, shape [bytes].
        average: of the weights, by parameter.
    """
    names = _names(model)
    state = {
        f"{_OPTIMIZER}{names[parameter]}/{slot}": torch.as_tensor(value)
        for optimizer in optimizers.values()
        for parameter, slots in optimizer.state.items()
        for slot, value in slots.items()
    }
    # weights that share their memory have several names, and so have their averages
    named = model.named_parameters(remove_duplicate=False) if average else ()
    averages = {_AVERAGE + name: (average or {})[names[parameter]] for name, parameter in named}
    return {**_of_model(model), **state, **averages, f"{_GENERATOR}rank-{rank}": generator}


def settings_of(model: nn.Module, optimizers: Optimizers) -> dict[str, list[dict[str, Any]]]:
    """Return what JSON can hold of each group of each optimizer, and the names of its parameters."""
    names = _names(model)
    return {
        name: [
            {**_plain(group), "params": [names[parameter] for parameter in group["params"]]}
            for group in optimizer.param_groups
        ]
        for name, optimizer in optimizers.items()
    }


def load_weights(saved: Checkpoint, model: nn.Module) -> None:
    """Load the weights that are to be used, in place: averages where there are any, as `export_weights` does.

    Raises what `read_tensors` raises.
    """
    wanted = _check_names(saved, model)
    read_tensors(saved, {_used(saved, name): tensor for name, tensor in wanted.items()})


def export_weights(saved: Checkpoint, file: Path) -> None:
    """Write the weights alone as one safetensors file, whole, under the names of the module's state."""
    weights = empty_tensors(saved, _MODEL)
    read_tensors(saved, {_used(saved, name): tensor for name, tensor in weights.items()})
    safetensors.torch.save_file({name.removeprefix(_MODEL): tensor for name, tensor in weights.items()}, file)


@dataclass(frozen=True)
class Restored:
    """What a checkpoint holds for others than the model and the optimizers.

    Attributes:
        generator: uint8 state of the rank's random generators, shape [bytes]; None if the ranks were others.
        strategy: by name; without what other ranks kept.
    """

    generator: Tensor | None
    strategy: Mapping[str, Tensor]


def restore(
    saved: Checkpoint,
    model: nn.Module,
    optimizers: Optimizers,
    rank: int | None,
    average: Mapping[str, Tensor] | None = None,
) -> Restored:
    """Load weights, their averages and the optimizers' state, in place, in one go.

    Args:
        rank: whose own state is wanted; None: nobody's.
        average: to fill; with the weights, where the checkpoint has none.
    """
    weights, state = _check_names(saved, model), _empty_state(saved, model)
    averages = {_AVERAGE + name: tensor for name, tensor in (average or {}).items()}
    kept = {name: tensor for name, tensor in averages.items() if name in saved.tensors}
    generator = {} if rank is None else empty_tensors(saved, f"{_GENERATOR}rank-{rank}")
    strategy = _of_strategy(saved, rank)
    read_tensors(saved, {**weights, **state, **kept, **generator, **strategy})
    for name in averages.keys() - kept.keys():
        averages[name].copy_(weights[_MODEL + name.removeprefix(_AVERAGE)])
    _load_optimizers(saved, model, optimizers, state)
    return Restored(next(iter(generator.values()), None), strategy)


def _of_strategy(saved: Checkpoint, rank: int | None) -> dict[str, Tensor]:
    """Memory for what the strategy kept, and no other rank than this one."""
    foreign = [name for name in saved.tensors if name.startswith(f"{_STRATEGY}rank-")]
    own = [name for name in foreign if name.startswith(f"{_STRATEGY}rank-{rank}/")]
    return {
        name: tensor
        for name, tensor in empty_tensors(saved, _STRATEGY).items()
        if name in own or name not in foreign
    }


def _empty_state(saved: Checkpoint, model: nn.Module) -> dict[str, Tensor]:
    """Memory for the optimizers' state: in parts like those of the parameter, where that is in parts."""
    shards = {name: p for name, p in model.named_parameters() if isinstance(p, DTensor)}
    state = empty_tensors(saved, _OPTIMIZER)
    for name, tensor in state.items():
        parameter = shards.get(name.removeprefix(_OPTIMIZER).rpartition("/")[0])
        if parameter is not None and parameter.shape == tensor.shape:
            state[name] = torch.empty_like(parameter, dtype=tensor.dtype, requires_grad=False)
    return state


def _load_optimizers(
    saved: Checkpoint, model: nn.Module, optimizers: Optimizers, tensors: Mapping[str, Tensor]
) -> None:
    """Hand each optimizer its state under the numbers that its parameters have now."""
    names, settings = _names(model), saved.state["optimizer"]
    if list(settings) != list(optimizers):
        has = ", ".join(settings)
        raise CheckpointInvalid(str(saved.path), f"it has optimizers {has}; wanted: {', '.join(optimizers)}")
    by_parameter: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, slot = key.removeprefix(_OPTIMIZER).rpartition("/")
        by_parameter.setdefault(name, {})[slot] = tensor
    for kind, optimizer in optimizers.items():
        groups = [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]
        if [sorted(group) for group in groups] != [sorted(group["params"]) for group in settings[kind]]:
            raise CheckpointInvalid(str(saved.path), "its optimizer has other parameters than the model's")
        numbers = {name: number for number, name in enumerate(name for group in groups for name in group)}
        param_groups = [
            {**was, "params": [numbers[name] for name in group]}
            for was, group in zip(settings[kind], groups, strict=True)
        ]
        state = {n: by_parameter[name] for name, n in numbers.items() if name in by_parameter}
        optimizer.load_state_dict({"state": state, "param_groups": param_groups})


def _of_model(model: nn.Module) -> dict[str, Tensor]:
    return {_MODEL + name: tensor for name, tensor in model.state_dict().items()}


def _used(saved: Checkpoint, name: str) -> str:
    """Name what is to be used for a weight: its average, if it has one."""
    average = _AVERAGE + name.removeprefix(_MODEL)
    return average if average in saved.tensors else name


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
