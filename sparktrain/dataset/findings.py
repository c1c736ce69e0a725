"""What is good or bad about a dataset's layout: pure functions from figures to findings with a way out.

The limits are those that were measured: decoding reaches its speed at row groups of 2 to 8 MB decoded, loses
most of it below 0.5 MB, and far above 16 MB gains nothing but a need for memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Literal, NamedTuple

from sparktrain.dataset.footers import ColumnLayout

SMALL_ROW_GROUP_BYTES = 0.5e6
GOOD_ROW_GROUP_BYTES = 4e6
LARGE_ROW_GROUP_BYTES = 32e6
MUCH_MEMORY_BYTES = 2e9
ROW_GROUPS_PER_LANE = 8
_MANY_DROPPED = 0.1  # of the rows
_SKEWED, _TINY = 2.0, 0.1  # times the median part's rows
_NUM_NAMED = 5

_DICTIONARY_WAY_OUT = (
    "write them without: prepare does; pyarrow: use_dictionary=[the other columns], "
    "Spark: parquet.enable.dictionary#<column>=false"
)


class Finding(NamedTuple):
    """One line of the answer; `way_out` is empty when nothing is wrong."""

    level: Literal["error", "warning", "ok"]
    what: str
    found: str
    way_out: str = ""


class Advice(NamedTuple):
    """What way outs are made of.

    Attributes:
        rows_setting: what fixes the rows of a row group, with {} for their number.
        parts_setting: likewise the number of parts.
        global_batch_size, num_lanes: of the training; 0 lanes when nobody asked about them.
        bytes_per_row: decoded.
    """

    rows_setting: str
    parts_setting: str
    global_batch_size: int
    num_lanes: int
    bytes_per_row: float

    def row_groups_of(self, num_rows: int) -> str:
        return f"{self.rows_setting.format(num_rows)} ({bytes_text(num_rows * self.bytes_per_row)} decoded)"


def bytes_text(num_bytes: float) -> str:
    """Bytes as people read them, such as "1.5 MB"."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.1f} {unit}"
    return f"{num_bytes:.0f} bytes"


def judge_steps(split: str, num_rows: int, global_batch_size: int) -> Finding:
    steps, dropped = divmod(num_rows, global_batch_size)
    what = "steps per epoch"
    if num_rows == 0:
        return Finding("error", what, f"{split} has no row", "give it rows: nothing can be trained on it")
    if steps == 0:
        found = f"none: {split} has {num_rows:,} rows, fewer than the global batch of {global_batch_size:,}"
        return Finding("error", what, found, f"a global batch of {num_rows} rows or less")
    found = (
        f"{split}: {steps:,} of {global_batch_size:,} rows, the same at any world size; "
        f"{dropped:,} rows ({dropped / num_rows:.2%}) dropped"
    )
    if dropped <= _MANY_DROPPED * num_rows:
        return Finding("ok", what, found)
    return Finding("warning", what, found, "a smaller global batch; each epoch drops other rows")


