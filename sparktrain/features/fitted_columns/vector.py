"""Vectors and other arrays of a fixed shape."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sparktrain.errors import ValuesRefused
from sparktrain.features.declare import NumberType
from sparktrain.features.fitted_columns.column import (
    Arrays,
    FittedColumn,
    all_finite,
    counted,
    null_mask,
    refuse_nulls,
)
from sparktrain.features.output import Output
from sparktrain.features.raw import read_as


class FittedVector(FittedColumn):
    """An array of `shape` a row. `fill`: "zeros", or None: nulls, NaN and infinities are refused."""

    kind: Literal["vector"] = "vector"
    input_type: Literal["doubles", "longs", "binary"]
    shape: tuple[int, ...]
    dtype: NumberType
    fill: Literal["zeros"] | None

    @property
    def outputs(self) -> tuple[Output, ...]:
        return (Output(name=self.name, dtype=self.dtype, shape=self.shape),)

    def transform(self, column: pa.Array) -> Arrays:
        column = read_as(column, self.input_type)
        if self.fill is None:
            refuse_nulls(self.column, column)
        there = column.drop_null() if column.null_count else column
        rows = self._of_bytes(there) if self.input_type == "binary" else self._of_lists(there)
        if column.null_count:
            spread = np.zeros((len(column), rows.shape[1]), rows.dtype)
            spread[~null_mask(column)] = rows
            rows = spread
        return {self.name: rows.reshape(len(column), *self.shape)}

    def _of_bytes(self, column: pa.Array) -> NDArray[Any]:
        dtype = np.dtype(self.dtype).newbyteorder("<")
        num_bytes = math.prod(self.shape) * dtype.itemsize
        self._check_sizes(pc.binary_length(column), num_bytes, "bytes")
        return self._finite(rows_of_bytes(column, num_bytes).view(dtype).astype(self.dtype, copy=False))

    def _of_lists(self, column: pa.Array) -> NDArray[Any]:
        num_values = math.prod(self.shape)
        self._check_sizes(pc.list_value_length(column), num_values, "values")
        flat = column.flatten()
        if flat.null_count:
            if self.fill is None:
                raise ValuesRefused({self.column: f"{counted(flat.null_count, 'null')} within the arrays"})
            flat = flat.fill_null(0)
        values = self._converted(flat.to_numpy(zero_copy_only=False))
        return values.reshape(len(column), num_values)

    def _check_sizes(self, lengths: pa.Array, wanted: int, unit: str) -> None:
        wrong = int(np.count_nonzero(lengths.to_numpy() != wanted))
        if wrong:
            one = f"row that has not {wanted} {unit}"
            raise ValuesRefused({self.column: counted(wrong, one, f"rows that have not {wanted} {unit}")})

    def _converted(self, values: NDArray[Any]) -> NDArray[Any]:
        """Turn float64 or int64 into the dtype; what it can't hold is refused."""
        if values.dtype.kind == "f":
            values = self._finite(values)
        with np.errstate(over="ignore", invalid="ignore"):
            converted = values.astype(self.dtype, copy=False)
        if converted.dtype.kind == "f":
            lost = 0 if all_finite(converted) else int(np.count_nonzero(~np.isfinite(converted)))
        else:
            lost = int(np.count_nonzero(converted != values))
        if lost:
            raise ValuesRefused({self.column: f"{counted(lost, 'number')} that {self.dtype} can't hold"})
        return converted

    def _finite(self, values: NDArray[Any]) -> NDArray[Any]:
        if values.dtype.kind != "f" or all_finite(values):
            return values
        finite = np.isfinite(values)
        lost = int(finite.size - np.count_nonzero(finite))
        if lost and self.fill is None:
            raise ValuesRefused({self.column: counted(lost, "NaN or infinity", "NaNs or infinities")})
        return np.where(finite, values, values.dtype.type(0))


def rows_of_bytes(column: pa.Array, num_bytes: int) -> NDArray[np.uint8]:
    """View a large_binary column, whose rows all have `num_bytes` bytes, as [rows, num_bytes]."""
    rows = len(column)
    if rows == 0:
        return np.empty((0, num_bytes), np.uint8)
    _, offsets, data = column.buffers()
    first = int(np.frombuffer(offsets, np.int64)[column.offset])
    return np.frombuffer(data, np.uint8, rows * num_bytes, first).reshape(rows, num_bytes)
