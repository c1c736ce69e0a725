"""Reading parts and row groups, and saying exactly which of them is bad."""

from __future__ import annotations

import inspect
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sparktrain.dataset.layout import StoredColumn
from sparktrain.dataset.manifest import Manifest, Part
from sparktrain.dataset.remote import RemotePart, open_cached
from sparktrain.errors import DatasetChanged, DatasetInvalid, SchemaMismatch, first_line
from sparktrain.storage import AnyPath, RemotePath

Verify = Literal["first", "always"]

MAX_OPEN_PARTS = 64  # of all threads together; their footers take memory
# Without checksums a flipped bit in a page is read as wrong data; pyarrow 14 has none.
_HAS_CHECKSUMS = "page_checksum_verification" in inspect.signature(pq.ParquetFile.__init__).parameters
WRITE_CHECKSUMS = {"write_page_checksum": True} if _HAS_CHECKSUMS else {}


class FileUnusable(Exception):
    """What is wrong with one file of a dataset; callers put it into a `DatasetInvalid`."""


class SchemaDifference(NamedTuple):
    """How the columns of a part differ from the manifest's; hashable, to group parts that differ alike."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    retyped: tuple[tuple[str, str, str], ...]

    @classmethod
    def between(cls, found: pa.Schema, wanted: pa.Schema) -> SchemaDifference:
        common = [
            (_describe(found.field(f.name)), _describe(f), f.name) for f in wanted if f.name in found.names
        ]
        return cls(
            missing=tuple(name for name in wanted.names if name not in found.names),
            unexpected=tuple(name for name in found.names if name not in wanted.names),
            retyped=tuple((name, given, want) for given, want, name in common if given != want),
        )

    def error(self, where: str) -> SchemaMismatch:
        retyped = {name: (given, want) for name, given, want in self.retyped}
        return SchemaMismatch(where, self.missing, self.unexpected, retyped, "prepare the dataset again")


def _describe(field: pa.Field) -> str:
    return f"nullable {field.type}" if field.nullable else str(field.type)


PartFile: TypeAlias = pq.ParquetFile | RemotePart


def open_part(
    root: AnyPath,
    part: Part,
    manifest: Manifest | None = None,
    *,
    metadata: pq.FileMetaData | None = None,
    verify: bool = True,
) -> PartFile:
    """Open a part and hold its size and footer against the manifest; reads no page.

    Args:
        root: the dataset's directory, or where it lies in an object store.
        part: of its manifest.
        manifest: given by who will read rows: then a part of an object store is fetched into the cache of
            `root`, if it has one.
        metadata: of the part, when it was read before: then the footer is not read again.
        verify: whether every page that is read is held against its checksum. Those that come from an object
            store always are.

    Raises:
        FileUnusable: with the part's name and what is wrong.
        StoreFailed: an object store refused, or did not answer.
    """
    try:
        file = _open(root, part, manifest, metadata, verify)
    except FileNotFoundError:
        raise FileUnusable(f"{part.path} is missing") from None
    except (pa.ArrowException, OSError) as error:
        raise FileUnusable(f"{part.path} can't be opened ({first_line(error)})") from error
    found = tuple(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups))
    if found != part.row_groups:
        raise FileUnusable(
            f"{part.path} has row groups of {_short(found)} rows, the manifest says {_short(part.row_groups)}"
        )
    return file


def count_footer_chunks(parts: Sequence[Part], num_columns: int) -> int:
    """Columns times row groups of as many parts as are open at once, at most."""
    sizes = sorted((len(part.row_groups) for part in parts), reverse=True)
    return sum(sizes[:MAX_OPEN_PARTS]) * num_columns


def _open(
    root: AnyPath, part: Part, manifest: Manifest | None, metadata: pq.FileMetaData | None, verify: bool
) -> PartFile:
    options = {"page_checksum_verification": verify} if _HAS_CHECKSUMS else {}
    if not isinstance(root, RemotePath):
        path = root / part.path
        _check_size(part, path.stat().st_size)
        # Not mapped: reading is as fast, and a mapped file that somebody cuts short kills the process.
        return pq.ParquetFile(path, memory_map=False, pre_buffer=False, metadata=metadata, **options)
    if manifest is not None and (cached := open_cached(root, part, manifest, options, metadata)) is not None:
        return cached
    source = (root / part.path).open_input_file()
    _check_size(part, source.size())
    return RemotePart(root / part.path, source, dict.fromkeys(options, True), metadata)


def _check_size(part: Part, size_bytes: int) -> None:
    if size_bytes != part.size_bytes:
        raise FileUnusable(f"{part.path} has {size_bytes:,} bytes, the manifest says {part.size_bytes:,}")


class Seen:
    """What one process has found out about the parts of a dataset; threads share it.

    Footers are read once, and pages are held against their checksums when they are read for the first time:
    verifying costs a third of the speed or more. A part must stay the file that it was.
    """

    def __init__(self) -> None:
        self._footers: OrderedDict[str, pq.FileMetaData] = OrderedDict()
        self._lock = threading.Lock()
        # (part, row group, columns); None stands for all columns
        self.verified: set[tuple[str, int, tuple[str, ...] | None]] = set()
        self._signatures: dict[str, tuple[int, ...]] = {}

    def __reduce__(self) -> tuple[type[Seen], tuple[()]]:
        return Seen, ()  # another process has seen nothing yet

    def footer(self, part: str) -> pq.FileMetaData | None:
        return self._footers.get(part)

    def keep_footer(self, part: str, footer: pq.FileMetaData) -> None:
        with self._lock:
            self._footers[part] = footer
            if len(self._footers) > MAX_OPEN_PARTS:
                self._footers.popitem(last=False)

    def is_unchanged(self, root: AnyPath, part: Part) -> bool:
        """Whether a part is still the file that it was when this was asked first."""
        if isinstance(root, RemotePath):
            return True  # to ask would be one request more for each row group; objects are put, not changed
        try:
            status = (root / part.path).stat()
        except OSError:
            return part.path not in self._signatures
        signature = status.st_size, status.st_mtime_ns, status.st_ino
        return self._signatures.setdefault(part.path, signature) == signature


class RowGroupReader:
    """Reads row groups of one split by their number in the manifest's order. Each thread needs its own.

    Args:
        root: the dataset's directory, or where it lies in an object store.
        manifest: of the dataset.
        split: whose row groups.
        columns: what to read, of `stored_columns`.
        seen: shared by all readers of the dataset in this process; None: this one is alone.
        verify: "first" holds a page against its checksum when this process reads it for the first time.
        num_threads: that read the split, each with a reader of its own.
    """

    def __init__(
        self,
        root: AnyPath,
        manifest: Manifest,
        split: str,
        columns: Sequence[StoredColumn],
        seen: Seen | None = None,
        verify: Verify = "first",
        num_threads: int = 1,
    ) -> None:
        self._root = root
        self._manifest = manifest
        self._parts = manifest.splits[split].parts
        names = [column.name for column in columns]
        # Looking up all the names in each file's schema takes a tenth of the time that reading does.
        self._names = None if set(names) == set(manifest.schema.names) else names
        self._first_row_groups = np.cumsum([0, *(len(part.row_groups) for part in self._parts)])
        self._seen = seen or Seen()
        # What comes from an object store comes anew each time.
        self._always = verify == "always" or (isinstance(root, RemotePath) and root.cache is None)
        self._max_open = max(MAX_OPEN_PARTS // num_threads, 2)
        self._open: OrderedDict[tuple[int, bool], PartFile] = OrderedDict()

    def row_groups(self, part: int) -> range:
        """Numbers of the row groups of a part of the split."""
        return range(self._first_row_groups[part], self._first_row_groups[part + 1])

    def locate(self, row_group: int) -> tuple[Part, int]:
        """Return the part of a row group, and its number in there."""
        number = self._part_of(row_group)
        return self._parts[number], int(row_group - self._first_row_groups[number])

    def num_rows(self, row_group: int) -> int:
        part, inside = self.locate(row_group)
        return part.row_groups[inside]

    def value_ranges(self, row_group: int, names: Sequence[str]) -> dict[str, tuple[Any, Any]]:
        """Return the smallest and the largest value of columns, where the footer tells them.

        Raises:
            DatasetInvalid, SchemaMismatch: when the part can't be opened.
        """
        _, inside = self.locate(row_group)
        try:
            metadata = self._file(self._part_of(row_group), verify=True).metadata.row_group(inside)
        except FileUnusable as error:
            raise DatasetInvalid(str(self._root), str(error)) from error.__cause__
        columns = [metadata.column(number) for number in range(metadata.num_columns)]
        found = {column.path_in_schema: column.statistics for column in columns}
        return {
            name: (found[name].min, found[name].max)
            for name in names
            if name in found and found[name] is not None and found[name].has_min_max
        }

    def read_table(self, row_group: int) -> pa.Table:
        """Read a row group as it is stored.

        Raises:
            DatasetInvalid: with the part and the row group.
            DatasetChanged: when the part is another file than at its first read.
            SchemaMismatch: with the part, when its columns are not the manifest's.
        """
        part, inside = self.locate(row_group)
        where = f"{part.path}, row group {inside}"
        columns = None if self._names is None else tuple(self._names)
        known = {(part.path, inside, None), (part.path, inside, columns)}
        verify = self._always or not known & self._seen.verified
        try:
            file = self._file(self._part_of(row_group), verify)
            table = file.read_row_group(inside, columns=self._names, use_threads=False)
        except (pa.ArrowException, OSError, FileUnusable) as error:
            if not self._seen.is_unchanged(self._root, part):
                raise DatasetChanged(str(self._root), part.path) from error
            said = str(error)
            if not isinstance(error, FileUnusable):
                said = f"{where} can't be read ({first_line(error)})"
            raise DatasetInvalid(str(self._root), said) from error
        if not self._seen.is_unchanged(self._root, part):
            raise DatasetChanged(str(self._root), part.path)
        if len(table) != part.row_groups[inside]:
            problem = f"{where} has {len(table):,} rows, the manifest says {part.row_groups[inside]:,}"
            raise DatasetInvalid(str(self._root), problem)
        self._seen.verified.add((part.path, inside, columns))
        return table

    def _part_of(self, row_group: int) -> int:
        return int(np.searchsorted(self._first_row_groups, row_group, side="right")) - 1

    def _file(self, number: int, verify: bool) -> PartFile:
        key = (number, verify)
        if key in self._open:
            self._open.move_to_end(key)
            return self._open[key]
        if len(self._open) >= self._max_open:
            self._open.popitem(last=False)[1].close()
        part = self._parts[number]
        footer = self._seen.footer(part.path)
        self._seen.is_unchanged(self._root, part)  # from here on
        file = open_part(self._root, part, self._manifest, metadata=footer, verify=verify)
        if footer is None:
            difference = SchemaDifference.between(file.schema_arrow, self._manifest.schema)
            if any(difference):
                raise difference.error(str(self._root / part.path))
            self._seen.keep_footer(part.path, file.metadata)
        self._open[key] = file
        return file


def _short(row_groups: Sequence[int]) -> str:
    shown = ", ".join(map(str, row_groups[:6]))
    return f"[{shown}, … {len(row_groups)} in all]" if len(row_groups) > 6 else f"[{shown}]"
