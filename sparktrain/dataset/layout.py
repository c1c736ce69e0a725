"""How columns lie in a part: each by itself ("columns"), or scalar features packed row-major ("blocks")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from sparktrain.errors import SchemaMismatch
from sparktrain.features.output import OutputType

Layout = Literal["columns", "blocks"]
Dtype = OutputType
Role = Literal["row_id", "feature", "target", "weight", "passthrough"]

# Stored columns of one dtype and shape are read into one array: few copies, and large ones.
StackKey = tuple[str, tuple[int, ...]]


class ColumnSpec(BaseModel):
    """A column as people see it: never null, every row of the same shape.

    Attributes:
        dtype: of each number; "string" has no shape.
        shape: of one row's value; () is a scalar.
        role: what the column is for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dtype: Dtype
    shape: tuple[Annotated[int, Field(ge=1)], ...] = ()
    role: Role

    @model_validator(mode="after")
    def _text_is_scalar(self) -> ColumnSpec:
        if self.dtype == "string" and self.shape:
            raise ValueError(f"{self.name} has dtype string and shape {self.shape}; text has no shape")
        return self

    @property
    def field(self) -> pa.Field:
        """The logical field: a value of any shape is a flat list, row-major."""
        scalar = pa.type_for_alias(self.dtype)
        return pa.field(
            self.name, pa.list_(scalar, prod(self.shape)) if self.shape else scalar, nullable=False
        )


