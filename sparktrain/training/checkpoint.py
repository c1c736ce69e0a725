"""Checkpoints: a directory per save, hashes in a manifest that is written last, verified before any load.

Tensors are safetensors and everything else is JSON, so that loading a checkpoint runs no code from it.
Nothing is renamed and nothing appended to: what holds on a local disk holds in an object store.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sparktrain.errors import AttemptSuperseded, CheckpointInvalid, CheckpointOutdated, StoreFailed
from sparktrain.storage import AnyPath, to_json, write_once

logger = logging.getLogger(__name__)

MANIFEST_FILE = "manifest.json"
FORMAT = "sparktrain.checkpoint/3"

_NAME = re.compile(r"step-(\d+)-attempt-(\d+)")
_CLAIM = re.compile(r"attempt-(\d+)")
_RANK_FILE = re.compile(r"rank-\d{3,}\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """A committed save.

    Attributes:
        path: its directory, local or in an object store.
        step: optimizer updates done when it was taken.
        state: data cursor, best-so-far, validation metrics and the like: plain JSON.
        files: SHA-256 of each rank's file, by name.
        tensors: of each tensor its dtype, shape, and chunks: which file holds what lies from which offset on.
    """

    path: AnyPath
    step: int
    state: Mapping[str, Any]
    files: Mapping[str, str]
    tensors: Mapping[str, Mapping[str, Any]]


def checkpoint_name(step: int, attempt: int) -> str:
    """Name of a save's directory; the attempt is in it, so that a leftover rank of another can't share it."""
    return f"step-{step:09d}-attempt-{attempt:03d}"


def rank_file(rank: int) -> str:
    return f"rank-{rank:03d}.safetensors"


def key_in_file(name: str, shape: list[int], offset: list[int], part: list[int]) -> str:
    """Name a tensor in a file: a whole one as it is, a shard like "model/weight[4:8,0:16]"."""
    if shape == part:
        return name
    return f"{name}[{','.join(f'{o}:{o + n}' for o, n in zip(offset, part, strict=True))}]"


def claim(directory: AnyPath, attempt: int) -> None:
    """Say that an attempt has begun: those before it commit and delete nothing any more."""
    write_once(directory / f"attempt-{attempt:03d}", b"{}\n")


def commit(saved: Checkpoint) -> None:
    """Write the manifest, by which the files become a checkpoint; half a manifest counts as none.

    Raises:
        AttemptSuperseded: a later attempt has begun.
        ValueError: the state is not JSON.
        OSError, StoreFailed: the storage did not take it.
    """
    attempt, _ = _attempt_and_step(saved.path)
    if (latest := _latest_attempt(saved.path.parent)) > attempt:
        raise AttemptSuperseded(str(saved.path), attempt, latest)
    manifest = {"format": FORMAT, "step": saved.step, "state": dict(saved.state)}
    manifest |= {"files": dict(saved.files), "tensors": dict(saved.tensors)}
    # Its own hash too: a flipped digit in the data cursor would be valid JSON.
    write_once(saved.path / MANIFEST_FILE, to_json({**manifest, "sha256": _digest(manifest)}).encode())


def committed(directory: AnyPath) -> Iterator[AnyPath]:
    """Directories with a manifest: the newest attempt first, and in it the newest step.

    The attempt counts more than the step: a later attempt went on from the newest save that was whole then,
    and a rank that was left over from an earlier attempt can't overtake it.
    """
    found = [path for path in _entries(directory) if _NAME.fullmatch(path.name)]
    for path in sorted(found, key=_attempt_and_step, reverse=True):
        if (path / MANIFEST_FILE).is_file():
            yield path


def open_checkpoint(path: AnyPath) -> Checkpoint:
    """Read the manifest, and hold it against its own hash; files are held against theirs when they are read.

    Raises:
        CheckpointInvalid: with what is wrong.
        CheckpointOutdated: it is whole, and of a format that is not read any more.
    """
    try:
        content = (path / MANIFEST_FILE).read_bytes()
        manifest = json.loads(content)
        if content != to_json(manifest).encode() or manifest["sha256"] != _digest(manifest):
            raise CheckpointInvalid(str(path), _damaged(MANIFEST_FILE))
        if manifest["format"] != FORMAT:
            raise CheckpointOutdated(str(path), manifest["format"], FORMAT)
        for name in manifest["files"]:
            if not _RANK_FILE.fullmatch(name):  # it could lead out of the directory
                raise CheckpointInvalid(str(path), f"it names a file {name!r}, which is none of a rank's")
        fields = ("step", "state", "files", "tensors")
        return Checkpoint(path, **{name: manifest[name] for name in fields})
    except (OSError, LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise CheckpointInvalid(str(path), f"{MANIFEST_FILE}: {type(error).__name__}: {error}") from error


def read_rank_file(saved: Checkpoint, name: str) -> bytes:
    """Read a file of a checkpoint, if it is what was saved.

    Raises:
        CheckpointInvalid: with the file and what is wrong with it.
    """
    try:
        content = (saved.path / name).read_bytes()
    except OSError as error:
        raise CheckpointInvalid(str(saved.path), f"{name}: {type(error).__name__}: {error}") from error
    if hashlib.sha256(content).hexdigest() != saved.files[name]:
        raise CheckpointInvalid(str(saved.path), _damaged(name))
    return content


def verify_checkpoint(path: AnyPath) -> Checkpoint:
    """Check every file against the manifest; raises what `open_checkpoint` and `read_rank_file` raise."""
    saved = open_checkpoint(path)
    for name in saved.files:
        read_rank_file(saved, name)
    return saved


def newest_valid(directory: AnyPath) -> Checkpoint | None:
    """The newest checkpoint whose files are whole; logs a warning for each broken one that is passed over.

    Raises:
        CheckpointOutdated: it is of another format: to start anew instead would lose what it holds.
        StoreFailed: the store that it lies in does not answer, which says nothing about the checkpoint.
    """
    for path in committed(directory):
        try:
            return verify_checkpoint(path)
        except CheckpointInvalid as error:
            logger.warning("%s Trying the one before it.", error)
    return None


def delete_old(directory: AnyPath, keep: int, also_keep: str | None, attempt: int) -> None:
    """Delete all but the newest `keep` committed checkpoints and `also_keep`; nothing that we didn't write.

    Args:
        also_keep: name of a checkpoint.
        attempt: who deletes; nothing once a later one has begun, for that may go on from anything here.
    """
    if _latest_attempt(directory) > attempt:
        return
    # By name too: a later attempt can begin, and commit, after that look.
    ours = [path for path in committed(directory) if _attempt_and_step(path)[0] <= attempt]
    for path in ours[keep:]:
        if path.name != also_keep:
            clear(path)
            with suppress(OSError):  # somebody keeps something of theirs in it
                path.rmdir()


def clear(path: AnyPath) -> None:
    """Delete the files of a checkpoint, committed or not, and nothing else in its directory."""
    (path / MANIFEST_FILE).unlink(missing_ok=True)  # first: a half-deleted directory must not look committed
    for file in _entries(path):
        if _RANK_FILE.fullmatch(file.name):
            file.unlink(missing_ok=True)


def discard(file: AnyPath) -> None:
    """Delete what this rank wrote of a save that failed, as far as the storage lets us."""
    with suppress(OSError, StoreFailed):
        file.unlink(missing_ok=True)
        file.parent.rmdir()  # the last of the ranks succeeds


def _entries(directory: AnyPath) -> list[AnyPath]:
    try:
        return list(directory.iterdir())
    except FileNotFoundError:
        return []


def _latest_attempt(directory: AnyPath) -> int:
    """Return the number of the last attempt that has begun or committed here, 0 without any."""
    names = [path.name for path in _entries(directory)]
    begun = [int(match[1]) for name in names if (match := _CLAIM.fullmatch(name))]
    return max(begun + [int(match[2]) for name in names if (match := _NAME.fullmatch(name))], default=0)


def _attempt_and_step(path: AnyPath) -> tuple[int, int]:
    match = _NAME.fullmatch(path.name)
    assert match is not None, path
    return int(match[2]), int(match[1])


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(to_json({k: v for k, v in manifest.items() if k != "sha256"}).encode()).hexdigest()


def _damaged(name: str) -> str:
    return f"{name} is not what was saved (its SHA-256 differs)"
