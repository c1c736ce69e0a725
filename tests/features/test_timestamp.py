"""The calendar: parts as Python's own datetime and zoneinfo see them."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from math import cos, pi, sin
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparktrain.features import FittedTimestamp

PARTS = ("minute", "hour", "day", "day_of_week", "day_of_year", "month", "year")
zones = st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kathmandu", "America/St_Johns"])
moments = st.datetimes(datetime(1920, 1, 1), datetime(2037, 12, 31))


def fitted(**changes: Any) -> FittedTimestamp:
    sound: dict[str, Any] = {
        "input_type": "timestamp", "parts": PARTS, "cyclic": False, "time_zone": "UTC"
    }  # fmt: skip
    return FittedTimestamp(name="t", column="t", **(sound | changes))


def parts_of(moment: datetime) -> list[float]:
    day_of_year = moment.timetuple().tm_yday
    return [moment.minute, moment.hour, moment.day, moment.weekday(), day_of_year, moment.month, moment.year]


def numbers(feature: FittedTimestamp, column: pa.Array) -> list[list[float]]:
    arrays = feature.transform(column)
    assert list(arrays) == [output.name for output in feature.outputs]
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}
    return np.stack(list(arrays.values()), axis=1).tolist()


@given(moment=moments, zone=zones)
def test_parts_are_those_of_the_declared_zone(moment: datetime, zone: str) -> None:
    aware = moment.replace(tzinfo=UTC)
    local = parts_of(aware.astimezone(ZoneInfo(zone)))
    for stored in ("UTC", "Asia/Tokyo"):  # what the column is stored with means nothing
        column = pa.array([aware], pa.timestamp("us", stored))
        assert numbers(fitted(time_zone=zone), column) == [local]


@given(moment=moments, zone=zones)
def test_a_timestamp_without_zone_is_taken_as_being_there(moment: datetime, zone: str) -> None:
    assert numbers(fitted(time_zone=zone), pa.array([moment], pa.timestamp("us"))) == [parts_of(moment)]


def test_a_date_is_a_midnight_of_the_declared_zone() -> None:
    day = date(2024, 2, 29)
    feature = fitted(input_type="date", time_zone="America/St_Johns")
    expected = [parts_of(datetime(2024, 2, 29))]
    assert numbers(feature, pa.array([day])) == expected
    assert numbers(feature, pa.array([datetime(2024, 2, 29)], pa.timestamp("ns"))) == expected  # pandas


def test_cyclic_parts_lie_on_a_circle() -> None:
    column = pa.array([datetime(2024, 12, 31, 23, 59), None])
    arrays = fitted(cyclic=True, parts=PARTS[:-1]).transform(column)
    turns = {
        "minute": 59 / 60, "hour": 23 / 24, "day": 30 / 31,
        "day_of_week": 1 / 7, "day_of_year": 365 / 366, "month": 11 / 12,
    }  # fmt: skip
    assert list(arrays) == [f"t_{part}_{axis}" for part in PARTS[:-1] for axis in ("sin", "cos")]
    for part, turn in turns.items():
        expected = [sin(2 * pi * turn), cos(2 * pi * turn)]
        found = [float(arrays[f"t_{part}_{axis}"][0]) for axis in ("sin", "cos")]
        assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("cyclic", [True, False])
def test_a_null_is_zeros_and_flagged(cyclic: bool) -> None:
    feature = fitted(cyclic=cyclic, parts=("hour", "month"), null_flag=True)
    arrays = feature.transform(pa.array([None, datetime(2024, 5, 1, 7)], pa.timestamp("us", "UTC")))
    assert arrays.pop("t_is_null").tolist() == [1.0, 0.0]
    assert all(array[0] == 0 and array[1] != 0 for array in arrays.values())


def test_the_hour_that_happens_twice_is_the_same_hour_twice() -> None:
    first = datetime(2024, 10, 27, 0, 30, tzinfo=UTC)  # 2:30 in summer, and an hour later in winter
    column = pa.array([first, first + timedelta(hours=1)], pa.timestamp("us", "UTC"))
    assert numbers(fitted(parts=("hour",), time_zone="Europe/Berlin"), column) == [[2.0], [2.0]]
