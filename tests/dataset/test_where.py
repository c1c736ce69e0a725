"""Conditions on rows: the rows that satisfy them, once each, at any world size, and none of the others."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from sparktrain.dataset import Dataset, Stream, open_dataset
from sparktrain.dataset.layout import pack
from sparktrain.dataset.read import RowGroupReader
from sparktrain.errors import ConfigError, NameUnknown, StreamStateMismatch, TooFewRows
from sparktrain.testing import write_tiny_dataset
from sparktrain.world import World


@pytest.fixture(scope="module", params=["columns", "blocks"])
def dataset(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Dataset:
    path = tmp_path_factory.mktemp("where") / "tiny"
    sizes = [[17, 3, 64], [], [1], [64, 64, 0, 40], [5] * 12]
    return write_tiny_dataset(path, sizes, vector_shape=(2,), text=True, layout=request.param)


def ids(stream: Stream) -> list[int]:
    return [int(row) for batch in stream for row in batch["row_id"][batch["row_weight"] > 0]]


@pytest.mark.parametrize(
    "where",
    [
        [("row_id", "<", 100)],
        [("row_id", ">=", 30), ("row_id", "<=", 250)],
        [("category_0", "==", 3)],
        [("category_0", "!=", 3)],
        [("category_0", "in", [2, 4]), ("numeric_0", ">", 0.5)],
        [("row_id", "in", {5, 77, 200})],
        [("category_0", "not in", (2, 4))],
        [("text", "in", ["row 7", "row 8"])],
        [("text", "==", "row 9")],
        [("row_id", ">=", 0)],
    ],
)
def test_a_stream_has_the_rows_that_satisfy_a_condition(dataset: Dataset, where: Any) -> None:
    stored = dataset.to_arrow("train")
    wanted = np.ones(len(stored), bool)
    for name, operation, value in where:
        values = stored[name].to_pylist()
        given = sorted(value) if isinstance(value, set) else value
        terms = {"in": lambda v, w: v in w, "not in": lambda v, w: v not in w, "==": lambda v, w: v == w}
        terms |= {"!=": lambda v, w: v != w, "<": lambda v, w: v < w, "<=": lambda v, w: v <= w}
        terms |= {">": lambda v, w: v > w, ">=": lambda v, w: v >= w}
        wanted &= np.array([terms[operation](v, given) for v in values])
    expected = stored["row_id"].to_numpy()[wanted].tolist()
    for shuffle in (True, False):
        options: Any = {"where": where, "tail": "mask", "shuffle": shuffle}
        alone = ids(dataset.stream("train", 16, **options))
        assert sorted(alone) == expected
        for size in (2, 3, 7):
            streams = [
                dataset.stream("train", 16, world=World(rank, size), **options) for rank in range(size)
            ]
            assert len({stream.steps_per_epoch for stream in streams}) == 1
            assert sorted(row for stream in streams for row in ids(stream)) == expected


def test_a_condition_makes_another_stream(dataset: Dataset) -> None:
    state = dataset.stream("train", 8, where=[("row_id", "<", 100)]).state_dict()
    dataset.stream("train", 8, where=[("row_id", "<", 100)]).load_state_dict(state)
    with pytest.raises(StreamStateMismatch, match="where"):
        dataset.stream("train", 8, where=[("row_id", "<", 101)]).load_state_dict(state)


def test_row_groups_that_the_footer_decides_are_not_read(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    read_table = RowGroupReader.read_table
    monkeypatch.setattr(
        RowGroupReader, "read_table", lambda self, group: (read.append(group), read_table(self, group))[1]
    )
    dataset.stream("train", 8, where=[("row_id", "<", 100)])
    # rows 0 to 83 are in three row groups, row 84 is alone, the next has 85 to 148
    assert read == [4]


@pytest.mark.parametrize(
    ("where", "error", "said"),
    [
        ([("rowid", "<", 1)], NameUnknown, "no column `rowid`.*Did you mean `row_id`"),
        ([("row_id", "=", 1)], ConfigError, r"where has \('row_id', '=', 1\); give .* one of ==, !=, <"),
        (["row_id"], ConfigError, "where has 'row_id'; give"),
        (("row_id", "<", 3), ConfigError, r"give \[\(column, operator, value\)\]"),
        ([("row_id", [1], 3)], ConfigError, "with one of"),
        ([("row_id", "<", "1")], ConfigError, "`row_id` is int64: compare it with numbers"),
        ([("text", "==", 1)], ConfigError, "`text` is string: compare it with text"),
        ([("text", "in", "row 1")], ConfigError, "after `in` comes a list of values"),
        ([("vector", "==", 1)], ConfigError, "`vector` holds vectors"),
        ([("row_id", "<", -1)], TooFewRows, "has 0 rows"),
    ],
)
def test_conditions_that_make_no_sense_are_refused(
    dataset: Dataset, where: Any, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        dataset.stream("train", 8, where=where)


def test_numbers_mean_the_same_whatever_the_layout_and_the_footers_tell(tmp_path: Path) -> None:
    """0.1 is the float32 next to it; NaN, which footers leave out, is neither large nor small."""
    for layout in ("columns", "blocks"):
        made = write_tiny_dataset(tmp_path / layout, [[50, 50]], layout=layout)  # type: ignore[arg-type]
        names = [column.name for column in made.manifest.columns]
        values = {name: made.to_arrow("train")[name].to_numpy().copy() for name in names}
        values["numeric_0"][:] = 0.1
        values["numeric_1"][10:20] = np.nan
        path = made.path / made.manifest.splits["train"].parts[0].path
        table = pack(values, made.manifest.columns, made.manifest.layout)
        with pq.ParquetWriter(path, table.schema) as writer:
            for start in (0, 50):
                writer.write_table(table.slice(start, 50))
        old = made.manifest.splits["train"].parts[0].size_bytes
        text = made.manifest.to_json().replace(f": {old}", f": {path.stat().st_size}")
        (made.path / "manifest.json").write_text(text)
        dataset = open_dataset(made.path)
        for term, rows in (
            (("numeric_0", "==", 0.1), 100),
            (("numeric_0", "<=", 0.1), 100),
            (("numeric_0", "in", [0.1]), 100),
            (("numeric_1", ">=", -100.0), 90),
            (("numeric_1", "<", 100.0), 90),
        ):
            assert len(ids(dataset.stream("train", 10, num_lanes=1, where=[term]))) == rows
        with pytest.raises(TooFewRows, match="has 0 rows"):
            dataset.stream("train", 10, num_lanes=1, where=[("numeric_0", ">", 0.1)])


def test_the_order_of_a_list_of_values_means_nothing(dataset: Dataset) -> None:
    state = dataset.stream("train", 8, where=[("category_0", "in", [2, 3])]).state_dict()
    dataset.stream("train", 8, where=[("category_0", "in", [np.int64(3), 2])]).load_state_dict(state)


def test_nothing_is_read_without_a_condition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = write_tiny_dataset(tmp_path / "tiny", 100)
    monkeypatch.setattr(RowGroupReader, "read_table", lambda *_: pytest.fail("a row group was read"))
    assert dataset.stream("train", 8, where=[]).steps_per_epoch == 12
