"""Vectors of spark.ml, dense and sparse, as Arrow holds them: read as arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_STORED = pa.struct(
    {
        "type": pa.int8(),  # 0 sparse, 1 dense
        "size": pa.int32(),
        "indices": pa.list_(pa.int32()),
        "values": pa.list_(pa.float64()),
    }
)


def is_vectors(given: pa.DataType) -> bool:
    """Whether a column has the fields by which Spark stores its vectors."""
    return bool(pa.types.is_struct(given)) and {field.name for field in given} == {
        field.name for field in _STORED
    }


def lists_of(column: pa.StructArray) -> pa.ListArray:
    """Turn Spark's vectors into lists of float64, each of its own length; a null stays one.

    Raises:
        pa.ArrowException: the fields are of other types, or there are more numbers than one column holds.
    """
    kind, sizes, indices, values = _parts(column)
    if not (kind == 0).any():
        return values
    lengths = _lengths(values)
    given = np.where(kind == 0, sizes, lengths)
    ends = np.cumsum(given)
    if ends[-1] > np.iinfo(np.int32).max:
        raise pa.ArrowCapacityError(f"{ends[-1]:,} numbers in the vectors of {len(column):,} rows")
    numbers = np.zeros(ends[-1])
    starts = np.repeat(ends - given, lengths)
    numbers[starts + _places(kind, lengths, indices)] = values.flatten().to_numpy(zero_copy_only=False)
    offsets = pa.array(np.concatenate([[0], ends]), pa.int32())
    mask = column.is_null() if column.null_count else None
    return pa.ListArray.from_arrays(offsets, pa.array(numbers), mask=mask)


def dense_rows(column: pa.StructArray, size: int) -> tuple[NDArray[Any], dict[int, str]]:
    """Turn Spark's vectors, dense and sparse, into float64 rows [rows, size]; a null is zeros.

    Returns:
        The rows, and what is wrong with those of another size, by place; these are zeros, too.
    """
    kind, sizes, indices, values = _parts(column)
    lengths = _lengths(values)
    given = np.where(kind == 1, lengths, sizes)
    numbers = values.flatten().to_numpy(zero_copy_only=False)
    if (kind == 1).all() and (lengths == size).all():
        return numbers.reshape(len(column), size), {}
    fits = (kind >= 0) & (given == size)
    taken = np.repeat(fits, lengths)
    rows = np.zeros((len(column), size))
    row_of_each = np.repeat(np.arange(len(column)), lengths)
    rows[row_of_each[taken], _places(kind, lengths, indices)[taken]] = numbers[taken]
    wrong = np.flatnonzero((kind >= 0) & ~fits)
    return rows, {int(row): f"a vector of {given[row]} numbers, not {size}" for row in wrong}


def lists_of_rows(rows: NDArray[np.float64], missing: NDArray[np.bool_] | None = None) -> pa.ListArray:
    """Turn rows [rows, numbers] into a column of lists of float64; a row that is `missing` becomes a null."""
    offsets = pa.array(np.arange(len(rows) + 1, dtype=np.int32) * rows.shape[1])
    mask = None if missing is None else pa.array(missing)
    return pa.ListArray.from_arrays(offsets, pa.array(rows.reshape(-1)), mask=mask)


def _parts(column: pa.StructArray) -> tuple[NDArray[np.int8], NDArray[np.int32], pa.ListArray, pa.ListArray]:
    """Kind (-1: null), size (0 where none is stored), indices and values (null where the vector is)."""
    if column.type != _STORED:
        names = [field.name for field in column.type]
        fields = dict(zip(names, column.flatten(), strict=True))
        mask = column.is_null() if column.null_count else None
        cast = [fields[field.name].cast(field.type) for field in _STORED]
        column = pa.StructArray.from_arrays(cast, fields=list(_STORED), mask=mask)
    kinds, sizes, indices, values = column.flatten()
    kind = kinds.fill_null(-1).to_numpy(zero_copy_only=False)
    return kind, sizes.fill_null(0).to_numpy(zero_copy_only=False), indices, values


def _lengths(lists: pa.ListArray) -> NDArray[np.int64]:
    lengths: NDArray[np.int64] = pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False)
    return lengths.astype(np.int64)


def _places(kind: NDArray[np.int8], lengths: NDArray[np.int64], indices: pa.ListArray) -> NDArray[np.int64]:
    """Where in its vector each of the stored numbers is."""
    places: NDArray[np.int64] = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    places[np.repeat(kind == 0, lengths)] = indices.flatten().to_numpy(zero_copy_only=False)
    return places
