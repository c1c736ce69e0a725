"""Conditions on rows: the rows that satisfy them, once each, at any world size, and none of the others."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparktrain.dataset import Dataset, Stream
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


def test_nothing_is_read_without_a_condition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = write_tiny_dataset(tmp_path / "tiny", 100)
    monkeypatch.setattr(RowGroupReader, "read_table", lambda *_: pytest.fail("a row group was read"))
    assert dataset.stream("train", 8, where=[]).steps_per_epoch == 12
