"""What a Spark partition does with its rows: spool the kept ones, quarantine the others, count all."""

from __future__ import annotations

import json
import os
import secrets
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyspark import TaskContext

from sparktrain.features import InputType, read_as
from sparktrain.features.sketch import CARD_BITS
from sparktrain.preparation.counting import NumberCounter, ValueCounter
from sparktrain.preparation.split import SPLITS

QUARANTINE = "quarantine"
PLACE, ROW_ID, RULE, SOURCE = "_place", "_row_id", "_rule", "_source"
HASH_BITS = 61  # below the two bits of the split, in a positive int64

COUNTS_DDL = "topic string, key string, count bigint, payload string"
_COUNTS = pa.schema(
    [("topic", pa.string()), ("key", pa.string()), ("count", pa.int64()), ("payload", pa.string())]
)
_QUARANTINED = pa.schema([("rule", pa.string()), ("row", pa.string())])


class View(NamedTuple):
    """How numbers are looked at: clipped to [low, high] (None: as they are), with the sketch's `bits`."""

    low: float | None
    high: float | None
    bits: int


PLAIN = View(None, None, CARD_BITS)  # what the card shows, and what limits are held against


@dataclass(frozen=True)
class Wanted:
    """What to count of one raw column.

    Attributes:
        column: its name.
        input_type: what features read it as.
        views: numbers to count of it.
        max_values, min_count: of the vocabularies made of it; None: its values are not counted.
        all_splits: count values in every split, not only in the training rows.
    """

    column: str
    input_type: InputType
    views: tuple[View, ...] = ()
    max_values: int | None = None
    min_count: int = 1
    all_splits: bool = False


@dataclass(frozen=True)
class Spool:
    """Kept rows of one Spark partition, as they came: an Arrow file.

    Attributes:
        path: of the file.
        rows: by split, in the order train, validation, test, in which the rows lie in the file.
        batch_rows: rows of each record batch.
    """

    path: str
    rows: tuple[int, int, int]
    batch_rows: tuple[int, ...]


def survey_partition(
    batches: Iterable[pa.RecordBatch], staging: str, wanted: Sequence[Wanted]
) -> Iterator[pa.RecordBatch]:
    """Spool and count one Spark partition, whose rows come in the order of their places."""
    context = TaskContext.get()
    assert context is not None
    desk = _Desk(Path(staging), context.partitionId(), wanted)
    for batch in _in_one_order(batches):
        desk.take(batch)
        yield from desk.overflow()
    yield from desk.close()


