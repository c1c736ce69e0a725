"""What a Python worker makes of inputs that are no numbers and of a model that gives none. No Spark runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from sparktrain.errors import ModelUnusable, RowsInvalid
from sparktrain.estimator import inputs, worker
from sparktrain.estimator.inputs import Input, raw_rows
from sparktrain.estimator.worker import Job, score_batches
from sparktrain.scoring.model import Piece
from sparktrain.scoring.packed import PackedModel

NOTHING: Any = PackedModel("none", b"")


@dataclass
class Echo:
    """A model that gives the column x as the number, or as the probability of class 1."""

    features: Any

    def outputs(self, rows: pa.Table, errors: dict[int, str], batch_rows: int) -> Iterator[Piece]:
        given = torch.tensor(rows.column("x").to_numpy().copy())
        yield Piece(np.arange(rows.num_rows), None, given)


@pytest.fixture(autouse=True)
def echo(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Echo(SimpleNamespace(target=SimpleNamespace(kind="binary")))
    monkeypatch.setattr(worker, "loaded_model", lambda packed: model)


def job(handling: str, num_classes: int) -> Job:
    columns = ("rawPrediction", "probability", "prediction") if num_classes else ("prediction",)
    return Job(NOTHING, (Input("x", "plain", "double"),), ("x",), num_classes, columns, handling)


def rows(values: list[float]) -> pa.RecordBatch:
    names = ["id", "id", "x", "valid"]  # two of the user's own have one name
    count = len(values)
    columns = [
        pa.array(range(count)),
        pa.array([7] * count),
        pa.array(values, pa.float64()),
        pa.array([True] * count),
    ]
    return pa.RecordBatch.from_arrays(columns, names=names)


@pytest.mark.parametrize("handling", ["keep", "skip"])
def test_what_the_model_gives_no_number_for_is_null_and_stays(handling: str) -> None:
    [classes] = score_batches(job(handling, 2), [rows([0.25, float("nan"), 0.75])])
    assert [column.null_count for column in classes.columns[-3:]] == [1, 1, 1]
    assert classes.column(classes.num_columns - 1).to_pylist() == [0.0, None, 1.0]
    [numbers] = score_batches(job(handling, 0), [rows([1.5, float("inf"), -2.0])])
    assert numbers.column(3).to_pylist() == [1.5, None, -2.0]


@pytest.mark.parametrize("num_classes", [0, 2])
def test_a_model_that_gives_no_number_is_told_of_under_error(num_classes: int) -> None:
    with pytest.raises(ModelUnusable, match="NaN or infinity for 1 of 3 rows that are valid"):
        list(score_batches(job("error", num_classes), [rows([0.25, float("nan"), 0.75])]))


def test_invalid_rows_are_told_of_under_error() -> None:
    batch = rows([0.25])
    columns = [*batch.columns[:3], pa.array([False])]
    batch = pa.RecordBatch.from_arrays(columns, names=[*batch.schema.names[:3], "valid"])
    with pytest.raises(RowsInvalid, match="A row has a null, a NaN or an infinity, in one of: x"):
        list(score_batches(job("error", 0), [batch]))


def test_wide_batches_are_cut_and_keep_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "_MOST_NUMBERS", 2)
    wide = Job(NOTHING, (Input("x", "plain", "double", 1),), ("x",), 0, ("prediction",), "keep")
    found = list(score_batches(wide, [rows([1.0, 2.0, 3.0]), rows([]), rows([4.0])]))
    assert [batch.num_rows for batch in found] == [2, 1, 0, 1]
    assert [x for batch in found for x in batch.column(3).to_pylist()] == [1.0, 2.0, 3.0, 4.0]


def test_an_index_that_is_no_number_is_null() -> None:
    batch = pa.RecordBatch.from_pydict({"c": [2.0, float("nan"), float("inf"), -float("inf"), None, 1e300]})
    made = raw_rows(batch, [Input("c", "index", "double")], ["c"], {})
    assert made.column("c").to_pylist() == [2, None, None, None, None, None]
