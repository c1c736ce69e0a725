"""Fitted features: raw rows in, float32 and int32 out, and the same again after a trip through JSON."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sparktrain.errors import EXIT_DATA, SchemaMismatch
from sparktrain.features import FittedCategorical, FittedFeatures, FittedNumeric, Target
from sparktrain.features.fitted import InputType

NAN, INFINITY = float("nan"), float("inf")
finite = st.floats(allow_nan=False, allow_infinity=False)


def numeric(
    name: str = "x",
    *,
    column: str | None = None,
    input_type: InputType = "double",
    fill: float = 10.0,
    offset: float = 10.0,
    scale: float = 4.0,
) -> FittedNumeric:
    return FittedNumeric(
        name=name, column=column or name, input_type=input_type, fill=fill, offset=offset, scale=scale
    )


def categorical(
    vocabulary: tuple[str, ...],
    name: str = "c",
    *,
    column: str | None = None,
    input_type: InputType = "string",
) -> FittedCategorical:
    return FittedCategorical(name=name, column=column or name, input_type=input_type, vocabulary=vocabulary)


def fitted(*features: FittedNumeric | FittedCategorical) -> FittedFeatures:
    return FittedFeatures(features=features, target=Target("late"))


def transform_one(
    feature: FittedNumeric | FittedCategorical, column: pa.Array | pa.ChunkedArray
) -> list[float]:
    out = fitted(feature).transform(pa.table({feature.column: column}))[feature.name]
    assert out.dtype == (np.float32 if isinstance(feature, FittedNumeric) else np.int32)
    return out.tolist()


def test_a_null_a_nan_and_an_infinity_become_the_fill() -> None:
    values = pa.array([None, NAN, INFINITY, -INFINITY, 2.0])
    assert transform_one(numeric(), values) == [0.0, 0.0, 0.0, 0.0, -2.0]
    assert transform_one(numeric(fill=14.0), values) == [1.0, 1.0, 1.0, 1.0, -2.0]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([2, None], pa.int8()),
        pa.array([2, None], pa.uint64()),
        pa.array([2.0, None], pa.float32()),
        pa.array([2.0, None], pa.float16()),
        pa.array([Decimal("2.00"), None]),
        pa.array([2, None]).dictionary_encode(),
        pa.chunked_array([[2], [], [None]], pa.int64()),
    ],
    ids=lambda column: str(column.type),
)
def test_a_number_of_any_type_is_a_number(column: pa.Array) -> None:
    assert transform_one(numeric(), column) == [-2.0, 0.0]


@pytest.mark.parametrize("value", [2**53 + 1, 2**62 + 1, 2**63 - 1, -(2**63)])
def test_integers_beyond_53_bits_are_rounded_to_the_nearest_float(value: int) -> None:
    # What is left after the offset shows each bit of float64, which float32 would hide.
    assert transform_one(numeric(offset=float(value), scale=1.0), pa.array([value])) == [0.0]


@settings(max_examples=300)
@given(st.decimals(allow_nan=False, allow_infinity=False, places=18, min_value=-(10**19), max_value=10**19))
def test_decimals_are_rounded_once(value: Decimal) -> None:
    feature = numeric(offset=float(value), scale=1.0)
    assert transform_one(feature, pa.array([value], pa.decimal128(38, 18))) == [0.0]


def test_minus_zero_becomes_zero() -> None:
    feature = numeric(offset=0.0, scale=1.0)
    out = fitted(feature).transform(pa.table({"x": [-0.0, 0.0, -1e-300]}))["x"]
    assert out.tobytes() == np.zeros(3, np.float32).tobytes()


def test_known_values_unknown_values_and_nulls_have_codes_of_their_own() -> None:
    column = pa.array(["b", "a", "", "never seen", None, "A"])
    assert transform_one(categorical(("b", "a", "")), column) == [2, 3, 4, 1, 0, 1]
    assert transform_one(categorical(()), column) == [1, 1, 1, 1, 0, 1]


@pytest.mark.parametrize("kind", ["large_string", "string_view", "dictionary", "null"])
def test_text_is_text_however_it_is_stored(kind: str) -> None:
    if kind == "dictionary":
        chunks = [pa.array(["b", None]).dictionary_encode(), pa.array(["x", "b"]).dictionary_encode()]
        column, expected = pa.chunked_array(chunks), [2, 0, 1, 2]
    elif kind == "null":
        column, expected = pa.nulls(2), [0, 0]
    else:
        column, expected = pa.array(["b", None, "x"], pa.type_for_alias(kind)), [2, 0, 1]
    assert transform_one(categorical(("b",)), column) == expected


def test_integers_that_pandas_turned_into_floats_are_integers_again() -> None:
    frame = pd.DataFrame({"month": [1, 12, None, 7]})
    assert frame["month"].dtype == np.float64
    column = pa.Table.from_pandas(frame)["month"]
    month = categorical(("12", "1"), "month", input_type="long")
    assert transform_one(month, column) == [3, 2, 0, 1]
    assert transform_one(month, pa.array([1.0, NAN], pa.float32())) == [3, 0]


@pytest.mark.parametrize("value", [1.5, INFINITY, 2.0**63])
def test_a_number_that_is_no_integer_fits_no_vocabulary_of_integers(value: float) -> None:
    with pytest.raises(SchemaMismatch, match="column `c` is double, expected long"):
        transform_one(categorical(("1",), input_type="long"), pa.array([1.0, value]))


def test_booleans_are_categories() -> None:
    weekend = categorical(("false", "true"), input_type="boolean")
    assert transform_one(weekend, pa.array([True, False, None])) == [3, 2, 0]
    assert transform_one(weekend, pa.nulls(1)) == [0]


@pytest.mark.parametrize(
    ("input_type", "column"),
    [
        ("double", pa.array(["1"])),
        ("double", pa.array(["1"], pa.large_string())),
        ("double", pa.array(["1"]).dictionary_encode()),
        ("double", pa.array([b"1"])),
        ("double", pa.array([0], pa.timestamp("us"))),
        ("long", pa.array(["1"])),
        ("long", pa.array([0], pa.date32())),
        ("boolean", pa.array(["true"])),
        ("boolean", pa.array(["true"], pa.large_string())),
        ("boolean", pa.array([1])),
        ("string", pa.array([1])),
        ("string", pa.array([1]).dictionary_encode()),
        ("string", pa.array([True])),
        ("string", pa.array([b"text"])),
    ],
    ids=str,
)
def test_a_column_of_another_kind_is_never_read_as_something(input_type: InputType, column: pa.Array) -> None:
    feature = numeric("c") if input_type == "double" else categorical(("1", "true"), input_type=input_type)
    with pytest.raises(SchemaMismatch, match="column `c` is"):
        transform_one(feature, column)


def test_a_mismatch_lists_every_column_at_once() -> None:
    features = fitted(
        numeric("distance"), numeric("seats"), categorical(("a",), "carrier"), categorical(("1",), "origin")
    )
    rows = pa.table({"distance": ["far"], "carrier": [3], "unused": [1]})
    with pytest.raises(SchemaMismatch) as caught:
        features.transform(rows)
    text = str(caught.value)
    assert "missing column `seats`" in text
    assert "missing column `origin`" in text
    assert "column `distance` is string, expected double" in text
    assert "column `carrier` is int64, expected string" in text
    assert "unused" not in text
    assert "Way out" in text
    assert caught.value.exit_code == EXIT_DATA


def test_one_raw_column_serves_two_features() -> None:
    features = fitted(
        numeric("month", input_type="long", offset=0.0, scale=1.0),
        categorical(("12", "1"), "month_category", column="month", input_type="long"),
    )
    assert features.input_types == {"month": "long"}
    out = features.transform(pa.table({"month": [1.0, 12.0, NAN]}))
    assert list(out) == ["month", "month_category"]
    assert out["month"].tolist() == [1.0, 12.0, 10.0]
    assert out["month_category"].tolist() == [3, 2, 0]


def test_batches_and_tables_of_no_rows_are_transformed() -> None:
    features = fitted(numeric(), categorical(("a",)))
    schema = pa.schema([("c", pa.string()), ("x", pa.int64())])
    for rows in (schema.empty_table(), pa.RecordBatch.from_pylist([], schema)):
        out = features.transform(rows)
        assert {name: (len(v), v.dtype) for name, v in out.items()} == {
            "x": (0, "float32"),
            "c": (0, "int32"),
        }


@given(
    fill=finite,
    offset=finite,
    scale=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    words=st.lists(st.text(), unique=True),
)
def test_a_trip_through_json_changes_no_bit(
    fill: float, offset: float, scale: float, words: list[str]
) -> None:
    features = fitted(numeric(fill=fill, offset=offset, scale=scale), categorical(tuple(words)))
    text = features.to_json()
    again = FittedFeatures.from_json(text)
    assert again == features
    assert again.to_json() == text
    assert FittedFeatures.from_json(text.encode()).to_json().encode() == text.encode()


@pytest.mark.parametrize(
    "change", [('"version": 1', '"version": 2'), ('"kind": "numeric"', '"kind": "image"')]
)
def test_json_of_another_version_or_kind_is_refused(change: tuple[str, str]) -> None:
    text = fitted(numeric()).to_json()
    assert change[0] in text
    with pytest.raises(ValidationError):
        FittedFeatures.from_json(text.replace(*change))