class StoredColumn(NamedTuple):
    """A column of the Parquet file: little-endian, row-major, `fixed_size_binary` when it has a shape.

    Attributes:
        members: the columns that a block holds, in its order; () when this is no block.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    members: tuple[str, ...] = ()

    @property
    def key(self) -> StackKey:
        return self.dtype, self.shape

    @property
    def field(self) -> pa.Field:
        kind = pa.binary(self._row_bytes) if self.shape else pa.type_for_alias(self.dtype)
        return pa.field(self.name, kind, nullable=False)

    def values(self, column: pa.ChunkedArray) -> NDArray[np.generic]:
        """View a column that was read as an array of shape [rows, *shape]; copies only to join chunks."""
        array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
        if not self.shape:
            values: NDArray[np.generic] = array.to_numpy(zero_copy_only=False)
            return values
        count = len(array) * prod(self.shape)
        if count == 0:  # then there may be no buffer
            return np.empty((0, *self.shape), self.dtype)
        offset = array.offset * self._row_bytes  # a slice shares the whole buffer
        flat = np.frombuffer(array.buffers()[1], _little_endian(self.dtype), count, offset)
        return flat.reshape(-1, *self.shape)

    def array(self, values: NDArray[Any]) -> pa.Array:
        """Turn values of shape [rows, *shape] into what `values` reads back."""
        if self.dtype == "string":
            return pa.array(values, pa.string())
        if not self.shape:
            return pa.array(values)
        content = np.ascontiguousarray(values, _little_endian(self.dtype))
        # As bytes: a buffer without elements may have no other shape.
        buffer = pa.py_buffer(content.reshape(-1).view(np.uint8))
        return pa.Array.from_buffers(pa.binary(self._row_bytes), len(values), [None, buffer])

    @property
    def _row_bytes(self) -> int:
        return prod(self.shape) * np.dtype(self.dtype).itemsize


def stored_columns(
    specs: Sequence[ColumnSpec], layout: Layout, names: Sequence[str] | None = None
) -> tuple[StoredColumn, ...]:
    """Say which columns a part has, in its order.

    Under "blocks", scalar features of one dtype become one column, `block_<dtype>`, at the place of the first
    of them; text can't be packed, and all else stays as it is.

    Args:
        specs: all columns of the dataset.
        names: only what is needed to read these columns; None is all of them.
    """
    members: dict[str, list[str]] = {}
    for spec in specs:
        if layout == "blocks" and _is_packed(spec):
            members.setdefault(spec.dtype, []).append(spec.name)
    stored: dict[str, StoredColumn] = {}
    for spec in specs:
        if names is not None and spec.name not in names:
            continue
        if layout == "blocks" and _is_packed(spec):
            packed = tuple(members[spec.dtype])
            column = StoredColumn(f"block_{spec.dtype}", spec.dtype, (len(packed),), packed)
        else:
            column = StoredColumn(spec.name, spec.dtype, spec.shape)
        if stored.setdefault(column.name, column) != column:
            raise ValueError(f"no column may be called {column.name}: the layout `blocks` uses that name")
    return tuple(stored.values())


def stored_schema(specs: Sequence[ColumnSpec], layout: Layout) -> pa.Schema:
    """Return the schema of every part; no field is nullable."""
    return pa.schema([column.field for column in stored_columns(specs, layout)])


def pack(columns: Mapping[str, NDArray[Any]], specs: Sequence[ColumnSpec], layout: Layout) -> pa.Table:
    """Turn values by column into the table that a part stores.

    Args:
        columns: name -> array of shape [rows, *shape] and of the column's dtype; text as str objects.
        specs: all columns of the dataset.

    Raises:
        SchemaMismatch: with every column that is missing, unexpected, or of another dtype, shape or length.
    """
    _check(columns, specs)
    stored = stored_columns(specs, layout)
    arrays = [
        column.array(
            np.stack([columns[name] for name in column.members], axis=1)
            if column.members
            else columns[column.name]
        )
        for column in stored
    ]
    if nulls := [column.name for column, array in zip(stored, arrays, strict=True) if array.null_count]:
        raise SchemaMismatch(_TO_PACK, retyped=dict.fromkeys(nulls, ("nullable string", "string")))
    return pa.table(arrays, schema=pa.schema([column.field for column in stored]))


def unpack(
    table: pa.Table, specs: Sequence[ColumnSpec], layout: Layout, names: Sequence[str] | None = None
) -> pa.Table:
    """Turn what was read of a part into the columns as people see them, in the order asked for.

    Args:
        table: at least the columns `stored_columns(specs, layout, names)`.
        specs: all columns of the dataset.
        names: the columns to return; None is all of them, in the order of `specs`.

    Returns:
        Scalars as they are, values of a shape as fixed-size lists; no field is nullable.
    """
    wanted = {spec.name: spec for spec in specs}
    wanted = wanted if names is None else {name: wanted[name] for name in names}
    found: dict[str, pa.Array | pa.ChunkedArray] = {}
    for stored in stored_columns(specs, layout, list(wanted)):
        column = table.column(stored.name)
        if stored.members:
            by_column = stored.values(column).T
            for name, values in zip(stored.members, by_column, strict=True):
                if name in wanted:
                    found[name] = pa.array(np.ascontiguousarray(values))
        elif stored.shape:
            flat = pa.array(stored.values(column).reshape(-1))
            found[stored.name] = pa.FixedSizeListArray.from_arrays(flat, prod(stored.shape))
        else:
            found[stored.name] = column
    schema = pa.schema([spec.field for spec in wanted.values()])
    return pa.table([found[name] for name in wanted], schema=schema)


_TO_PACK = "the columns to pack"


def _check(columns: Mapping[str, NDArray[Any]], specs: Sequence[ColumnSpec]) -> None:
    names = [spec.name for spec in specs]
    missing = [name for name in names if name not in columns]
    unexpected = [name for name in columns if name not in names]
    rows = len(next(iter(columns.values()))) if columns else 0
    retyped: dict[str, tuple[str, str]] = {}
    for spec in specs:
        if spec.name in columns:
            values = columns[spec.name]
            dtype = "string" if values.dtype.kind in "OU" else str(values.dtype)
            if (dtype, values.shape) != (spec.dtype, (rows, *spec.shape)):
                given, wanted = list(values.shape), [rows, *spec.shape]
                retyped[spec.name] = (f"{dtype}{given}", f"{spec.dtype}{wanted}")
    if missing or unexpected or retyped:
        raise SchemaMismatch(_TO_PACK, missing, unexpected, retyped)


def _is_packed(spec: ColumnSpec) -> bool:
    return spec.role == "feature" and not spec.shape and spec.dtype != "string"


def _little_endian(dtype: str) -> np.dtype[Any]:
    return np.dtype(dtype).newbyteorder("<")
