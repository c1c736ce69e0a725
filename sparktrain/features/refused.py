"""Which rows `transform` refuses, and why: it refuses all of a batch for one value that can't be taken."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pyarrow as pa

from sparktrain.errors import ValuesRefused
from sparktrain.features.raw import read_as

if TYPE_CHECKING:
    from sparktrain.features.fitted import FittedFeature, FittedFeatures

_LONGEST_REASON = 300


def refused_rows(features: FittedFeatures, rows: pa.Table | pa.RecordBatch) -> dict[int, str]:
    """Return why `transform` refuses rows, by their place, rising; it takes the others.

    Columns are tried one by one, halved where they fail: slow where most rows are refused. Whatever is raised
    counts, for a tokenizer is anybody's code.

    Args:
        rows: whose schema `check_schema` lets pass.
    """
    found: dict[int, dict[str, None]] = {}
    for feature in features.features:
        column = rows.column(feature.column)
        if isinstance(column, pa.ChunkedArray):
            column = column.combine_chunks()
        for place, reason in _refused(feature, column):
            found.setdefault(place, {})[f"column `{feature.column}`: {reason}"] = None
    return {place: "; ".join(found[place]) for place in sorted(found)}


def _refused(feature: FittedFeature, column: pa.Array) -> Iterator[tuple[int, str]]:
    waiting = [(0, len(column))]
    while waiting:
        start, length = waiting.pop()
        try:
            feature.transform(read_as(column.slice(start, length), feature.input_type))
        except Exception as error:
            if length <= 1:
                yield start, _reason(feature, error)
            else:
                half = length // 2
                waiting += [(start, half), (start + half, length - half)]


def _reason(feature: FittedFeature, error: Exception) -> str:
    if isinstance(error, ValuesRefused):
        return error.columns[feature.column]
    return short_reason(error)


def short_reason(error: Exception) -> str:
    """What was raised, in one line."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else ""
    if not isinstance(error, pa.ArrowException):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}…"
