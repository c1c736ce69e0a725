"""Timestamps and dates as parts of the calendar."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sparktrain.features.declare import TimestampPart
from sparktrain.features.fitted_columns.column import Arrays, FittedColumn, null_mask
from sparktrain.features.output import Output, flag_name, flag_outputs, part_names
from sparktrain.features.raw import read_as


class _Part(NamedTuple):
    extract: Callable[[pa.Array], Any]
    first: int
    period: int
    """How many values there are, from `first` on; of a year, none."""


_PARTS: dict[TimestampPart, _Part] = {
    "minute": _Part(pc.minute, 0, 60),
    "hour": _Part(pc.hour, 0, 24),
    "day": _Part(pc.day, 1, 31),
    "day_of_week": _Part(pc.day_of_week, 0, 7),  # Monday is 0
    "day_of_year": _Part(pc.day_of_year, 1, 366),
    "month": _Part(pc.month, 1, 12),
    "year": _Part(pc.year, 0, 0),
}


class FittedTimestamp(FittedColumn):
    """float32 parts of the calendar of `time_zone`: see `declare.Timestamp`. A null is zeros."""

    kind: Literal["timestamp"] = "timestamp"
    input_type: Literal["timestamp", "date"]
    parts: tuple[TimestampPart, ...]
    cyclic: bool
    time_zone: str
    null_flag: bool = False

    @property
    def outputs(self) -> tuple[Output, ...]:
        names = [name for part in self.parts for name in part_names(self.name, part, self.cyclic)]
        return (
            *(Output(name=name, dtype="float32") for name in names),
            *flag_outputs(self.name, self.null_flag),
        )

    def transform(self, column: pa.Array) -> Arrays:
        column = read_as(read_as(column, self.input_type), "timestamp")
        clock = _local_clock(column, self.time_zone)
        arrays: Arrays = {}
        for part in self.parts:
            values = _on_circle(clock, _PARTS[part]) if self.cyclic else _as_number(clock, _PARTS[part])
            arrays.update(zip(part_names(self.name, part, self.cyclic), values, strict=True))
        if self.null_flag:
            arrays[flag_name(self.name)] = null_mask(column).astype(np.float32)
        return arrays


def _local_clock(column: pa.Array, time_zone: str) -> pa.Array:
    """What calendar and clock on the wall show: timestamps without zone."""
    if column.type.tz is None:
        return column
    if time_zone == "UTC":  # needs no time zone database, which small containers lack
        return column.cast(pa.timestamp("us"))
    return pc.local_timestamp(column.cast(pa.timestamp("us", tz=time_zone)))


def _on_circle(clock: pa.Array, part: _Part) -> list[NDArray[np.float32]]:
    angles = np.arange(part.period) * (2 * np.pi / part.period)
    values = pc.fill_null(part.extract(clock), part.first + part.period).to_numpy() - part.first
    # The entry after the last one is for null.
    return [np.append(f(angles), 0.0).astype(np.float32)[values] for f in (np.sin, np.cos)]


def _as_number(clock: pa.Array, part: _Part) -> list[NDArray[np.float32]]:
    return [pc.fill_null(part.extract(clock), 0).to_numpy().astype(np.float32)]
