"""Reading raw columns: whatever Arrow holds them as, but never as something that they are not."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, get_args

import pyarrow as pa
import pytest

from sparktrain.features.raw import ARROW_TYPES, InputType, read_as

INPUT_TYPES = get_args(InputType)


def test_every_input_type_has_an_arrow_type_and_reads_nulls() -> None:
    assert set(ARROW_TYPES) == set(INPUT_TYPES)
    for input_type in INPUT_TYPES:
        read = read_as(pa.nulls(3), input_type)
        assert (read.type, read.null_count) == (ARROW_TYPES[input_type], 3)


@pytest.mark.parametrize(
    ("input_type", "column", "values"),
    [
        ("binary", pa.array([b"ab", None], pa.binary(2)), [b"ab", None]),
        ("binary", pa.array([b"ab", None]), [b"ab", None]),
        ("doubles", pa.array([[1, None], None]), [[1.0, None], None]),
        ("doubles", pa.array([[1.5, 2.0]], pa.list_(pa.float32(), 2)), [[1.5, 2.0]]),
        ("doubles", pa.array([[Decimal("1.5")]], pa.large_list(pa.decimal128(5, 1))), [[1.5]]),
        ("longs", pa.array([[1, 2]], pa.list_(pa.uint8())), [[1, 2]]),
        ("longs", pa.array([[1.0, 2.0]]), [[1, 2]]),
        ("date", pa.array([date(2020, 2, 29)]), [date(2020, 2, 29)]),
        ("date", pa.array([datetime(2020, 2, 29)], pa.timestamp("ns")), [date(2020, 2, 29)]),
        ("timestamp", pa.array([date(2020, 2, 29)]), [datetime(2020, 2, 29)]),
        ("timestamp", pa.array([1], pa.timestamp("s")), [datetime(1970, 1, 1, 0, 0, 1)]),
        ("timestamp", pa.array([1_001], pa.timestamp("ns")), [datetime(1970, 1, 1, 0, 0, 0, 1)]),
        (
            "timestamp",
            pa.array([3600], pa.timestamp("s", "Asia/Tokyo")),
            [datetime(1970, 1, 1, 1, tzinfo=UTC)],
        ),
    ],
    ids=str,
)
def test_a_column_is_read_however_it_is_stored(
    input_type: InputType, column: pa.Array, values: list[Any]
) -> None:
    assert read_as(column, input_type).to_pylist() == values


@pytest.mark.parametrize(
    ("input_type", "column"),
    [
        ("double", pa.array(["1"])),
        ("double", pa.array(["1"], pa.large_string())),
        ("double", pa.array(["1"]).dictionary_encode()),
        ("double", pa.array([b"1"])),
        ("double", pa.array([0], pa.timestamp("us"))),
        ("double", pa.array([[1.0]])),
        ("long", pa.array(["1"])),
        ("long", pa.array([0], pa.date32())),
        ("long", pa.array([1.5])),
        ("long", pa.array([2.0**63])),
        ("boolean", pa.array(["true"])),
        ("boolean", pa.array([1])),
        ("string", pa.array([1])),
        ("string", pa.array([1]).dictionary_encode()),
        ("string", pa.array([True])),
        ("string", pa.array([b"text"])),
        ("binary", pa.array(["text"])),
        ("timestamp", pa.array([0])),
        ("timestamp", pa.array(["2020-02-29"])),
        ("timestamp", pa.array([2**62], pa.timestamp("s"))),
        ("date", pa.array([0], pa.timestamp("us", "UTC"))),
        ("doubles", pa.array([1.0])),
        ("doubles", pa.array([["1"]])),
        ("longs", pa.array([[1.5]])),
        ("longs", pa.array([[True]])),
    ],
    ids=str,
)
def test_a_column_of_another_kind_is_never_read_as_something(input_type: InputType, column: pa.Array) -> None:
    with pytest.raises(pa.ArrowException):
        read_as(column, input_type)


def test_a_column_of_the_right_type_is_not_copied() -> None:
    column = pa.array([1.0, 2.0])
    assert read_as(column, "double") is column
