"""The look at the source, without Spark: rows in one order, spooled, counted in any partitioning."""

from __future__ import annotations

import json
import random
import struct
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparktrain.features.sketch import CARD_BITS, FINE_BITS
from sparktrain.preparation import spooling as module
from sparktrain.preparation.counting import ValueCounter
from sparktrain.preparation.split import SPLITS
from sparktrain.preparation.spooling import (
    HASH_BITS,
    QUARANTINE,
    View,
    Wanted,
    _Desk,
    _in_one_order,
)
from sparktrain.preparation.survey import Survey, _assemble

NAN = float("nan")
(OTHER_NAN,) = struct.unpack(">d", bytes.fromhex("fff8000000000001"))
SCHEMA = pa.schema(
    [
        ("_row_id", pa.int64()),
        ("_0", pa.float64()),
        ("_1", pa.string()),
        ("_2", pa.list_(pa.float64())),
        ("_3", pa.int32()),
        ("_rule", pa.string()),
        ("_source", pa.string()),
        ("_place", pa.int64()),
    ]
)
PLAIN, CLIPPED = View(None, None, CARD_BITS), View(-1.0, 1.5, FINE_BITS)
WANTED = [
    Wanted("x", "double", (PLAIN, CLIPPED)),
    Wanted("word", "string", max_values=2),
    Wanted("vector", "doubles"),
    Wanted("number", "long", (PLAIN,), max_values=10, min_count=2, all_splits=True),
]
REJECTED = len(SPLITS)

zeros_and_such = st.sampled_from([None, 0.0, -0.0, 1.0, -5.0, 7.0, NAN, OTHER_NAN, float("inf")])
rows_of = st.tuples(
    zeros_and_such,
    st.sampled_from([None, "", "a", "b", "c"]),
    st.none() | st.lists(zeros_and_such, max_size=2),
    st.none() | st.integers(-2, 2) | st.sampled_from([20_000, 2**31 - 1]),
    st.integers(0, REJECTED),
    st.integers(0, 2),
)
tables = st.lists(rows_of, max_size=30)
shufflers = st.randoms(use_true_random=False)

Row = tuple[Any, ...]


def row(x: Any, word: Any, vector: Any, number: Any, split: int, hashed: int) -> Row:
    rule = "broken" if split == REJECTED else None
    return (hashed, x, word, vector, number, rule, rule and f"{x} {word}", split << HASH_BITS | hashed)


def batches(rows: Sequence[Row], shuffler: random.Random) -> list[pa.RecordBatch]:
    """Rows as a Spark partition gets them: by place, those of one place in any order, cut anywhere."""
    ordered = sorted(shuffler.sample(rows, len(rows)), key=lambda row: row[-1])
    made = []
    while ordered:
        size = shuffler.randint(0, 6)
        taken, ordered = ordered[:size], ordered[size:]
        columns = [[row[i] for row in taken] for i in range(len(SCHEMA))]
        made.append(
            pa.record_batch([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], SCHEMA)
        )
    return made


def bits(value: Any) -> Any:
    if isinstance(value, list):
        return [bits(inner) for inner in value]
    return struct.pack(">d", value).hex() if isinstance(value, float) else value


def content(tables: Sequence[pa.Table]) -> list[list[Any]]:
    return [[bits(value) for value in row.values()] for table in tables for row in table.to_pylist()]


@given(tables, shufflers)
def test_rows_of_one_place_come_out_in_one_order(drawn: list[Row], shuffler: random.Random) -> None:
    rows = [row(*values) for values in drawn]
    found = list(_in_one_order(batches(rows, shuffler)))
    assert content(found) == content(list(_in_one_order(batches(rows, shuffler))))
    assert sorted(map(repr, content(found))) == sorted(repr(bits(list(r))) for r in rows)
    places = [r[-1] for r in content(found)]
    assert places == sorted(places)
    ends = [(table["_place"][0].as_py(), table["_place"][-1].as_py()) for table in found]
    assert all(left[1] < right[0] for left, right in pairwise(ends)), "no tie across tables"


def test_a_tie_across_many_batches_is_one_table() -> None:
    rows = [row(float(x), "a", None, x, 0, 1) for x in (3, 1, 2, 1, 3)]
    shuffled = [batches([r], random.Random(0)) for r in rows]
    (table,) = _in_one_order([b for some in shuffled for b in some])
    assert table["_0"].to_pylist() == [1.0, 1.0, 2.0, 3.0, 3.0]
    assert list(_in_one_order([])) == []


@pytest.mark.parametrize("pair", [(0.0, -0.0), (NAN, OTHER_NAN)])
@pytest.mark.parametrize("inside", [False, True])
def test_rows_that_differ_in_bits_alone_come_out_in_one_order(
    pair: tuple[float, float], inside: bool
) -> None:
    rows = [row(1.0, "a", [x], 1, 0, 1) if inside else row(x, "a", None, 1, 0, 1) for x in pair]
    found = [
        content(list(_in_one_order([b for r in order for b in batches([r], random.Random(0))])))
        for order in (rows, rows[::-1])
    ]
    assert found[0] == found[1]
    assert found[0][0] != found[0][1]


def test_copies_of_a_row_are_not_turned_into_python_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_exact", lambda value: pytest.fail("copies were sorted"))
    rows = [
        row(x, "a", [NAN, -0.0, None], 1, 0, place) for place, x in ((1, NAN), (2, None)) for _ in range(9)
    ]
    (table,) = _in_one_order(
        [pa.Table.from_batches(batches(rows, random.Random(1))).combine_chunks().to_batches()[0]]
    )
    assert len(table) == 18


