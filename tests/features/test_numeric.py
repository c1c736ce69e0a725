"""Numbers: each kind of missing one becomes what was declared, and float64 is rounded only at the end."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sparktrain.errors import EXIT_DATA, ValuesRefused
from sparktrain.features import FittedNumeric

NAN, INFINITY = float("nan"), float("inf")
MISSING = pa.array([None, NAN, INFINITY, -INFINITY, 2.0])
CASTS_HALVES = hasattr(pa, "string_view")  # both came with pyarrow 16
finite = st.floats(allow_nan=False, allow_infinity=False)
maybe = st.none() | finite


def numeric(**changes: Any) -> FittedNumeric:
    sound: dict[str, Any] = {"input_type": "double", "fill": 10.0, "offset": 10.0, "scale": 4.0}
    return FittedNumeric(name="x", column="x", **(sound | changes))


def transform(feature: FittedNumeric, column: pa.Array) -> list[float]:
    out = feature.transform(column)["x"]
    assert out.dtype == np.float32
    return out.tolist()


def test_a_null_a_nan_and_an_infinity_become_the_fill() -> None:
    assert transform(numeric(), MISSING) == [0.0, 0.0, 0.0, 0.0, -2.0]
    assert transform(numeric(fill=14.0), MISSING) == [1.0, 1.0, 1.0, 1.0, -2.0]


def test_each_of_them_can_become_something_of_its_own() -> None:
    own = numeric(fill=10.0, nan=14.0, positive_infinity=18.0, negative_infinity=22.0)
    assert transform(own, MISSING) == [0.0, 1.0, 2.0, 3.0, -2.0]


def test_the_flag_tells_what_counts_as_a_null() -> None:
    arrays = numeric(null_flag=True).transform(MISSING)
    assert arrays["x_is_null"].tolist() == [1.0, 1.0, 1.0, 1.0, 0.0]
    assert arrays["x_is_null"].dtype == np.float32
    own = numeric(null_flag=True, nan=10.0, negative_infinity=10.0)  # the same number, but no null
    assert own.transform(MISSING)["x_is_null"].tolist() == [1.0, 0.0, 1.0, 0.0, 0.0]
    assert numeric(null_flag=True).transform(pa.array([1.0]))["x_is_null"].tolist() == [0.0]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"fill": None}, "1 null, 1 NaN, 1 positive infinity, 1 negative infinity"),
        ({"fill": None, "nan": 0.0, "positive_infinity": 0.0, "negative_infinity": 0.0}, "1 null"),
        ({"nan": None}, "1 NaN"),
        ({"positive_infinity": None, "negative_infinity": None}, "1 positive infinity, 1 negative infinity"),
    ],
)
def test_what_is_refused_is_counted(changes: dict[str, Any], what: str) -> None:
    with pytest.raises(ValuesRefused, match="Let the feature take them") as caught:
        numeric(**changes).transform(MISSING)
    assert caught.value.columns == {"x": what}
    assert caught.value.exit_code == EXIT_DATA


def test_rows_with_none_of_them_are_never_refused() -> None:
    strict = numeric(fill=None, nan=None, positive_infinity=None, negative_infinity=None)
    assert transform(strict, pa.array([2.0, 1e300 * 4, 14.0])[::2]) == [-2.0, 1.0]
    assert transform(strict, pa.array([1.7e308, 1.7e308, -1.7e308])[:0]) == []


def test_values_whose_sum_overflows_are_no_infinities() -> None:
    strict = numeric(fill=None, positive_infinity=None, scale=1e300, offset=0.0)
    assert transform(strict, pa.array([1.5e308, 1.5e308])) == [np.float32(1.5e8)] * 2


def test_values_are_clipped_after_they_are_replaced() -> None:
    clipped = numeric(low=0.0, high=12.0, nan=-5.0, offset=0.0, scale=1.0)
    assert transform(clipped, pa.array([None, NAN, INFINITY, -3.0, 40.0, 7.0])) == [10, 0, 10, 0, 12, 7]


def test_log1p_comes_between_clipping_and_scaling() -> None:
    feature = numeric(log1p=True, low=0.0, offset=1.0, scale=2.0)
    expected = ((np.log1p([0.0, 0.0, 7.0]) - 1.0) / 2.0).astype(np.float32)
    assert transform(feature, pa.array([-3.0, 0.0, 7.0])) == expected.tolist()


@pytest.mark.parametrize(
    "column",
    [
        pa.array([2, None], pa.int8()),
        pa.array([2, None], pa.uint64()),
        pa.array([2.0, None], pa.float32()),
        pytest.param(
            pa.array([np.float16(2.0), None], pa.float16()),
            marks=pytest.mark.skipif(not CASTS_HALVES, reason="pyarrow 14 casts no half floats"),
        ),
        pa.array([Decimal("2.00"), None]),
        pa.array([2, None]).dictionary_encode(),
        pa.array([5, 2, None]).slice(1),
    ],
    ids=lambda column: str(column.type),
)
def test_a_number_of_any_type_is_a_number(column: pa.Array) -> None:
    assert transform(numeric(), column) == [-2.0, 0.0]


@pytest.mark.parametrize("value", [2**53 + 1, 2**62 + 1, 2**63 - 1, -(2**63)])
def test_integers_beyond_53_bits_are_rounded_to_the_nearest_float(value: int) -> None:
    # What is left after the offset shows each bit of float64, which float32 would hide.
    assert transform(numeric(offset=float(value), scale=1.0), pa.array([value])) == [0.0]


@settings(max_examples=300)
@given(st.decimals(allow_nan=False, allow_infinity=False, places=18, min_value=-(10**19), max_value=10**19))
def test_decimals_are_rounded_once(value: Decimal) -> None:
    column = pa.array([value], pa.decimal128(38, 18))
    assert transform(numeric(offset=float(value), scale=1.0), column) == [0.0]


def test_minus_zero_becomes_zero() -> None:
    for scale in (1.0, 3.0):
        out = numeric(offset=0.0, scale=scale).transform(pa.array([-0.0, 0.0, -1e-300]))["x"]
        assert out.tobytes() == np.zeros(3, np.float32).tobytes()


@settings(max_examples=300)
@given(
    values=st.lists(st.none() | st.floats(width=64), max_size=20),
    fill=maybe,
    replacements=st.tuples(*[st.just("null") | maybe] * 3),
    bounds=st.none() | st.tuples(finite, finite).map(sorted),
    offset=finite,
    scale=st.floats(min_value=1e-300, allow_infinity=False),
    null_flag=st.booleans(),
)
def test_a_column_is_what_its_rows_are_one_by_one(
    values: list[float | None],
    fill: float | None,
    replacements: tuple[Any, Any, Any],
    bounds: list[float] | None,
    offset: float,
    scale: float,
    null_flag: bool,
) -> None:
    low, high = bounds or (None, None)
    nan, positive, negative = replacements
    feature = numeric(
        fill=fill, nan=nan, positive_infinity=positive, negative_infinity=negative, low=low, high=high,
        offset=offset, scale=scale, null_flag=null_flag,
    )  # fmt: skip
    expected, flags, refused = [], [], False
    for value in values:
        kinds = {None: "null", INFINITY: positive, -INFINITY: negative}
        becomes = nan if value is not None and np.isnan(value) else kinds.get(value, value)
        flags.append(float(becomes == "null"))
        number = fill if becomes == "null" else becomes
        refused |= number is None
        if number is not None:
            number = max(number, low) if low is not None else number
            number = min(number, high) if high is not None else number
            with np.errstate(over="ignore"):
                expected.append(np.float32((np.float64(number) - offset) / scale) + np.float32(0))
    column = pa.array(values, pa.float64())
    if refused:
        with pytest.raises(ValuesRefused):
            feature.transform(column)
        return
    arrays = feature.transform(column)
    assert arrays["x"].tobytes() == np.array(expected, np.float32).tobytes()
    if null_flag:
        assert arrays["x_is_null"].tolist() == flags
    assert list(arrays) == [output.name for output in feature.outputs]


@pytest.mark.parametrize(
    "change",
    [
        {"scale": 0.0},
        {"scale": NAN},
        {"offset": INFINITY},
        {"nan": NAN},
        {"low": 2.0, "high": 1.0},
        {"log1p": True},
        {"log1p": True, "low": -1.0},
        {"input_type": "string"},
    ],
)
def test_statistics_that_would_give_no_number_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        numeric(**change)
