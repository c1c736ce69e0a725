"""Checkpoints: a directory per save, hashes in a manifest that is written last, verified before anything is loaded.

Tensors are safetensors and everything else is JSON, so that loading a checkpoint runs no code from it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from sparktrain.errors import CheckpointInvalid
from sparktrain.storage import commit_bytes, commit_json, read_json, sha256_file

logger = logging.getLogger(__name__)

MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
GENERATORS_FILE = "generators.safetensors"
MANIFEST_FILE = "manifest.json"
FORMAT = "sparktrain.checkpoint/1"


@dataclass(frozen=True)
class Checkpoint:
    """A committed save.

    Attributes:
        path: its directory.
        step: optimizer updates done when it was taken.
        state: data cursor, best-so-far, validation metrics and the like: plain JSON.
    """

    path: Path
    step: int
    state: Mapping[str, Any]


def checkpoint_name(step: int, attempt: int) -> str:
    """Name of a save's directory. The attempt is in it, so that a leftover rank of an earlier one can't touch ours."""
    return f"step-{step:09d}-attempt-{attempt:03d}"


def save_checkpoint(
    path: Path,
    *,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    generators: Mapping[str, Tensor],
    state: Mapping[str, Any],
) -> Checkpoint:
    """Write one checkpoint; called by one rank.

    Args:
        path: a directory of its own, see `checkpoint_name`.
        generators: uint8 state of each rank's random generator, by name.
        state: JSON that comes back with the checkpoint.
    """
    if path.exists():  # the same step again within an attempt: nothing of it may survive beside the new files
        shutil.rmtree(path)
    path.mkdir(parents=True)
    tensors, settings = _optimizer_state(model, optimizer)
    contents = {MODEL_FILE: model.state_dict(), OPTIMIZER_FILE: tensors, GENERATORS_FILE: generators}
    files = {name: _write(path / name, content) for name, content in contents.items()}
    manifest = {"format": FORMAT, "step": step, "state": dict(state), "optimizer": settings, "files": files}
    commit_json(path / MANIFEST_FILE, manifest)
    return Checkpoint(path, step, state)


def committed(directory: Path) -> Iterator[Path]:
    """Directories with a manifest, newest step first."""
    found = [path.parent for path in directory.glob(f"step-*/{MANIFEST_FILE}")]
    yield from sorted(found, key=lambda path: path.name, reverse=True)


def verify_checkpoint(path: Path) -> Checkpoint:
    """Check every file against the manifest.

    Raises:
        CheckpointInvalid: with the file and what is wrong with it.
    """
    try:
        manifest = read_json(path / MANIFEST_FILE)
        if manifest["format"] != FORMAT:
            raise CheckpointInvalid(str(path), f"its format is {manifest['format']!r}, expected {FORMAT!r}")
        for name, digest in manifest["files"].items():
            if sha256_file(path / name) != digest:
                raise CheckpointInvalid(str(path), f"{name} is not the file that was saved (its SHA-256 differs)")
        return Checkpoint(path, int(manifest["step"]), manifest["state"])
    except (OSError, KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointInvalid(str(path), f"{type(error).__name__}: {error}") from error


def newest_valid(directory: Path) -> Checkpoint | None:
    """The newest checkpoint whose files are whole; each broken one that is passed over is logged as a warning."""
    for path in committed(directory):
        try:
            return verify_checkpoint(path)
        except CheckpointInvalid as error:
            logger.warning("%s Trying the one before it.", error)
    return None


def load_weights(path: Path, model: nn.Module) -> None:
    """Load a verified checkpoint's weights into `model`, in place."""
    model.load_state_dict(_load(path, MODEL_FILE))


def load_optimizer(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load a verified checkpoint's optimizer state, in place."""
    settings = read_json(path / MANIFEST_FILE)["optimizer"]
    names = [name for name, _ in model.named_parameters()]
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in _load(path, OPTIMIZER_FILE).items():
        name, _, slot = key.rpartition("/")
        state.setdefault(names.index(name), {})[slot] = tensor
    groups = [{**group, "params": [names.index(name) for name in group["params"]]} for group in settings]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def load_generators(path: Path) -> dict[str, Tensor]:
    """State of each rank's random generator, by name."""
    return _load(path, GENERATORS_FILE)


def delete_old(directory: Path, keep: int, also_keep: Path | None) -> None:
    """Delete all but the newest `keep` committed checkpoints and `also_keep`; nothing that we didn't commit."""
    for path in list(committed(directory))[keep:]:
        if path != also_keep:
            (path / MANIFEST_FILE).unlink()  # first: a half-deleted directory must not look committed
            shutil.rmtree(path)


def _write(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write tensors; return the SHA-256 of what was meant to be written, not of what the disk made of it."""
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    commit_bytes(path, content)
    return hashlib.sha256(content).hexdigest()


def _load(path: Path, name: str) -> dict[str, Tensor]:
    try:
        return load_file(path / name)
    except (OSError, SafetensorError) as error:
        raise CheckpointInvalid(str(path), f"{name}: {error}") from error


def _optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Name an optimizer's state by parameter, so that it does not hang on the parameters' order."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    tensors = {
        f"{names[parameter]}/{slot}": torch.as_tensor(value)
        for parameter, slots in optimizer.state.items()
        for slot, value in slots.items()
    }
    settings = []
    for group in optimizer.param_groups:
        plain = {k: v for k, v in group.items() if k != "params" and isinstance(v, bool | int | float | str | list | tuple | None)}
        settings.append({**plain, "params": [names[parameter] for parameter in group["params"]]})
    return tensors, settings
