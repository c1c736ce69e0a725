"""The look at the rows: partial ones add up to the whole, however the rows are cut. No Spark runs."""

from __future__ import annotations

from functools import reduce
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparktrain.estimator import inputs, look
from sparktrain.estimator.look import Look, Spread, _look_at_batch

KIND = pa.struct(
    {"type": pa.int8(), "size": pa.int32(), "indices": pa.list_(pa.int32()), "values": pa.list_(pa.float64())}
)


def batch(number: int = 40) -> pa.RecordBatch:
    random = np.random.default_rng(3)
    vectors: list[dict[str, Any] | None] = []
    for row in range(number):
        if row % 11 == 5:
            vectors.append(None)
        elif row % 2:
            vectors.append({"type": 0, "size": 2, "indices": [1], "values": [float(row)]})
        else:
            vectors.append({"type": 1, "size": None, "indices": None, "values": [1e6 + random.normal(), 2.0]})
    return pa.RecordBatch.from_pydict(
        {
            "label": [None if row == 7 else float(row % 4) / (2 if row == 9 else 1) for row in range(number)],
            "valid": [vector is not None for vector in vectors],
            "train": [row % 3 > 0 for row in range(number)],
            "weight": [None if row == 8 else -1.0 if row == 10 else 2.0 for row in range(number)],
            "vector": pa.array(vectors, KIND),
        }
    )


@given(st.lists(st.integers(0, 40), max_size=5))
def test_a_look_at_pieces_adds_up_to_a_look_at_the_whole(cuts: list[int]) -> None:
    rows = batch()
    borders = sorted({0, 40, *cuts})
    pieces = [rows.slice(a, b - a) for a, b in pairwise(borders)]
    looks = [Look.from_json(_look_at_batch(piece, ["vector"]).to_json()) for piece in pieces]
    found, whole = reduce(Look.__add__, looks, Look()), _look_at_batch(rows, ["vector"])
    assert (found.num_rows, found.num_invalid, found.num_unlabelled) == (40, 4, 1)
    assert (found.num_fractions, found.num_training) == (1, whole.num_training)
    assert found.num_unweighted == 2
    assert (found.lowest, found.highest, found.sizes) == (0.0, 3.0, {"0": (2, 2)})
    for spread, expected in ((found.label, whole.label), (found.vectors["0"], whole.vectors["0"])):
        assert spread.count == expected.count
        np.testing.assert_allclose(spread.mean, expected.mean, rtol=1e-12)
        np.testing.assert_allclose(spread.deviation, expected.deviation, rtol=1e-9)


def test_the_spread_is_numpys_and_zero_where_nothing_varies() -> None:
    rows = np.array([[1.0, 5.0, 1e9], [2.0, 5.0, 1e9 + 1], [4.0, 5.0, 1e9 + 2]])
    spread = Spread.of(rows[:1]) + Spread.of(rows[1:]) + Spread.of(rows[:0])
    np.testing.assert_allclose(spread.mean, rows.mean(axis=0))
    np.testing.assert_allclose(spread.deviation, [rows[:, 0].std(), 0.0, rows[:, 2].std()])


def test_vectors_of_several_sizes_are_seen() -> None:
    vectors = [{"type": 1, "size": None, "indices": None, "values": [1.0] * n} for n in (2, 3)]
    columns = {
        "l": [1.0, 1.0],
        "v": [True] * 2,
        "t": [True] * 2,
        "w": [1.0] * 2,
        "x": pa.array(vectors, KIND),
    }
    assert _look_at_batch(pa.RecordBatch.from_pydict(columns), ["vector"]).sizes == {"0": (2, 3)}


def test_labels_and_weights_that_no_float32_holds_are_counted() -> None:
    labels = [None, float("nan"), float("inf"), 1e39, -1e39, 3e38]
    weights = [0.0, float("nan"), float("inf"), 1e39, -0.5, None]
    columns = {"l": labels, "v": [True] * 6, "t": [True] * 6, "w": weights}
    found = _look_at_batch(pa.RecordBatch.from_pydict(columns), [])
    assert (found.num_unlabelled, found.num_unweighted) == (5, 5)
    assert (found.highest, found.label.count) == (3e38, 1)


def test_an_invalid_row_of_another_length_leaves_the_others_alone() -> None:
    arrays = pa.array([[1.0, 2.0], [9.0], None, [3.0, 6.0]], pa.list_(pa.float64()))
    valid = [True, False, False, True]
    columns = {"l": [1.0] * 4, "v": valid, "t": [True] * 4, "w": [1.0] * 4, "x": arrays}
    spread = _look_at_batch(pa.RecordBatch.from_pydict(columns), ["array"]).vectors["0"]
    assert (spread.count, spread.mean.tolist()) == (2, [2.0, 4.0])


def test_wide_vectors_are_made_dense_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, sizes, original = batch(), list[int](), look.rows_of
    whole = _look_at_batch(rows, ["vector"]).vectors["0"]

    def rows_of(column: pa.Array, shape: str, size: int) -> Any:
        sizes.append(len(column))
        return original(column, shape, size)

    monkeypatch.setattr(inputs, "_MOST_NUMBERS", 10)
    monkeypatch.setattr(look, "rows_of", rows_of)
    found = _look_at_batch(rows, ["vector"]).vectors["0"]
    assert len(sizes) > 2 and max(sizes) == 5
    np.testing.assert_allclose(found.mean, whole.mean, rtol=1e-12)
