from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sparktrain.dataset import Dataset
from sparktrain.features import FittedCategorical, FittedFeatures, FittedNumeric, FittedTarget, FittedWeight
from sparktrain.runs.reference import logistic_regression_reference
from sparktrain.testing import write_tiny_dataset


@dataclass(frozen=True)
class InMemory:
    """The two members of a dataset that the reference needs."""

    features: FittedFeatures
    tables: dict[str, pa.Table]

    def to_arrow(self, split: str, columns: list[str]) -> pa.Table:
        return self.tables[split].select(columns)


def made_up(train_rows: int, num_codes: int, seed: int = 0) -> InMemory:
    names = [f"number_{i}" for i in range(10)]
    features = FittedFeatures(
        features=(
            *(FittedNumeric(name=n, column=n, input_type="double", fill=0) for n in names),
            *(
                FittedCategorical(
                    name=name,
                    column=name,
                    input_type="string",
                    vocabulary=tuple(map(str, range(num_codes - 2))),
                )
                for name in ("a", "b")
            ),
        ),
        targets=(FittedTarget(name="late", column="late", kind="binary", input_type="boolean"),),
    )
    random = np.random.default_rng(seed)
    effect = random.normal(0, 1.0, num_codes)

    def table(rows: int) -> pa.Table:
        numbers = {name: random.normal(0, 1, rows).astype(np.float32) for name in names}
        codes = {name: random.integers(0, num_codes, rows, dtype=np.int32) for name in ("a", "b")}
        logit = 0.5 * numbers["number_0"] + effect[codes["a"]] - 1
        late = (random.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.float32)
        return pa.table({**numbers, **codes, "late": late})

    return InMemory(features, {"train": table(train_rows), "test": table(train_rows // 5)})


def test_the_reference_learns_numbers_and_categories() -> None:
    found = logistic_regression_reference(made_up(20_000, 20))  # type: ignore[arg-type]
    assert 0.70 < found["auroc"] < 0.85
    assert found["average_precision"] > 0.4
    assert 0.4 < found["log_loss"] < 0.65


def test_it_reads_a_real_dataset(dataset: Dataset) -> None:
    assert logistic_regression_reference(dataset)["auroc"] > 0.6


def test_rows_beyond_the_limit_are_thinned_out() -> None:
    data = made_up(20_000, 20)
    full, thin = logistic_regression_reference(data), logistic_regression_reference(data, max_rows=4000)  # type: ignore[arg-type]
    assert full["auroc"] != thin["auroc"]
    assert abs(full["auroc"] - thin["auroc"]) < 0.03


def test_one_class_gives_no_reference(caplog: pytest.LogCaptureFixture) -> None:
    data = made_up(1000, 5)
    only_late = data.tables["train"].filter(pa.compute.field("late") == 1)
    assert logistic_regression_reference(InMemory(data.features, data.tables | {"train": only_late})) == {}  # type: ignore[arg-type]
    assert "one class" in caplog.text


def test_weights_count_in_the_fit_and_in_the_loss() -> None:
    """The loss beside the model's, which is weighted: rows of weight 0 might as well not be there."""
    data = made_up(4000, 5)
    random = np.random.default_rng(1)

    def weighted(table: pa.Table, weights: np.ndarray) -> pa.Table:
        return table.append_column("weight", pa.array(weights.astype(np.float32)))

    keep = {split: random.random(table.num_rows) < 0.5 for split, table in data.tables.items()}
    weight = FittedWeight(name="weight", column="weight", input_type="double")
    features = data.features.model_copy(update={"weight": weight})
    doubled = InMemory(features, {s: weighted(t, 2 * keep[s]) for s, t in data.tables.items()})
    thinned = InMemory(
        features, {s: weighted(t.filter(keep[s]), 2 * np.ones(keep[s].sum())) for s, t in data.tables.items()}
    )
    found, expected = logistic_regression_reference(doubled), logistic_regression_reference(thinned)  # type: ignore[arg-type]
    assert found["log_loss"] == pytest.approx(expected["log_loss"], rel=1e-4)
    plain = logistic_regression_reference(data)  # type: ignore[arg-type]
    assert found["log_loss"] != pytest.approx(plain["log_loss"], rel=1e-3)


def test_no_number_and_no_code_gives_no_reference(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shaped = write_tiny_dataset(tmp_path / "shaped", num_numeric=0, num_categorical=0, vector_shape=(2,))
    assert logistic_regression_reference(shaped) == {}
    assert "no feature is one number" in caplog.text


@pytest.mark.slow
def test_a_quarter_of_a_million_rows_take_seconds() -> None:
    data = made_up(262_000, 100)
    start = time.monotonic()
    found = logistic_regression_reference(data)  # type: ignore[arg-type]
    assert time.monotonic() - start < 40
    assert found["auroc"] > 0.70
