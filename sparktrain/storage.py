"""Files that other processes look at while we write them: nothing is visible before it is whole.

Only paths of a file system that all hosts see are supported so far; the configuration refuses the URI of an
object store.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from sparktrain.errors import StorageUnwritable


def to_json(value: object) -> str:
    """Render JSON in the one form that we write everywhere: sorted, indented, strict, newline at the end."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def commit_bytes(path: Path, content: bytes) -> None:
    """Write `content` so that a reader (or a crash) sees the old file or the new one, never a part."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide the file from Spark's other users
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def commit_json(path: Path, value: object) -> None:
    commit_bytes(path, to_json(value).encode())


def read_json(path: Path) -> Any:
    return json.loads(path.read_bytes())


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def writable_directory(path: Path, mode: int = 0o777) -> Path:
    """Create `path` if needed and prove by a write that we may write there.

    Raises:
        StorageUnwritable: with the path and the system's reason.
    """
    try:
        path.mkdir(parents=True, exist_ok=True, mode=mode)
        with tempfile.TemporaryFile(dir=path) as probe:
            probe.write(b"x")
    except OSError as error:
        raise StorageUnwritable(str(path), error.strerror or str(error)) from error
    return path.resolve()
