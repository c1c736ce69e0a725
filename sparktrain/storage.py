"""Files that others see: local ones, never seen before they are whole, and those of object stores, to read.

A local path is a `pathlib.Path`, as everywhere. What lies in an object store is a `RemotePath`, which has
those methods of a `Path` that reading a dataset takes. Writing needs a file system that all hosts see.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

from sparktrain.errors import NotLocal, StorageUnwritable, StoreFailed, StoreUriInvalid
from sparktrain.file_cache import FileCache

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import fs

# Of a store that speaks S3. Arrow's client tries again after a time-out, a reset, a body cut short, 408, 429
# and 5xx, with growing pauses. Its own default, 3 tries of 3 seconds, is what a busy store exceeds.
MAX_TRIES = 5
REQUEST_TIMEOUT_SECONDS = 10.0  # without a byte; curl's average lags, so that a stalled body takes about 17
CONNECT_TIMEOUT_SECONDS = 5.0
_GCS_RETRY_SECONDS = 120  # in all; the client's default is 15 minutes

_SHORTEST_SECRET = 6  # what is shorter would be found in every word
_URI = re.compile(r"^[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_SHOWN_OPTIONS = {"endpoint_override", "scheme", "region"}  # any other may be a secret
_RETRIED = re.compile(
    r"AWS Error (SERVICE_UNAVAILABLE|INTERNAL_FAILURE|REQUEST_TIMEOUT|SLOW_DOWN|THROTTLING|NETWORK_CONNECTION"
    r"|REQUEST_LIMIT_EXCEEDED|BANDWIDTH_LIMIT_EXCEEDED|UNKNOWN \(HTTP status 5\d\d\))"
)
_FROM_STORE = re.compile(r"AWS Error|curlCode|google::cloud|Azure|HDFS|HTTP|[Tt]imed? ?out")


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


def path_of(address: str | Path | RemotePath, cache: FileCache | None = None) -> AnyPath:
    """Return what `address` names: a Path for a local path or a file:// URI, a RemotePath for any other URI.

    Args:
        cache: keeps files of an object store on a local disk; a local path needs none, and ignores it.
    """
    if isinstance(address, RemotePath):
        return RemotePath(address.uri, address.inside, cache or address.cache)
    if isinstance(address, Path) or not _URI.match(address):
        return Path(address)
    scheme = address.partition(":")[0].lower()
    try:
        parts = urlsplit(address)
        _ = parts.port  # where a slash cut the credentials short, half a secret is taken for it
    except ValueError:
        problem = "it is no URI; `/`, `@` and `:` in credentials must be written as %2F, %40 and %3A"
        raise StoreUriInvalid(f"{scheme}://***", problem) from None
    return Path(unquote(parts.path)) if scheme == "file" else RemotePath(address, cache=cache)


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
    """A file or folder of an object store, named and not opened; picklable, and for reading only.

    The connection is made in the process that first reads, so that a fork or a pickle carries none.

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
        parts = urlsplit(self.uri)
        _, at, host = parts.netloc.rpartition("@")
        query = "&".join(
            f"{key}={value if key in _SHOWN_OPTIONS else '***'}" for key, value in parse_qsl(parts.query)
        )
        path = f"{parts.path.rstrip('/')}/{self.inside}".rstrip("/")
        return urlunsplit((parts.scheme, f"***@{host}" if at else host, path, query, ""))

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

    @contextmanager
    def failures(self, what: str = "") -> Iterator[None]:
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
            reason = str(error).partition("\n")[0].strip().rstrip(":")
            if not _FROM_STORE.search(reason):
                raise
            tries: int | None = None  # other clients retry by rules of their own
            if "AWS Error" in reason:
                tries = MAX_TRIES if _RETRIED.search(reason) else 1
            shown = f"{what} of {self}" if what else str(self)
            raise StoreFailed(
                shown, self._without_secrets(reason), tries, time.monotonic() - started
            ) from None

    def _type(self) -> str:
        with self.failures():
            filesystem, path = self._place()
            return str(filesystem.get_file_info(path).type.name)

    def _place(self) -> tuple[fs.FileSystem, str]:
        filesystem, base = _connect(os.getpid(), self.uri)
        return filesystem, f"{base}/{self.inside}".rstrip("/")

    def _without_secrets(self, text: str) -> str:
        parts = urlsplit(self.uri)
        secrets = parts.netloc.rpartition("@")[0].split(":")
        secrets += [value for key, value in parse_qsl(parts.query) if key not in _SHOWN_OPTIONS]
        for secret in {*secrets, *map(unquote, secrets)}:
            if len(secret) >= _SHORTEST_SECRET:
                text = text.replace(secret, "***")
        return text


AnyPath: TypeAlias = Path | RemotePath


@lru_cache(maxsize=16)
def _connect(process: int, uri: str) -> tuple[fs.FileSystem, str]:
    """Make the file system of a URI, once a process, since a connection does not outlive a fork."""
    import pyarrow as pa
    from pyarrow import fs

    scheme = uri.partition(":")[0].lower()
    try:
        if scheme == "s3":
            return _connect_s3(uri)
        if scheme in ("gs", "gcs") and "retry_limit_seconds" not in uri:
            uri += f"{'&' if '?' in uri else '?'}retry_limit_seconds={_GCS_RETRY_SECONDS}"
        filesystem, base = fs.FileSystem.from_uri(uri)
    except (ValueError, TypeError, NotImplementedError, pa.ArrowException) as error:
        # Arrow's text has the whole URI in it, and the traceback would show it.
        problem = type(error).__name__ if "://" in str(error) else str(error).partition("\n")[0]
        raise StoreUriInvalid(str(RemotePath(uri)), problem) from None
    return filesystem, base.rstrip("/")


def _connect_s3(uri: str) -> tuple[fs.FileSystem, str]:
    """`from_uri` takes no number of tries and no time-outs."""
    from pyarrow import fs

    parts = urlsplit(uri)
    user, _, bucket = parts.netloc.rpartition("@")
    options: dict[str, Any] = {key: _option(key, value) for key, value in parse_qsl(parts.query)}
    if user:
        key, _, secret = user.partition(":")
        options |= {"access_key": unquote(key), "secret_key": unquote(secret)}
    if "endpoint_override" not in options:
        options["region"] = options.get("region") or fs.resolve_s3_region(bucket)
    elif not {"AWS_REGION", "AWS_DEFAULT_REGION"} & os.environ.keys():
        options.setdefault("region", "us-east-1")  # without any, the client asks EC2, for seconds
    settings: dict[str, Any] = {
        "retry_strategy": fs.AwsStandardS3RetryStrategy(max_attempts=MAX_TRIES),
        "request_timeout": REQUEST_TIMEOUT_SECONDS,
        "connect_timeout": CONNECT_TIMEOUT_SECONDS,
    }
    return fs.S3FileSystem(**settings | options), f"{bucket}{unquote(parts.path)}".rstrip("/")


def _option(key: str, value: str) -> str | bool | float:
    if key.endswith("_timeout"):
        return float(value)
    return {"true": True, "false": False}.get(value.lower(), value)