def _in_one_order(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The rows as tables; rows of one place, of which the sort says nothing, are put in order by value."""
    held: list[pa.Table] = []
    for batch in batches:
        if not batch.num_rows:
            continue
        table = pa.Table.from_batches([batch])
        if held and held[-1][PLACE][-1] == table[PLACE][0]:
            # Only the rows of the last place wait for more: with many equal rows every batch may end in some.
            places = held[-1][PLACE].to_numpy()
            if first := int(np.searchsorted(places, places[-1])):
                yield _untied([*held[:-1], held[-1].slice(0, first)])
                held = [held[-1].slice(first)]
            held.append(table)
            continue
        if held:
            yield _untied(held)
        held = [table]
    if held:
        yield _untied(held)


def _untied(tables: Sequence[pa.Table]) -> pa.Table:
    table = tables[0] if len(tables) == 1 else pa.concat_tables(tables).combine_chunks()
    places = table[PLACE].to_numpy()
    tied = np.flatnonzero(places[1:] == places[:-1])
    if not len(tied) or _are_the_same(table.take(tied), table.take(tied + 1)):
        return table  # copies of a row may be many
    concerned = np.union1d(tied, tied + 1)
    rows = table.take(concerned).to_pylist()
    order = np.arange(len(table))
    order[concerned] = concerned[
        sorted(range(len(rows)), key=lambda i: (rows[i][PLACE], repr(_exact(list(rows[i].values())))))
    ]
    return table.take(order)


def _are_the_same(left: pa.Table, right: pa.Table) -> bool:
    pairs = zip(left.columns, right.columns, strict=True)
    return all(_have_the_same_bits(a.combine_chunks(), b.combine_chunks()) for a, b in pairs)


def _have_the_same_bits(left: pa.Array, right: pa.Array) -> bool:
    """Equality that tells zeros by their signs, and finds a NaN equal to itself."""
    if isinstance(left, pa.ListArray):
        lengths = pc.list_value_length(left), pc.list_value_length(right)
        return lengths[0].equals(lengths[1]) and _have_the_same_bits(left.flatten(), right.flatten())
    if pa.types.is_floating(left.type):
        whole = pa.int64() if left.type == pa.float64() else pa.int32()
        left, right = left.view(whole), right.view(whole)
    return bool(left.equals(right))


def _exact(value: object) -> object:
    """A value whose `repr` shows every bit."""
    if isinstance(value, list):
        return [_exact(inner) for inner in value]
    return struct.pack(">d", value) if isinstance(value, float) else value


class _Desk:
    """What one Spark partition writes and counts."""

    def __init__(self, staging: Path, partition: int, wanted: Sequence[Wanted]) -> None:
        self._wanted, self._partition = wanted, partition
        # The token keeps two tries of a Spark task from writing one file.
        name = f"{partition:05d}-{secrets.token_hex(4)}"
        self._spool = staging / "spool" / f"{name}.arrow"
        self._rejected = staging / QUARANTINE / f"part-{name}.parquet"
        self._writer: pa.RecordBatchFileWriter | None = None
        self._quarantine: pq.ParquetWriter | None = None
        self._rows = [0, 0, 0]
        self._batch_rows: list[int] = []
        self._rules: Counter[str] = Counter()
        self._numbers = {
            i: [NumberCounter(v.bits, v.low, v.high) for v in w.views]
            for i, w in enumerate(wanted)
            if w.views
        }
        self._values = {i: ValueCounter() for i, w in enumerate(wanted) if w.max_values is not None}
        self._nulls: Counter[int] = Counter()
        self._train_nulls: Counter[int] = Counter()

    def take(self, table: pa.Table) -> None:
        codes = table[PLACE].to_numpy() >> HASH_BITS
        borders = np.searchsorted(codes, np.arange(len(SPLITS) + 2))
        kept = int(borders[len(SPLITS)])
        if kept < len(table):
            self._reject(table.slice(kept))
        if not kept:
            return
        self._keep(table.slice(0, kept).drop_columns([PLACE, RULE, SOURCE]).combine_chunks())
        for code in range(len(SPLITS)):
            first, last = int(borders[code]), int(borders[code + 1])
            self._rows[code] += last - first
            if first < last:
                self._count(table.slice(first, last - first), is_training=code == 0)

    def _keep(self, rows: pa.Table) -> None:
        if self._writer is None:
            self._spool.parent.mkdir(parents=True, exist_ok=True)
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            self._writer = pa.ipc.new_file(str(self._spool), rows.schema, options=options)
        self._writer.write_table(rows)
        self._batch_rows.append(len(rows))

    def _reject(self, rows: pa.Table) -> None:
        if self._quarantine is None:
            self._rejected.parent.mkdir(parents=True, exist_ok=True)
            self._quarantine = pq.ParquetWriter(self._rejected, _QUARANTINED, compression="zstd")
        self._quarantine.write_table(pa.table({"rule": rows[RULE], "row": rows[SOURCE]}, schema=_QUARANTINED))
        for item in pc.value_counts(rows[RULE]):
            self._rules[item["values"].as_py()] += item["counts"].as_py()

    def _count(self, rows: pa.Table, is_training: bool) -> None:
        for i, w in enumerate(self._wanted):
            column = rows[f"_{i}"]
            array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
            self._nulls[i] += array.null_count
            self._train_nulls[i] += array.null_count * is_training
            if counters := self._numbers.get(i):
                numbers = array if pa.types.is_integer(array.type) else read_as(array, "double")
                for counter in counters:
                    counter.add(numbers, is_training)
            if (values := self._values.get(i)) and (is_training or w.all_splits):
                values.add(array)

    def overflow(self) -> Iterator[pa.RecordBatch]:
        for i, values in self._values.items():
            if (table := values.overflow()) is not None:
                yield from _value_rows(i, table)

    def close(self) -> Iterator[pa.RecordBatch]:
        if self._writer is not None:
            self._writer.close()
        if self._quarantine is not None:
            self._quarantine.close()
            _flush_to_disk(self._rejected)
        for i, values in self._values.items():
            if (table := values.take()) is not None:
                yield from _value_rows(i, table)
        rows: list[tuple[str, str, int, str | None]] = []
        rows += [("rule", rule, count, None) for rule, count in self._rules.items()]
        rows += [
            ("split", split, count, None) for split, count in zip(SPLITS, self._rows, strict=True) if count
        ]
        rows += [("nulls", str(i), count, None) for i, count in self._nulls.items()]
        rows += [("train_nulls", str(i), count, None) for i, count in self._train_nulls.items()]
        rows += [
            ("numbers", f"{i}:{view}", 0, counter.result().to_text())
            for i, counters in self._numbers.items()
            for view, counter in enumerate(counters)
        ]
        if self._writer is not None:
            spool = [self._partition, str(self._spool), self._rows, self._batch_rows]
            rows.append(("spool", str(self._partition), 0, json.dumps(spool)))
        if self._quarantine is not None:
            rows.append(("quarantine", self._rejected.name, 0, None))
        if rows:
            yield pa.RecordBatch.from_pylist(
                [dict(zip(_COUNTS.names, row, strict=True)) for row in rows], schema=_COUNTS
            )


def _value_rows(number: int, table: pa.Table) -> Iterator[pa.RecordBatch]:
    rows = len(table)
    topic = pa.repeat(pa.scalar(f"value:{number}"), rows)
    columns = [topic, table["key"], table["count"], pa.nulls(rows, pa.string())]
    yield from pa.table(columns, schema=_COUNTS).to_batches(max_chunksize=65_536)


def _flush_to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