def judge_mixing(row_groups: Sequence[int], mixed: float, advice: Advice) -> Finding:
    """Hold the number of row groups against the lanes.

    Args:
        row_groups: rows of those that have any.
        mixed: row groups that a global batch has rows of.
        advice: for the way out.
    """
    count, lanes = len(row_groups), advice.num_lanes
    wanted = ROW_GROUPS_PER_LANE * lanes
    found = f"{count:,} row groups for {lanes} lanes"
    if count >= wanted:
        return Finding("ok", "mixing", f"{found}, at least {wanted} wanted; a batch has rows of {mixed:.0f}")
    most = max(count // ROW_GROUPS_PER_LANE, 1)
    fewer = max(n for n in range(1, most + 1) if advice.global_batch_size % n == 0)
    ways = [f"train.num_lanes={fewer}"] if fewer < lanes else []
    if rows := _mixable_rows(row_groups, lanes):
        ways.append(advice.row_groups_of(rows))
    way_out = ", or ".join(ways) or "more rows"
    found += f", fewer than {wanted}: batches mix poorly, each has rows of {mixed:.0f}"
    return Finding("warning", "mixing", found, way_out)


def judge_row_groups(row_groups: Sequence[int], num_parts: int, advice: Advice) -> Finding:
    """Judge the row group that the middle row lies in: parts end with a short one, which tells nothing."""
    typical, largest, total = _typical(row_groups), max(row_groups), sum(row_groups)
    each = advice.bytes_per_row
    good = _power_of_two(GOOD_ROW_GROUP_BYTES / each)
    found = (
        f"{typical:,} rows, {bytes_text(typical * each)} decoded; the largest {bytes_text(largest * each)}"
    )
    if largest * each > LARGE_ROW_GROUP_BYTES:
        return Finding("warning", "row groups", f"{found}: costs memory", advice.row_groups_of(max(good, 1)))
    if typical * each >= SMALL_ROW_GROUP_BYTES:
        return Finding("ok", "row groups", found)
    rows = min(good, _mixable_rows(row_groups, advice.num_lanes) if advice.num_lanes else total)
    if rows <= typical:
        return Finding("ok", "row groups", f"{found}; slow to read, but larger ones would mix too little")
    way_out = advice.row_groups_of(rows)
    if num_parts > total // rows:
        way_out += f" with {advice.parts_setting.format(max(total // rows, 1))} or less"
    return Finding("warning", "row groups", f"{found}: slow to read", way_out)


def judge_parts(rows: Mapping[str, int], way_out: str) -> Finding:
    """Judge the rows of the parts of one split, by path."""
    middle = median([n for n in rows.values() if n] or [0])
    tiny = {path: n for path, n in rows.items() if n < _TINY * middle}
    skewed = {path: n for path, n in rows.items() if n > _SKEWED * middle}
    found = f"{len(rows):,} of about {middle:,.0f} rows"
    said = [
        f"{len(odd):,} {word}: {_some([f'{path} ({n:,} rows)' for path, n in odd.items()])}"
        for word, odd in (("far larger", skewed), ("tiny", tiny))
        if odd
    ]
    return Finding("warning" if said else "ok", "parts", "; ".join([found, *said]), way_out if said else "")


def judge_memory(memory_bytes: Mapping[int, int]) -> Finding:
    """Judge the decoded bytes that a rank holds at most, by the number of ranks."""
    ends = dict.fromkeys((min(memory_bytes), max(memory_bytes)))
    found = ", ".join(f"{bytes_text(memory_bytes[n])} with {n} rank{'s' * (n > 1)}" for n in ends)
    if max(memory_bytes.values()) <= MUCH_MEMORY_BYTES:
        return Finding("ok", "memory per rank", f"at most {found}")
    way_out = "fewer lanes, smaller row groups or more ranks"
    return Finding("warning", "memory per rank", f"up to {found}", way_out)


def judge_columns(columns: Sequence[ColumnLayout]) -> Iterator[Finding]:
    """One finding for each kind of fault, naming the columns; a single good one when there is none."""
    faults = list(_column_faults(columns))
    if not faults:
        faults = [Finding("ok", "columns", f"{len(columns)}: not nullable, no costly encoding or codec")]
    decoded, stored = bytes_per_row(columns)
    yield from faults
    yield Finding("ok", "bytes per row", f"{decoded:,.1f} decoded, {stored:,.1f} stored")


def bytes_per_row(columns: Sequence[ColumnLayout]) -> tuple[float, float]:
    """Bytes of a row over all columns: decoded, and stored."""
    return sum(c.decoded_bytes_per_row for c in columns), sum(c.stored_bytes_per_row for c in columns)


def _column_faults(columns: Sequence[ColumnLayout]) -> Iterator[Finding]:
    floats = [c for c in columns if c.is_float]
    yield from _fault(
        "nullable floats",
        "decode at half the speed, and a null has no place in a batch",
        [c.name for c in floats if c.nullable],
        "fill nulls and declare them required: prepare does; Spark: coalesce(column, a literal)",
    )
    yield from _fault(
        "nullable columns",
        "decode at half the speed; integers with nulls become float64",
        [c.name for c in columns if c.nullable and c not in floats],
        "declare them required: prepare does; Spark: coalesce(column, a literal)",
    )
    yield from _fault(
        "dictionary on floats",
        "larger than plain values, and slow",
        [c.name for c in floats if c.dictionary],
        _DICTIONARY_WAY_OUT,
    )
    yield from _fault(
        "dictionary on many values",
        "too many values: it saves nothing",
        [c.name for c in columns if c.dictionary and not c.dictionary_saves and c not in floats],
        _DICTIONARY_WAY_OUT,
    )
    yield from _fault(
        "lists",
        "decode at a quarter of the speed of fixed-width binary",
        [
            f"{c.name} ({c.list_length} values a row)" if c.list_length else c.name
            for c in columns
            if c.is_list
        ],
        "store them as binary of one width: declare a Vector, or Tokens when their lengths differ",
    )
    # With byte-stream-split somewhere, whoever wrote it has chosen size over speed on purpose.
    if not any("BYTE_STREAM_SPLIT" in c.encodings for c in columns):
        yield from _fault(
            "slow codec",
            "decodes several times slower than lz4",
            [f"{c.name} ({'+'.join(c.codecs)})" for c in columns if {"ZSTD", "GZIP", "BROTLI"} & {*c.codecs}],
            "lz4, which is the default of prepare.compression, unless storage or network is the limit",
        )


def _fault(what: str, why: str, names: Sequence[str], way_out: str) -> Iterator[Finding]:
    if names:
        yield Finding("warning", what, f"{len(names)} ({why}): {_some(names)}", way_out)


def _some(names: Sequence[str]) -> str:
    more = f", … {len(names) - _NUM_NAMED:,} more" if len(names) > _NUM_NAMED else ""
    return ", ".join(names[:_NUM_NAMED]) + more


def _typical(row_groups: Sequence[int]) -> int:
    seen, half = 0, sum(row_groups) / 2
    for rows in sorted(row_groups):
        seen += rows
        if seen >= half:
            break
    return rows


def _mixable_rows(row_groups: Sequence[int], num_lanes: int) -> int:
    """The most rows of a row group with which there are enough of them for the lanes; 0 when none are."""
    return _power_of_two(sum(row_groups) / (ROW_GROUPS_PER_LANE * num_lanes))


def _power_of_two(at_most: float) -> int:
    return 1 << (int(at_most).bit_length() - 1) if at_most >= 1 else 0
