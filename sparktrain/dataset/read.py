"""Reading parts and row groups, and saying exactly which of them is bad."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sparktrain.dataset.layout import StackKey, StoredColumn
from sparktrain.dataset.manifest import Manifest, Part
from sparktrain.dataset.plan import IntArray
from sparktrain.dataset.remote import RemotePart, open_cached
from sparktrain.errors import DatasetInvalid, SchemaMismatch
from sparktrain.storage import AnyPath, RemotePath

# Stored columns of one dtype and shape, stacked: (dtype, shape) -> [columns, rows, *shape].
Stacks = dict[StackKey, NDArray[np.generic]]

_MAX_OPEN_PARTS = 64
# Without checksums a flipped bit in a page is read as wrong data; pyarrow 14 has none.
_HAS_CHECKSUMS = "page_checksum_verification" in inspect.signature(pq.ParquetFile.__init__).parameters
_VERIFY_PAGES = {"page_checksum_verification": True} if _HAS_CHECKSUMS else {}
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
        metadata: of the part's footer, if it was read before.
        verify: whether pages are held against their checksums.

    Raises:
        FileUnusable: with the part's name and what is wrong.
        StoreFailed: an object store refused, or did not answer.
    """
    try:
        file = _open(root, part, manifest, metadata, _VERIFY_PAGES if verify else {})
    except FileNotFoundError:
        raise FileUnusable(f"{part.path} is missing") from None
    except (pa.ArrowException, OSError) as error:
        raise FileUnusable(f"{part.path} can't be opened ({_first_line(error)})") from error
    found = tuple(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups))
    if found != part.row_groups:
        raise FileUnusable(
            f"{part.path} has row groups of {_short(found)} rows, the manifest says {_short(part.row_groups)}"
        )
    return file


def _open(
    root: AnyPath,
    part: Part,
    manifest: Manifest | None,
    metadata: pq.FileMetaData | None,
    options: Mapping[str, Any],
) -> PartFile:
    if not isinstance(root, RemotePath):
        path = root / part.path
        _check_size(part, path.stat().st_size)
        return pq.ParquetFile(path, memory_map=True, pre_buffer=False, metadata=metadata, **options)
    if manifest is not None and (cached := open_cached(root, part, manifest, options, metadata)) is not None:
        return cached
    source = (root / part.path).open_input_file()
    _check_size(part, source.size())
    return RemotePart(root / part.path, source, options, metadata)


def _check_size(part: Part, size_bytes: int) -> None:
    if size_bytes != part.size_bytes:
        raise FileUnusable(f"{part.path} has {size_bytes:,} bytes, the manifest says {part.size_bytes:,}")


class RowGroupReader:
    """Reads row groups of one split by their number in the manifest's order. Each thread needs its own.

    Args:
        root: the dataset's directory, or where it lies in an object store.
        manifest: of the dataset.
        split: whose row groups.
        columns: what to read, of `stored_columns`.
    """

    def __init__(
        self, root: AnyPath, manifest: Manifest, split: str, columns: Sequence[StoredColumn]
    ) -> None:
        self._root = root
        self._manifest = manifest
        self._parts = manifest.splits[split].parts
        self._columns = list(columns)
        self._names = [column.name for column in columns]
        self._first_row_groups = np.cumsum([0, *(len(part.row_groups) for part in self._parts)])
        self._open: OrderedDict[int, PartFile] = OrderedDict()

    def row_groups(self, part: int) -> range:
        """Numbers of the row groups of a part of the split."""
        return range(self._first_row_groups[part], self._first_row_groups[part + 1])

    def read_table(self, row_group: int) -> pa.Table:
        """Read a row group as it is stored.

        Raises:
            DatasetInvalid: with the part and the row group.
            SchemaMismatch: with the part, when its columns are not the manifest's.
        """
        number = int(np.searchsorted(self._first_row_groups, row_group, side="right")) - 1
        part, inside = self._parts[number], int(row_group - self._first_row_groups[number])
        where = f"{part.path}, row group {inside}"
        file = self._file(number)
        try:
            table = file.read_row_group(inside, columns=self._names, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise DatasetInvalid(str(self._root), f"{where} can't be read ({_first_line(error)})") from error
        if len(table) != part.row_groups[inside]:
            problem = f"{where} has {len(table):,} rows, the manifest says {part.row_groups[inside]:,}"
            raise DatasetInvalid(str(self._root), problem)
        return table

    def read_stacks(self, row_group: int, order: IntArray | None = None) -> Stacks:
        """Read a row group with its rows in `order` (of shape [rows]; None: as stored). Only for reading."""
        table = self.read_table(row_group)
        by_key: dict[StackKey, list[NDArray[np.generic]]] = {}
        for column in self._columns:
            by_key.setdefault(column.key, []).append(column.values(table.column(column.name)))
        return {key: _stack(columns, order) for key, columns in by_key.items()}

    def _file(self, number: int) -> PartFile:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        if len(self._open) >= _MAX_OPEN_PARTS:
            self._open.popitem(last=False)[1].close()
        part = self._parts[number]
        try:
            file = open_part(self._root, part, self._manifest)
        except FileUnusable as error:
            raise DatasetInvalid(str(self._root), str(error)) from error.__cause__
        difference = SchemaDifference.between(file.schema_arrow, self._manifest.schema)
        if any(difference):
            raise difference.error(str(self._root / part.path))
        self._open[number] = file
        return file


def _stack(columns: Sequence[NDArray[np.generic]], order: IntArray | None) -> NDArray[np.generic]:
    if order is None and len(columns) == 1:
        return columns[0][None]  # what was decoded, without a copy
    stacked = np.empty((len(columns), *columns[0].shape), columns[0].dtype)
    for target, column in zip(stacked, columns, strict=True):
        if order is None:
            target[:] = column
        else:  # mode "raise", the default, would copy once more
            np.take(column, order, axis=0, out=target, mode="clip")
    return stacked


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _short(row_groups: Sequence[int]) -> str:
    shown = ", ".join(map(str, row_groups[:6]))
    return f"[{shown}, … {len(row_groups)} in all]" if len(row_groups) > 6 else f"[{shown}]"
