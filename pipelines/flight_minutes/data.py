"""The flights and features of `flight_delays`; what is predicted of them is the delay itself, in minutes."""

from __future__ import annotations

from pipelines.flight_delays.data import FEATURES, KEY, RULES, read
from sparktrain.features import Target

__all__ = ["FEATURES", "KEY", "RULES", "TARGET", "read"]

TARGET = Target("minutes_late", column="arr_delay", kind="regression")  # negative: it arrived early
