"""Vectors as Spark stores them, read as arrays of one size or of their own."""

from __future__ import annotations

import pyarrow as pa
import pytest

from sparktrain.features.raw import is_readable, read_as
from sparktrain.features.vectors import dense_rows

STORED = pa.struct(
    {
        "type": pa.int8(),
        "size": pa.int32(),
        "indices": pa.list_(pa.int32()),
        "values": pa.list_(pa.float64()),
    }
)
DENSE = {"type": 1, "size": None, "indices": None, "values": [1.0, 2.0, 3.0]}
SPARSE = {"type": 0, "size": 4, "indices": [1, 3], "values": [5.0, 7.0]}
EMPTY = {"type": 0, "size": 2, "indices": [], "values": []}


def test_sparse_dense_and_missing_vectors_become_rows() -> None:
    rows = [
        {"type": 1, "size": None, "indices": None, "values": [1.0, 2.0, 3.0]},
        {"type": 0, "size": 3, "indices": [2], "values": [5.0]},
        None,
        {"type": 0, "size": 3, "indices": [], "values": []},
        {"type": 0, "size": 4, "indices": [3], "values": [7.0]},
        {"type": 1, "size": None, "indices": None, "values": [1.0]},
        {"type": 0, "size": 3, "indices": [0, 1], "values": [8.0, 9.0]},
    ]
    column = pa.array(rows, STORED)
    made, errors = dense_rows(column, 3)
    zeros = [0.0, 0.0, 0.0]
    assert made.tolist() == [[1, 2, 3], [0, 0, 5], zeros, zeros, zeros, zeros, [8, 9, 0]]
    assert errors == {4: "a vector of 4 numbers, not 3", 5: "a vector of 1 numbers, not 3"}
    sliced, _ = dense_rows(column.slice(1, 2), 3)
    assert sliced.tolist() == [[0, 0, 5], zeros]
    assert dense_rows(column.slice(0, 1), 3)[0].tolist() == [[1, 2, 3]]


def test_a_column_of_vectors_is_read_as_arrays() -> None:
    column = pa.array([DENSE, None, SPARSE, EMPTY, DENSE], STORED)
    assert is_readable(column.type, "doubles") and not is_readable(column.type, "longs")
    lists = [[1.0, 2.0, 3.0], None, [0.0, 5.0, 0.0, 7.0], [0.0, 0.0], [1.0, 2.0, 3.0]]
    assert read_as(column, "doubles").to_pylist() == lists
    assert read_as(column.slice(1, 3), "doubles").to_pylist() == lists[1:4]
    assert read_as(column.slice(0, 2), "doubles").to_pylist() == lists[:2]
    assert read_as(column.slice(0, 0), "doubles").to_pylist() == []


def test_vectors_whose_fields_are_of_other_types_and_in_another_order_are_read() -> None:
    column = pa.array([{"values": [1, 2], "type": 1, "indices": None, "size": None}, None])
    assert read_as(column, "doubles").to_pylist() == [[1.0, 2.0], None]
    with pytest.raises(pa.ArrowException):
        read_as(pa.array([{**DENSE, "values": ["far"]}]), "doubles")
    with pytest.raises(pa.ArrowException):
        read_as(pa.array([{"values": [1.0]}]), "doubles")


def test_numbers_beyond_what_a_column_holds_are_an_error_of_arrow() -> None:
    huge = {"type": 0, "size": 2**31 - 1, "indices": [0], "values": [1.0]}
    with pytest.raises(pa.ArrowException, match="numbers in the vectors of 2 rows"):
        read_as(pa.array([huge, huge], STORED), "doubles")
