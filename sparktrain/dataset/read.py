"""Reading parts and row groups, and saying exactly which of them is bad."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sparktrain.dataset.layout import StackKey, StoredColumn
from sparktrain.dataset.manifest import Manifest, Part
from sparktrain.dataset.plan import IntArray
from sparktrain.errors import DatasetInvalid, SchemaMismatch

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


def open_part(root: Path, part: Part) -> pq.ParquetFile:
    """Open a part and hold its size and footer against the manifest; reads no page.

    Raises:
        FileUnusable: with the part's name and what is wrong.
    """
    path = root / part.path
    try:
        size_bytes = path.stat().st_size
        if size_bytes != part.size_bytes:
            raise FileUnusable(f"{part.path} has {size_bytes:,} bytes, the manifest says {part.size_bytes:,}")
        file = pq.ParquetFile(path, memory_map=True, pre_buffer=False, **_VERIFY_PAGES)
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


class RowGroupReader:
    """Reads row groups of one split by their number in the manifest's order. Each thread needs its own.

    Args:
        root: the dataset's directory.
        manifest: of the dataset.
        split: whose row groups.
        columns: what to read, of `stored_columns`.
    """

    def __init__(self, root: Path, manifest: Manifest, split: str, columns: Sequence[StoredColumn]) -> None:
        self._root = root
        self._schema = manifest.schema
        self._parts = manifest.splits[split].parts
        self._columns = list(columns)
        self._names = [column.name for column in columns]
        self._first_row_groups = np.cumsum([0, *(len(part.row_groups) for part in self._parts)])
        self._open: OrderedDict[int, pq.ParquetFile] = OrderedDict()

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

    def _file(self, number: int) -> pq.ParquetFile:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        if len(self._open) >= _MAX_OPEN_PARTS:
            self._open.popitem(last=False)[1].close()
        part = self._parts[number]
        try:
            file = open_part(self._root, part)
        except FileUnusable as error:
            raise DatasetInvalid(str(self._root), str(error)) from error.__cause__
        difference = SchemaDifference.between(file.schema_arrow, self._schema)
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
