"""Files that others see: local ones, never seen before they are whole, and those of object stores.

A local path is a `pathlib.Path`, as everywhere. What lies in an object store is a `RemotePath`, which has
those methods of a `Path` that reading a dataset takes, and writing a checkpoint.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import unquote, urlsplit

from sparktrain.errors import NotLocal, StorageUnwritable, StoreFailed, first_line
from sparktrain.file_cache import FileCache
from sparktrain.object_store import check_uri, connect, count_tries, is_from_store, shown, without_secrets

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import fs

_URI = re.compile(r"^[a-z][a-z0-9+.-]*://", re.IGNORECASE)


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


def write_once(path: AnyPath, content: bytes) -> None:
    """Write a file under a name that nobody else uses, without a rename, which object stores don't have.

    A crash can leave a part of it: whoever reads it must know its hash. Local folders are made as needed.

    Raises:
        OSError: the disk did not take it. StoreFailed: the store did not.
    """
    if isinstance(path, RemotePath):
        path.write_bytes(content)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    sync_directory(path.parent.parent)  # or a power cut could lose all that is written into it
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(handle, rest) :]
        os.fsync(handle)
    finally:
        os.close(handle)
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


def check_writable(directory: AnyPath) -> None:
    """Prove by a write that we may write to a directory, which is made if it is a local one.

    Raises:
        StorageUnwritable, StoreFailed: with what the storage said.
    """
    if isinstance(directory, RemotePath):
        probe = directory / f".probe-{secrets.token_hex(8)}"
        probe.write_bytes(b"x")
        probe.unlink()
    else:
        writable_directory(directory)


def path_of(address: str | Path | RemotePath, cache: FileCache | None = None) -> AnyPath:
    """Return what `address` names: a Path for a local path or a file:// URI, a RemotePath for any other URI.

    Args:
        cache: keeps files of an object store on a local disk; a local path needs none, and ignores it.
    """
    if isinstance(address, RemotePath):
        return RemotePath(address.uri, address.inside, cache or address.cache)
    if isinstance(address, Path) or not _URI.match(address):
        return Path(address)
    check_uri(address)
    if address.lower().startswith("file:"):
        return Path(unquote(urlsplit(address).path))
    return RemotePath(address, cache=cache)


def local(path: AnyPath, what: str) -> Path:
    """Return `path` if it is local.

    Raises:
        NotLocal: it lies in an object store, and `what` needs a plain directory.
    """
    if isinstance(path, RemotePath):
        raise NotLocal(str(path), what)
    return path


@dataclass(frozen=True)
class RemotePath:
    """A file or folder of an object store, named and not opened; picklable.

    The connection is made in the process that first needs it, so that a fork or a pickle carries none.

    Attributes:
        uri: as `pyarrow.fs.FileSystem.from_uri` takes it; may hold credentials, which no text of ours shows.
            That of an S3 store may have any option of `pyarrow.fs.S3FileSystem` in its query.
        inside: path below it.
        cache: where whole files may be kept.
    """

    uri: str = field(repr=False)
    inside: str = ""
    cache: FileCache | None = field(default=None, compare=False)

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(self.uri, str(PurePosixPath(self.inside) / name), self.cache)

    def __str__(self) -> str:
        return shown(self.uri, self.inside)

    @property
    def name(self) -> str:
        return PurePosixPath(self.inside).name

    @property
    def parent(self) -> RemotePath:
        assert self.inside, "what lies above is another place"
        inside = str(PurePosixPath(self.inside).parent)
        return RemotePath(self.uri, "" if inside == "." else inside, self.cache)

    def resolve(self) -> RemotePath:
        """It is the same from everywhere."""
        return self

    def is_file(self) -> bool:
        return self._type() == "File"

    def is_dir(self) -> bool:
        return self._type() == "Directory"

    def read_bytes(self) -> bytes:
        with self.open_input_file() as file, self.failures():
            content: bytes = file.read()
            return content

    def open_input_file(self) -> pa.NativeFile:
        """Open the file; asks the store for its size.

        Raises:
            FileNotFoundError: there is none.
            StoreFailed: the store refused, or did not answer.
        """
        with self.failures():
            filesystem, path = self._place()
            return filesystem.open_input_file(path)

    def iterdir(self) -> Iterator[RemotePath]:
        """Return what lies in this folder, which need not exist: stores know no empty ones."""
        from pyarrow import fs

        with self.failures():
            filesystem, path = self._place()
            found = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
        return iter([self / info.base_name for info in found])

    def write_bytes(self, content: bytes) -> None:
        """Write the whole file; it is seen when all of it is there.

        Raises:
            StoreFailed: the store refused, or did not answer.
        """
        with self.failures(writing=True):
            filesystem, path = self._place()
            with filesystem.open_output_stream(path) as file:
                file.write(content)

    def unlink(self, missing_ok: bool = False) -> None:
        with self.failures(writing=True), suppress(*[FileNotFoundError] if missing_ok else []):
            filesystem, path = self._place()
            filesystem.delete_file(path)

    def rmdir(self) -> None:
        """Delete the folder if it is empty.

        Raises:
            OSError: it is not.
        """
        if any(self.iterdir()):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(self))
        with self.failures(writing=True), suppress(FileNotFoundError):
            filesystem, path = self._place()
            filesystem.delete_dir(path)

    @contextmanager
    def failures(self, what: str = "", writing: bool = False) -> Iterator[None]:
        """Let what the store says about this file come as StoreFailed, which `what` is prefixed to.

        What is wrong with the content passes as it came, as does FileNotFoundError, without the store's text.
        """
        import pyarrow as pa  # configuration and terminal do without

        started = time.monotonic()
        try:
            yield
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, "no such object", str(self)) from None
        except (OSError, pa.ArrowException) as error:
            reason = first_line(error).rstrip(":")
            if not is_from_store(reason):
                raise
            seconds = time.monotonic() - started
            place = f"{what} of {self}" if what else str(self)
            said = without_secrets(reason, self.uri)
            raise StoreFailed(place, said, count_tries(reason), seconds, writing) from None

    def _type(self) -> str:
        with self.failures():
            filesystem, path = self._place()
            return str(filesystem.get_file_info(path).type.name)

    def _place(self) -> tuple[fs.FileSystem, str]:
        filesystem, base = connect(self.uri)
        return filesystem, f"{base}/{self.inside}".rstrip("/")


AnyPath: TypeAlias = Path | RemotePath
