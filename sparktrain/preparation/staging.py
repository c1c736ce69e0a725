"""Where a dataset grows until it is whole: gone when anything fails, and tidied up after a kill."""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import socket
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from sparktrain.dataset import open_dataset
from sparktrain.dataset.dataset import LATEST_FILE
from sparktrain.errors import DataError
from sparktrain.preparation.spooling import QUARANTINE
from sparktrain.storage import commit_json

logger = logging.getLogger(__name__)

_PREFIX = ".staging-"
_OWNER_FILE = "owner.json"
_ABANDONED_SECONDS = 7 * 24 * 3600


@contextmanager
def staging_directory(home: Path) -> Iterator[Path]:
    """Make a directory beside the datasets of `home`; whatever is left in it at the end is deleted."""
    _remove_abandoned(home)
    staging = home / f"{_PREFIX}{secrets.token_hex(6)}"
    staging.mkdir()
    commit_json(staging / _OWNER_FILE, {"host": socket.gethostname(), "pid": os.getpid()})
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)  # already moved away when all went well


def keep_only(directory: Path, names: Collection[str]) -> None:
    """Delete the files that tries of Spark tasks left which failed or came second."""
    for file in directory.iterdir() if directory.is_dir() else ():
        if file.name not in names:
            file.unlink(missing_ok=True)


def keep_rejected(staging: Path) -> Path:
    """Keep the quarantine of rows that make no dataset, to look at; returns where."""
    rejected = staging.with_name(staging.name.replace(_PREFIX, "rejected-"))
    os.rename(staging / QUARANTINE, rejected)
    return rejected


def leave(staging: Path) -> None:
    """Take out what only the growing needed, before the directory becomes a dataset."""
    shutil.rmtree(staging / "spool", ignore_errors=True)
    (staging / _OWNER_FILE).unlink()


def publish(staging: Path) -> Path:
    """Move the dataset, whose manifest is there, to its name, and point `latest.json` to it."""
    home, name = staging.parent, open_dataset(staging).fingerprint
    final = home / name
    if not _is_sound(final):
        shutil.rmtree(final, ignore_errors=True)
        os.rename(staging, final)
    commit_json(home / LATEST_FILE, {"path": name})
    return final


def _is_sound(directory: Path) -> bool:
    """Whether the dataset is there with all its files: a damaged one is replaced, as its error promises."""
    try:
        open_dataset(directory).verify()
    except DataError:
        return False
    return True


def _remove_abandoned(home: Path) -> None:
    """Delete what killed preparations left: this host's whose process is gone, and old ones of others."""
    for left in home.glob(f"{_PREFIX}*"):
        if _is_abandoned(left):
            logger.warning("removing what a stopped preparation left: %s", left)
            shutil.rmtree(left, ignore_errors=True)


def _is_abandoned(left: Path) -> bool:
    try:
        owner = json.loads((left / _OWNER_FILE).read_bytes())
        if owner["host"] == socket.gethostname():
            return not Path(f"/proc/{int(owner['pid'])}").exists() if Path("/proc").exists() else False
    except (OSError, ValueError, KeyError, TypeError):
        pass  # just made or about to be published; or stopped there, which only its age tells
    try:
        return time.time() - left.stat().st_mtime > _ABANDONED_SECONDS
    except OSError:
        return False  # just gone