def desk(directory: Path, partition: int, given_batches: Sequence[pa.RecordBatch]) -> list[dict[str, Any]]:
    """What a Spark partition sends to the driver."""
    found = _Desk(directory, partition, WANTED)
    sent: list[dict[str, Any]] = []
    for table in _in_one_order(given_batches):
        found.take(table)
        sent += [row for batch in found.overflow() for row in batch.to_pylist()]
    return sent + [row for batch in found.close() for row in batch.to_pylist()]


def assembled(sent: Sequence[dict[str, Any]]) -> Survey:
    """What Spark's aggregate does, and then the driver."""
    counts: Counter[tuple[str, str]] = Counter()
    payloads: dict[tuple[str, str], list[str]] = {}
    for r in sent:
        counts[r["topic"], r["key"]] += r["count"]
        payloads.setdefault((r["topic"], r["key"]), []).extend([r["payload"]] if r["payload"] else [])
    distinct = Counter(topic for topic, _ in counts)
    rows = [
        {"topic": t, "key": k, "count": n, "payload": payloads[t, k], "distinct": distinct[t]}
        for (t, k), n in counts.items()
    ]
    return _assemble(rows, WANTED)


def facts(found: Survey) -> tuple[Any, ...]:
    statistics = {
        key: (
            n.mean(),
            n.deviation(),
            n.quantile(0.5, key[1].bits),
            repr(n.smallest),
            repr(n.largest),
            n.nans,
        )
        for key, n in found.numbers.items()
    }
    buckets = {key: sorted((n.values or n.buckets).items()) for key, n in found.numbers.items()}
    counts = (found.rows_in, found.quarantined, found.split_rows, found.nulls, found.train_nulls)
    return (statistics, buckets, counts, found.values)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tables, shufflers, st.integers(1, 4))
def test_a_survey_does_not_depend_on_the_partitioning(
    tmp_path: Path, drawn: list[Row], shuffler: random.Random, num_partitions: int
) -> None:
    rows = [row(*values) for values in drawn]
    parts: list[list[Row]] = [[] for _ in range(num_partitions)]
    for r in rows:
        parts[shuffler.randrange(num_partitions)].append(r)
    with pytest.MonkeyPatch.context() as patch:
        # memory for one value, so that every batch overflows
        patch.setattr(module, "ValueCounter", partial(ValueCounter, max_distinct=1))
        sent = [r for i, part in enumerate(parts) for r in desk(tmp_path, i, batches(part, shuffler))]
    found = assembled(shuffler.sample(sent, len(sent)))
    whole = assembled(desk(tmp_path, 0, batches(rows, shuffler)))
    assert facts(found) == facts(whole)

    kept = [r for r in rows if r[5] is None]
    train = [r for r in kept if r[-1] >> HASH_BITS == 0]
    assert (found.rows_in, found.rows_kept) == (len(rows), len(kept))
    assert found.nulls == {w.column: sum(r[i + 1] is None for r in kept) for i, w in enumerate(WANTED)}
    assert found.train_nulls == {w.column: sum(r[i + 1] is None for r in train) for i, w in enumerate(WANTED)}
    words = Counter(r[2] for r in train if r[2] is not None)
    assert found.values["word"].counts == tuple(sorted(words.items(), key=lambda w: (-w[1], w[0]))[:2])
    assert found.values["word"].distinct == len(words)
    numbers = Counter(str(r[4]) for r in kept if r[4] is not None)
    often = [item for item in numbers.items() if item[1] >= 2]
    assert found.values["number"].counts == tuple(sorted(often, key=lambda w: (-w[1], w[0])))


def test_kept_rows_are_spooled_as_they_came_and_others_put_aside(tmp_path: Path) -> None:
    rows = [row(float(i), "a" * i, [float(i), None], i, i % 4, i) for i in range(12)]
    found = assembled(desk(tmp_path, 3, batches(rows, random.Random(2))))
    (spool,) = found.spools
    assert spool.rows == (3, 3, 3)
    assert sum(spool.batch_rows) == 9
    with pa.ipc.open_file(spool.path) as file:
        assert tuple(file.get_batch(i).num_rows for i in range(file.num_record_batches)) == spool.batch_rows
        spooled = file.read_all()
    assert spooled.column_names == ["_row_id", "_0", "_1", "_2", "_3"]
    kept = sorted((r for r in rows if r[5] is None), key=lambda r: r[-1])
    assert [tuple(r.values()) for r in spooled.to_pylist()] == [r[:5] for r in kept]
    (rejected,) = (tmp_path / QUARANTINE).iterdir()
    assert pq.read_table(rejected).to_pylist() == [
        {"rule": "broken", "row": r[6]} for r in rows if r[5] is not None
    ]
    assert found.quarantined == {"broken": 3}
    assert found.split_rows == {"train": 3, "validation": 3, "test": 3}


def test_a_partition_without_rows_leaves_nothing(tmp_path: Path) -> None:
    found = assembled(desk(tmp_path, 0, []))
    assert (found.rows_in, found.rows_kept, found.spools) == (0, 0, ())
    assert list(tmp_path.iterdir()) == []


def test_what_travels_is_plain_json(tmp_path: Path) -> None:
    sent = desk(tmp_path, 0, batches([row(NAN, "a", None, 1, 0, 5)], random.Random(0)))
    assert {r["topic"] for r in sent} == {
        "value:1", "value:3", "split", "nulls", "train_nulls", "numbers", "spool"
    }  # fmt: skip
    for r in sent:
        if r["payload"] is not None:
            assert json.loads(r["payload"])
