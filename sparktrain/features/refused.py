"""Which rows can't be scored, and why: marked when they were read, or of a value that `transform` refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from sparktrain.errors import ValuesRefused
from sparktrain.features.raw import MALFORMED_COLUMN, UNCASTABLE_COLUMN, is_readable, read_as

if TYPE_CHECKING:
    from sparktrain.features.fitted import FittedFeature, FittedFeatures

_LONGEST_REASON = 300


def marked_rows(features: FittedFeatures, rows: pa.Table | pa.RecordBatch) -> dict[int, str]:
    """Return why rows could not be read, by their place, rising: what was there is null now.

    Preparation quarantines such rows. Scored, they would pass for rows that lack the value.

    Args:
        rows: as a pipeline reads them. What could not be cast counts in the features' own columns alone.
    """
    found: dict[int, list[str]] = {}
    for place, text in _kept(rows, MALFORMED_COLUMN, lambda kind: is_readable(kind, "string")):
        found.setdefault(place, []).append(_short(f"the row could not be read: {text}"))
    for place, texts in _kept(rows, UNCASTABLE_COLUMN, pa.types.is_struct):
        for name, kind in features.input_types.items():
            if (text := texts.get(name)) is not None:
                found.setdefault(place, []).append(_short(f"column `{name}`: {text!r} is no {kind}"))
    return {place: "; ".join(found[place]) for place in sorted(found)}


def _kept(
    rows: pa.Table | pa.RecordBatch, name: str, is_ours: Callable[[pa.DataType], bool]
) -> Iterator[tuple[int, Any]]:
    """What a reader's column holds, with the places; nothing of a column that only has the name."""
    if rows.schema.names.count(name) != 1 or not is_ours(rows.schema.field(name).type):
        return
    column = rows.column(name)
    if column.null_count < len(column):
        places = pc.indices_nonzero(column.is_valid())
        yield from zip(places.to_pylist(), column.take(places).to_pylist(), strict=True)


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
    return _short(text)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}…"
