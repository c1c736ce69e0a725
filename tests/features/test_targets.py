"""Targets and weights: what can't be predicted or weighed is refused, not guessed. And what is passed on."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from sparktrain.errors import ValuesRefused
from sparktrain.features import FittedBoolean, FittedPassthrough, FittedTarget, FittedWeight

NAN = float("nan")


def target(**fields: Any) -> FittedTarget:
    return FittedTarget(name="y", column="raw", **fields)


BINARY = target(kind="binary", input_type="double")
CLASSES = target(kind="multiclass", input_type="string", classes=("b", "a"))
REGRESSION = target(kind="regression", input_type="double")
WEIGHT = FittedWeight(name="w", column="raw", input_type="double", scale=2.0)


@pytest.mark.parametrize(
    ("made_of", "column", "values", "dtype"),
    [
        (BINARY, pa.array([0.0, 1.0, -0.0]), [0, 1, 0], "float32"),
        (target(kind="binary", input_type="boolean"), pa.array([True, False]), [1, 0], "float32"),
        (target(kind="binary", input_type="long"), pa.array([1, 0], pa.int8()), [1, 0], "float32"),
        (CLASSES, pa.array(["a", "b", "a"]), [1, 0, 1], "int64"),
        (
            target(kind="multiclass", input_type="long", classes=("3", "7")),
            pa.array([7.0, 3.0]),
            [1, 0],
            "int64",
        ),
        (REGRESSION, pa.array([1.5, -2.0]), [1.5, -2.0], "float32"),
        (WEIGHT, pa.array([3.0, 0.0, -0.0]), [1.5, 0.0, 0.0], "float32"),
        (REGRESSION, pa.array([], pa.float64()), [], "float32"),
        (CLASSES, pa.array([], pa.string()), [], "int64"),
    ],
    ids=str,
)
def test_what_is_allowed_is_handed_on(made_of: Any, column: pa.Array, values: list[Any], dtype: str) -> None:
    out = made_of.transform(column)
    assert (out.tolist(), out.dtype) == (values, dtype)
    assert made_of.output.dtype == dtype
    assert not np.signbit(out).any() or min(values) < 0


@pytest.mark.parametrize(
    ("made_of", "column", "what"),
    [
        (BINARY, pa.array([0.0, None]), "1 null"),
        (BINARY, pa.array([0.5, 2.0, 1e-300, NAN]), "4 values other than 0 and 1"),
        (CLASSES, pa.array(["a", None, None, "c"]), "2 nulls"),
        (CLASSES, pa.array(["a", "c"]), "1 value of no known class"),
        (REGRESSION, pa.array([NAN, float("inf"), 1e39]), "3 values that are no finite float32"),
        (REGRESSION, pa.array([None, 1.0]), "1 null"),
        (
            WEIGHT,
            pa.array([1.0, -1.0, NAN, float("inf")]),
            "3 values that are no weights (a finite number from 0 on)",
        ),
        (WEIGHT, pa.array([1.0, None]), "1 null"),
    ],
    ids=str,
)
def test_what_is_not_is_counted(made_of: Any, column: pa.Array, what: str) -> None:
    with pytest.raises(ValuesRefused) as caught:
        made_of.transform(column)
    assert caught.value.columns == {"raw": what}


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "binary", "input_type": "string"},
        {"kind": "regression", "input_type": "boolean"},
        {"kind": "multiclass", "input_type": "double", "classes": ("1",)},
        {"kind": "multiclass", "input_type": "string"},
        {"kind": "multiclass", "input_type": "string", "classes": ("a", "a")},
        {"kind": "binary", "input_type": "long", "classes": ("0", "1")},
    ],
    ids=str,
)
def test_a_target_that_makes_no_sense_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        target(**fields)


def test_booleans_are_zero_and_one() -> None:
    column = pa.array([False, True, None, True]).slice(1)
    for fill, expected in ((False, [1, 0, 1]), (True, [1, 1, 1])):
        boolean = FittedBoolean(name="b", column="b", fill=fill, null_flag=True)
        arrays = boolean.transform(column)
        assert arrays["b"].tolist() == expected
        assert arrays["b_is_null"].tolist() == [0, 1, 0]
        assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}
    with pytest.raises(ValuesRefused, match="column `b`: 1 null"):
        FittedBoolean(name="b", column="b", fill=None).transform(column)
    assert FittedBoolean(name="b", column="b", fill=None).transform(column.slice(2))["b"].tolist() == [1]


@pytest.mark.parametrize(
    ("input_type", "column", "fill", "values", "dtype"),
    [
        ("long", pa.array([2**60 + 1, None]), 7, [2**60 + 1, 7], "int64"),
        ("double", pa.array([0.1, None]), 7, [0.1, 7.0], "float64"),
        ("boolean", pa.array([True, None]), False, [1, 0], "uint8"),
        ("string", pa.array(["é", None]), "?", ["é", "?"], "string"),
        ("timestamp", pa.array([1], pa.timestamp("ms", "Asia/Tokyo")), None, [1000], "int64"),
        ("timestamp", pa.array([datetime(1970, 1, 2), None]), -1, [86_400_000_000, -1], "int64"),
        ("date", pa.array([date(1970, 1, 2), None]), 0, [86_400_000_000, 0], "int64"),
    ],
    ids=str,
)
def test_a_column_is_passed_on_as_it_is(
    input_type: Any, column: pa.Array, fill: Any, values: list[Any], dtype: str
) -> None:
    feature = FittedPassthrough(name="p", column="p", input_type=input_type, fill=fill)
    out = feature.transform(column)["p"]
    assert out.tolist() == values
    assert feature.outputs[0].dtype == dtype
    assert out.dtype == (object if dtype == "string" else dtype)
    if column.null_count:
        with pytest.raises(ValuesRefused, match="column `p`: 1 null"):
            feature.model_copy(update={"fill": None}).transform(column)


@pytest.mark.parametrize(
    ("input_type", "fill"),
    [("long", 1.5), ("long", True), ("string", 0), ("boolean", 1), ("double", "x"), ("timestamp", "1970")],
)
def test_a_fill_of_another_type_is_refused(input_type: Any, fill: Any) -> None:
    with pytest.raises(ValidationError, match=f"`raw` is {input_type}, so that a null can't become"):
        FittedPassthrough(name="p", column="raw", input_type=input_type, fill=fill)
