"""Parts of an object store: read from there by row groups, or fetched whole into a cache on a local disk."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from sparktrain.dataset.digest import digest_of
from sparktrain.dataset.manifest import Manifest, Part
from sparktrain.file_cache import CachedFile, FileCache, NotFetched
from sparktrain.storage import RemotePath

_CHUNK_BYTES = 32 << 20  # of one GET, when a whole part is fetched


class RemotePart:
    """A part in an object store, with those methods of a `pq.ParquetFile` that readers use.

    Opening asks for the file's size and its footer; a row group is one GET for every 32 MiB of it. What the
    store refuses comes as StoreFailed, with the part and the row groups; what is wrong with the content comes
    as from a `pq.ParquetFile`.

    Args:
        path: its place.
        source: opened there.
        options: of `pq.ParquetFile`.
        metadata: of the footer, if it was read before.
    """

    def __init__(
        self,
        path: RemotePath,
        source: pa.NativeFile,
        options: Mapping[str, Any],
        metadata: pq.FileMetaData | None,
    ) -> None:
        self._path, self._source, self._options = path, source, dict(options)
        with path.failures("the footer"):
            file = self._file(metadata)
        self.metadata: pq.FileMetaData = file.metadata
        self.schema: pq.ParquetSchema = file.schema
        self.schema_arrow: pa.Schema = file.schema_arrow
        self.num_row_groups: int = file.num_row_groups

    def read_row_group(
        self, number: int, columns: Sequence[str] | None = None, use_threads: bool = True
    ) -> pa.Table:
        with self._path.failures(f"row group {number}"):
            # A reader of its own, because one keeps the bytes that it read ahead for as long as it lives.
            return self._file(self.metadata).read_row_group(number, columns, use_threads=use_threads)

    def close(self) -> None:
        self._source.close()

    def __enter__(self) -> RemotePart:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _file(self, metadata: pq.FileMetaData | None) -> pq.ParquetFile:
        return pq.ParquetFile(self._source, metadata=metadata, pre_buffer=True, **self._options)


class CachedPart(pq.ParquetFile):  # type: ignore[misc]  # pyarrow has no types
    """A part that was fetched whole into a cache; it stays there until `close`.

    When a row group can't be read, the copy is deleted, and the part is read from its store from then on.
    """

    def __init__(
        self,
        cache: FileCache,
        cached: CachedFile,
        path: RemotePath,
        options: Mapping[str, Any],
        metadata: pq.FileMetaData | None,
    ) -> None:
        super().__init__(cached.path, memory_map=False, pre_buffer=False, metadata=metadata, **options)
        self._cache, self._cached, self._path, self._options = cache, cached, path, options
        self._instead: RemotePart | None = None

    def read_row_group(
        self, number: int, columns: Sequence[str] | None = None, use_threads: bool = True
    ) -> pa.Table:
        if self._instead is None:
            try:
                return super().read_row_group(number, columns, use_threads=use_threads)
            except (pa.ArrowException, OSError):
                self._cache.discard(self._cached)
                source = self._path.open_input_file()
                self._instead = RemotePart(self._path, source, dict.fromkeys(self._options, True), None)
        return self._instead.read_row_group(number, columns, use_threads)

    def close(self, force: bool = False) -> None:
        super().close(force)
        self._cached.close()
        if self._instead is not None:
            self._instead.close()


def open_cached(
    root: RemotePath,
    part: Part,
    manifest: Manifest,
    options: Mapping[str, Any],
    metadata: pq.FileMetaData | None,
) -> CachedPart | None:
    """Open the copy of a part in the cache of `root`, fetched if need be; None when there is none to be had.

    Raises:
        FileNotFoundError: the part is not in the store. StoreFailed: the store refused, or did not answer.
    """
    if root.cache is None:
        return None

    path = root / part.path

    def fetch(target: BinaryIO) -> None:
        with path.open_input_file() as source:
            while (chunk := _read(path, source)).size:
                target.write(chunk)
        target.flush()
        _check(target, part, manifest)

    cached = root.cache.open(_key(part), part.size_bytes, fetch)
    if cached is None:
        return None
    try:
        return CachedPart(root.cache, cached, path, options, metadata)
    except (pa.ArrowException, OSError):  # a damaged footer
        root.cache.discard(cached)
        cached.close()
        return None


def _read(path: RemotePath, source: pa.NativeFile) -> pa.Buffer:
    with path.failures():
        return source.read_buffer(_CHUNK_BYTES)


def _key(part: Part) -> str:
    """Names the file, not the values alone: equal ones may be laid out or compressed in another way."""
    content = f"{part.digest} {part.size_bytes} {part.path}"
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def _check(target: BinaryIO, part: Part, manifest: Manifest) -> None:
    try:
        with pq.ParquetFile(target.name, memory_map=True, pre_buffer=False) as file:
            found = digest_of(file, manifest.columns, manifest.layout)
    except (pa.ArrowException, OSError, LookupError, ValueError) as error:
        raise NotFetched(f"{part.path} can't be read ({str(error).partition(chr(10))[0]})") from error
    if found != part.digest:
        raise NotFetched(f"the digest of {part.path} is {found}, the manifest says {part.digest}")
