"""Rows as pandas, JSON and MLflow deliver them, read as raw columns, and columns of scores as they take them.

JSON has neither times nor bytes: ISO text and base64 stand for them. Text that is a number is read as one,
as a pipeline that casts its columns does.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import date, datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from sparktrain.features import InputType, is_readable, read_as, short_reason

_SPACE = re.compile(rb"\s+")


def raw_columns(
    frame: pd.DataFrame, input_types: Mapping[str, InputType], time_zone: str | None = None
) -> tuple[pa.Table, dict[int, str]]:
    """Return the columns of `input_types` that the frame has, and why rows can't be read, by their place.

    Only what a row holds is refused here, even where no row of the frame holds better: a request can be of a
    single row. For columns that are not there, there is `check_schema`.

    Args:
        time_zone: that times without zone are of; None: they stay without.
    """
    columns: dict[str, pa.Array] = {}
    errors: dict[int, str] = {}
    for name, input_type in input_types.items():
        if name not in frame:
            continue
        refused: dict[int, str] = {}
        series = frame[name]
        if input_type == "timestamp" and time_zone and series.dtype.kind == "M" and series.dt.tz is None:
            first = np.ones(len(series), bool)  # of the two hours that an autumn night has by that clock
            series = series.dt.tz_localize(time_zone, ambiguous=first, nonexistent="shift_forward")
        columns[name] = _read(series, input_type, refused)
        for place, reason in refused.items():
            told = f"column `{name}`: {reason}"
            errors[place] = f"{errors[place]}; {told}" if place in errors else told
    if not columns:  # Arrow counts no rows without a column
        return pa.table({}), {}
    return pa.table(columns), errors


def _read(series: pd.Series[Any], input_type: InputType, refused: dict[int, str]) -> pa.Array:
    """Return the column, and put into `refused` what can't be read, which is null then."""
    try:
        column = pa.Array.from_pandas(series)
    except (pa.ArrowException, OverflowError):
        column = None  # of several types
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if column is not None and is_readable(column.type, input_type):
        return column
    values = [None if _is_missing(value) else value for value in series]
    read: list[Any] = [None] * len(values)
    for place, value in enumerate(values):
        if value is None:
            continue
        try:
            read[place] = _value(value, input_type)
        except Exception as error:
            refused[place] = short_reason(error) if str(error) else f"{type(value).__name__} can't be read"
    return _together(read, input_type, refused)


def _value(value: Any, input_type: InputType) -> Any:
    if isinstance(value, str) and (from_text := _FROM_TEXT.get(input_type)):
        return from_text(value)
    if input_type == "doubles" and hasattr(value, "toArray"):  # a vector of spark.ml
        value = value.toArray()
    found = pa.array([value])
    if not is_readable(found.type, input_type):
        raise pa.ArrowTypeError(f"{value!r} is {found.type}, expected {input_type}")
    return read_as(found, input_type)[0].as_py()


def _together(read: list[Any], input_type: InputType, refused: dict[int, str]) -> pa.Array:
    if input_type != "timestamp":
        return pa.array(read)
    zones = {value.tzinfo is not None for value in read if value is not None}
    if len(zones) > 1:  # a column has a time zone or none
        for place, value in enumerate(read):
            if value is not None and value.tzinfo is None:
                refused[place], read[place] = "a time without zone, where other rows have one", None
    return pa.array(read, pa.timestamp("us", tz="UTC" if True in zones else None))


_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?\s*", re.ASCII | re.IGNORECASE)
_NOT_FINITE = re.compile(r"\s*([+-]?inf(inity)?|nan)\s*", re.ASCII | re.IGNORECASE)
_WHOLE = re.compile(r"\s*[+-]?\d+\s*", re.ASCII)


def _number(text: str) -> float:
    """What Spark's cast makes of it; nothing of what only Python takes, or is too large."""
    if _NOT_FINITE.fullmatch(text) or (_NUMBER.fullmatch(text) and math.isfinite(float(text))):
        return float(text)
    raise pa.ArrowInvalid(f"{text!r} is no number")


def _whole_number(text: str) -> int:
    if not _WHOLE.fullmatch(text) or not -(2**63) <= int(text) < 2**63:
        raise pa.ArrowInvalid(f"{text!r} is no whole number of 64 bits")
    return int(text)


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(_SPACE.sub(b"", text.encode()), validate=True)
    except ValueError as error:
        raise pa.ArrowInvalid(f"no base64: {error}") from error


def _time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise pa.ArrowInvalid(f"{text!r} is no ISO time") from error


def _day(text: str) -> date:
    time = _time(text)
    if time.tzinfo is not None:
        raise pa.ArrowInvalid(f"{text!r} has a time zone, which a date has not")
    return time.date()


_FROM_TEXT: dict[InputType, Callable[[str], Any]] = {
    "double": _number,
    "long": _whole_number,
    "timestamp": _time,
    "date": _day,
    "binary": _bytes,
}


def _is_missing(value: Any) -> bool:
    return value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and value != value)


def scores_frame(scores: pa.RecordBatch, index: pd.Index[Any]) -> pd.DataFrame:
    """Return the columns of scores with this index; where nothing is null, as NumPy has them."""
    named = zip(scores.schema.names, scores.columns, strict=True)
    return pd.DataFrame({name: pd.Series(_values(column), index=index) for name, column in named})


def _values(column: pa.Array) -> Any:
    is_list = pa.types.is_list(column.type)
    if not is_list and 0 < column.null_count < len(column):
        return WithNulls(column)
    if not is_list and not column.null_count:
        return column.to_numpy(zero_copy_only=False)
    values = np.empty(len(column), object)  # of None
    for place in np.flatnonzero(column.is_valid()):
        values[place] = column[int(place)].values.to_numpy()
    return values


class WithNulls(pd.arrays.ArrowExtensionArray):
    """A column some of whose values are null, and stay it in MLflow's hands.

    NumPy has no null but NaN, of which MLflow makes "None" where it wants text, and fails where it wants an
    integer (`spark_udf`); and no JSON reader takes NaN. Cast to a type that has no null, it stays as it is.
    """

    def astype(self, dtype: Any, copy: bool = True) -> Any:
        if isinstance(dtype, np.dtype) and dtype.kind in "biuU":
            return self
        return super().astype(dtype, copy)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.__arrow_array__().to_pylist())
