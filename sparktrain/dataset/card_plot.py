"""Small plots for the data card, drawn as inline SVG from what was counted."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from html import escape
from math import ceil, floor, inf, isfinite

from sparktrain.dataset.manifest import Record
from sparktrain.dataset.statistics import ColumnStatistics
from sparktrain.features.sketch import bucket_borders

NUM_BARS = 24
_HEIGHT = 30
_BAR, _GAP = 5, 1


class Bars(Record):
    """Bars of equal width from `low` to `high`, by their share of the rows that have a number.

    The first and the last bar hold what lies beyond as well.
    """

    low: float
    high: float
    shares: tuple[float, ...]


def bars_of(column: ColumnStatistics) -> Bars | None:
    """The distribution of a column of numbers between its first and its last quantile; None without one.

    A bucket's rows are spread evenly over its width. Whole numbers get bars that hold equally many of them as
    long as there are few, so that 1 to 12 are twelve bars.
    """
    if not column.histogram or column.smallest is None or column.largest is None:
        return None
    low, high = column.smallest, column.largest
    # Farther out a float64 can't tell a whole number from the halves beside it.
    whole = column.input_type in ("long", "boolean") and max(-low, high) < 2**50
    if column.quantiles and column.quantiles[0] < column.quantiles[-1]:
        low, high = max(low, column.quantiles[0]), min(high, column.quantiles[-1])
    left, right, num_bars = low, high, NUM_BARS if low < high else 1
    if whole:
        low, high = floor(low), ceil(high)
        left, right = low - 0.5, high + 0.5
        num_bars = int(min(NUM_BARS, right - left))
    width = (right - left) / num_bars
    if not isfinite(width):
        return None
    borders = [-inf, *(left + i * width for i in range(1, num_bars)), inf]
    rows_by_bar = [0.0] * num_bars
    for bucket, rows in column.histogram:
        start, stop = bucket_borders(bucket, column.histogram_bits)
        start, stop = max(start, column.smallest), min(stop, column.largest)
        if whole:
            start, stop = ceil(start) - 0.5, floor(stop) + 0.5
        _spread(rows, start, stop, borders, rows_by_bar)
    total = sum(rows_by_bar)
    return Bars(low=low, high=high, shares=tuple(round(rows / total, 5) for rows in rows_by_bar))


def _spread(rows: int, start: float, stop: float, borders: Sequence[float], rows_by_bar: list[float]) -> None:
    first, last = (min(bisect_right(borders, x), len(rows_by_bar)) - 1 for x in (start, stop))
    if first >= last:
        rows_by_bar[first] += rows
        return
    for bar in range(first, last + 1):
        inside = min(stop, borders[bar + 1]) - max(start, borders[bar])
        rows_by_bar[bar] += rows * inside / (stop - start)


def draw(shares: Sequence[float], label: str) -> str:
    """Draw bars as an <svg> whose highest bar fills it; `label` is read out and shown on hovering."""
    width = len(shares) * (_BAR + _GAP) - _GAP
    highest = max(shares, default=0) or 1
    path = "".join(
        f"M{i * (_BAR + _GAP)} {_HEIGHT}v-{max(round(_HEIGHT * share / highest, 1), 0.6):g}h{_BAR}V{_HEIGHT}z"
        for i, share in enumerate(shares)
        if share > 0
    )
    return (
        f'<svg viewBox="0 0 {width} {_HEIGHT}" width="{width}" height="{_HEIGHT}" role="img">'
        f'<title>{escape(label)}</title><path d="{path}"/></svg>'
    )
