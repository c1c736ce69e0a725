"""FileCache: copies of remote files on a local disk, capped, shared by threads and processes."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

_log = logging.getLogger(__name__)

_WHOLE, _PARTIAL = ".whole", ".partial"
_LOCK_FILE = ".lock"


class NotFetched(Exception):
    """What `fetch` gave is not what was asked for; it is not kept."""


@dataclass(frozen=True)
class FileCache:
    """Files by a key that names their content: what is there is never changed, only deleted.

    Locks of the system (`flock`) keep those who share the directory apart, and end with their process:
    whoever reads a file holds it shared, whoever fetches one holds it alone. So a second one waits for the
    first instead of fetching again, a file in use is never evicted, and what a killed process left is known
    by its lack of a lock. They need a local file system; so does memory-mapping.

    Attributes:
        directory: created when the first file is kept.
        max_bytes: that all files may have together, those under way included.
    """

    directory: Path
    max_bytes: int

    def open(self, key: str, num_bytes: int, fetch: Callable[[BinaryIO], None]) -> CachedFile | None:
        """Return the file `key`, fetched if it is not there; None when it can't be kept, for want of room.

        Args:
            key: hexadecimal.
            num_bytes: of the file.
            fetch: writes it; called by one process or thread at a time. What it raises is raised here, but
                NotFetched and OSError, which are logged and give None: a full disk is no reason to stop.
        """
        if num_bytes > self.max_bytes:
            return None
        try:
            while True:
                if (found := self._opened(key, num_bytes)) is not None:
                    return found
                with self._alone():
                    if (self.directory / f"{key}{_WHOLE}").exists():
                        continue  # come since: renamed over it, ours would leave its readers unprotected
                    under_way = self._under_way(key)
                    partial = None if under_way else self._make_room(key, num_bytes)
                if under_way is not None:
                    with under_way, _held(under_way, fcntl.LOCK_SH):
                        continue  # whoever fetched it has done, or died
                return None if partial is None else self._filled(partial, key, num_bytes, fetch)
        except (NotFetched, OSError) as error:
            _warn_once(self.directory, str(error))
            return None

    def discard(self, file: CachedFile) -> None:
        """Delete a file that proved to be damaged; those who read it can go on."""
        with self._alone():
            if _is_at(file.handle, file.path):
                file.path.unlink()

    def _opened(self, key: str, num_bytes: int) -> CachedFile | None:
        path = self.directory / f"{key}{_WHOLE}"
        while True:
            try:
                handle = path.open("rb")
            except FileNotFoundError:
                return None
            fcntl.flock(handle, fcntl.LOCK_SH)
            if not _is_at(handle, path):  # deleted before we held it
                handle.close()
                continue
            found = CachedFile(path, handle)
            if os.fstat(handle.fileno()).st_size != num_bytes:
                self.discard(found)
                found.close()
                continue
            os.utime(path)  # the time of the last use, which eviction goes by
            return found

    def _under_way(self, key: str) -> BinaryIO | None:
        """The unfinished file of `key`, if a living process is at it."""
        for path in self.directory.glob(f"{key}.*{_PARTIAL}"):
            handle = path.open("rb")
            if not _lock_now(handle):
                return handle
            path.unlink()
            handle.close()
        return None

    def _make_room(self, key: str, num_bytes: int) -> BinaryIO | None:
        """Evict what was not used for longest until `num_bytes` fit; the file to write them to, or None."""
        total = 0
        for path in self.directory.glob(f"*{_PARTIAL}"):
            with path.open("rb") as handle:
                if _lock_now(handle):
                    path.unlink()  # of a process that was killed
                else:
                    total += int(path.name.split(".")[1])  # it will have that many
        whole = sorted(((path.stat(), path) for path in self.directory.glob(f"*{_WHOLE}")), key=_last_used)
        total += sum(status.st_size for status, _ in whole)
        for status, path in whole:
            if total + num_bytes <= self.max_bytes:
                break
            with path.open("rb") as handle:
                if _lock_now(handle):
                    path.unlink()
                    total -= status.st_size
        if total + num_bytes > self.max_bytes:
            return None
        partial = (self.directory / f"{key}.{num_bytes}{_PARTIAL}").open("xb")
        fcntl.flock(partial, fcntl.LOCK_EX)
        return partial

    def _filled(
        self, partial: BinaryIO, key: str, num_bytes: int, fetch: Callable[[BinaryIO], None]
    ) -> CachedFile:
        path = Path(partial.name)
        try:
            if hasattr(os, "posix_fallocate") and num_bytes:
                os.posix_fallocate(partial.fileno(), 0, num_bytes)  # a full disk shows before the first byte
            fetch(partial)
            if partial.tell() != num_bytes:
                raise NotFetched(f"{partial.tell():,} bytes came, {num_bytes:,} were asked for")
            partial.flush()
            # No fsync: what a power cut leaves half written fails its checksums, and is fetched again.
            with self._alone():
                found = CachedFile(path.rename(self.directory / f"{key}{_WHOLE}"), partial)
                fcntl.flock(partial, fcntl.LOCK_SH)
            return found
        except BaseException:
            with self._alone():  # others open what they have just listed
                path.unlink(missing_ok=True)
            CachedFile(path, partial).close()
            raise

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else creates or deletes files meanwhile."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self.directory / _LOCK_FILE).open("ab") as handle, _held(handle, fcntl.LOCK_EX):
            yield


@dataclass(frozen=True)
class CachedFile:
    """A file that is kept until `close`."""

    path: Path
    handle: BinaryIO

    def close(self) -> None:
        if not self.handle.closed:
            fcntl.flock(self.handle, fcntl.LOCK_UN)
            self.handle.close()


@contextmanager
def _held(handle: BinaryIO, how: int) -> Iterator[None]:
    fcntl.flock(handle, how)
    try:
        yield
    finally:  # closing would not do: a process that was forked meanwhile holds the lock, too
        fcntl.flock(handle, fcntl.LOCK_UN)


def _lock_now(handle: BinaryIO) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(handle: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _last_used(entry: tuple[os.stat_result, Path]) -> int:
    return entry[0].st_mtime_ns


@lru_cache(maxsize=64)
def _warn_once(directory: Path, reason: str) -> None:
    _log.warning("the cache in %s is passed by, and files are read from their store: %s", directory, reason)
