"""Checkpoints: a directory per save, hashes in a manifest that is written last, verified before any load.

Tensors are safetensors and everything else is JSON, so that loading a checkpoint runs no code from it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
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
from sparktrain.storage import commit_bytes, commit_json, read_json, sha256_file, to_json

logger = logging.getLogger(__name__)

MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
GENERATORS_FILE = "generators.safetensors"
MANIFEST_FILE = "manifest.json"
FORMAT = "sparktrain.checkpoint/1"

_NAME = re.compile(r"step-(\d+)-attempt-(\d+)")


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
    """Name of a save's directory; the attempt is in it, so that a leftover rank of another can't share it."""
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
        _delete(path)
    path.mkdir(parents=True)
    tensors, settings = _optimizer_state(model, optimizer)
    contents = {MODEL_FILE: model.state_dict(), OPTIMIZER_FILE: tensors, GENERATORS_FILE: generators}
    files = {name: _write(path / name, content) for name, content in contents.items()}
    manifest = {"format": FORMAT, "step": step, "state": dict(state), "optimizer": settings, "files": files}
    # Its own hash too: a flipped digit in the data cursor would be valid JSON.
    commit_json(path / MANIFEST_FILE, {**manifest, "sha256": _digest(manifest)})
    return Checkpoint(path, step, state)


def committed(directory: Path) -> Iterator[Path]:
    """Directories with a manifest: the newest attempt first, and in it the newest step.

    The attempt counts more than the step: a later attempt went on from the newest save that was whole then,
    and a rank that was left over from an earlier attempt can't overtake it.
    """
    found = [
        path.parent for path in directory.glob(f"step-*/{MANIFEST_FILE}") if _NAME.fullmatch(path.parent.name)
    ]
    yield from sorted(found, key=_attempt_and_step, reverse=True)


def verify_checkpoint(path: Path) -> Checkpoint:
    """Check every file against the manifest.

    Raises:
        CheckpointInvalid: with the file and what is wrong with it.
    """
    try:
        content = (path / MANIFEST_FILE).read_bytes()
        manifest = json.loads(content)
        if manifest["format"] != FORMAT:
            raise CheckpointInvalid(str(path), f"its format is {manifest['format']!r}, expected {FORMAT!r}")
        whole = content == to_json(manifest).encode()
        digests = {MANIFEST_FILE: (_digest(manifest) if whole else None, manifest["sha256"])}
        digests |= {name: (sha256_file(path / name), digest) for name, digest in manifest["files"].items()}
        for name, (found, expected) in digests.items():
            if found != expected:
                raise CheckpointInvalid(str(path), f"{name} is not what was saved (its SHA-256 differs)")
        return Checkpoint(path, manifest["step"], manifest["state"])
    except (OSError, LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise CheckpointInvalid(str(path), f"{type(error).__name__}: {error}") from error


def newest_valid(directory: Path) -> Checkpoint | None:
    """The newest checkpoint whose files are whole; logs a warning for each broken one that is passed over."""
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


def delete_old(directory: Path, keep: int, also_keep: Path | None, attempt: int) -> None:
    """Delete all but the newest `keep` committed checkpoints and `also_keep`; nothing that we didn't commit.

    Args:
        attempt: who deletes; what later attempts committed is none of its business.
    """
    ours = [path for path in committed(directory) if _attempt_and_step(path)[0] <= attempt]
    for path in ours[keep:]:
        if path != also_keep:
            _delete(path)


def _delete(path: Path) -> None:
    (path / MANIFEST_FILE).unlink(missing_ok=True)  # first: a half-deleted directory must not look committed
    shutil.rmtree(path)


def _attempt_and_step(path: Path) -> tuple[int, int]:
    match = _NAME.fullmatch(path.name)
    assert match is not None, path
    return int(match[2]), int(match[1])


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(to_json({k: v for k, v in manifest.items() if k != "sha256"}).encode()).hexdigest()


def _write(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write tensors; return the SHA-256 of what was meant to be written, not of what the disk made of it."""
    # clone: tied weights share their memory, which the format refuses
    content = save({name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()})
    commit_bytes(path, content)
    return hashlib.sha256(content).hexdigest()


def _load(path: Path, name: str) -> dict[str, Tensor]:
    try:
        return load_file(path / name)
    except (OSError, SafetensorError) as error:
        raise CheckpointInvalid(str(path), f"{name}: {error}") from error


def _optimizer_state(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Name an optimizer's state by parameter, so that it does not hang on the parameters' order."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    tensors = {
        f"{names[parameter]}/{slot}": torch.as_tensor(value)
        for parameter, slots in optimizer.state.items()
        for slot, value in slots.items()
    }
    settings = [
        {**_plain(group), "params": [names[parameter] for parameter in group["params"]]}
        for group in optimizer.param_groups
    ]
    return tensors, settings


def _plain(group: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a parameter group that JSON can hold."""
    kinds = (bool, int, float, str, list, tuple, type(None))
    return {name: value for name, value in group.items() if name != "params" and isinstance(value, kinds)}
