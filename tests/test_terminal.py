"""What the terminal says about a dataset."""

from __future__ import annotations

from contextlib import suppress
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from sparktrain.dataset import Dataset
from sparktrain.dataset.card import write_card
from sparktrain.dataset.drift import ColumnDrift
from sparktrain.dataset.statistics import ColumnStatistics, Statistics
from sparktrain.terminal import TrainingProgress, dataset_table, drift_table, training_table
from sparktrain.testing import write_tiny_dataset


def text_of(table: Table) -> str:
    file = StringIO()
    Console(file=file, width=300).print(table)
    return file.getvalue()


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return write_tiny_dataset(tmp_path / "tiny", 1000, test_rows=100)


def columns_with_nulls(*nulls: int) -> Statistics:
    columns = tuple(
        ColumnStatistics(column=f"c{i}", input_type="double", rows=1000, nulls=n) for i, n in enumerate(nulls)
    )
    return Statistics(columns=columns, codes={}, targets=())


def test_a_dataset_without_a_card_has_its_rows_and_fingerprint(dataset: Dataset) -> None:
    text = text_of(dataset_table(dataset))
    assert "1,100" in text and dataset.fingerprint in text
    assert "card" not in text and "nulls" not in text and "drift" not in text


def test_the_columns_that_are_most_often_null_are_named(dataset: Dataset) -> None:
    counted = columns_with_nulls(0, 10, 500, 30, 40, 50, 60)
    write_card(dataset.path, dataset.manifest, dataset.features, counted)
    text = text_of(dataset_table(dataset))
    assert text.index("`c2`") < text.index("`c6`") < text.index("`c5`")
    assert "50.00%" in text and "`c3`" in text and "`c1`" not in text and "`c0`" not in text
    assert str(dataset.path / "card.html") in text
    write_card(dataset.path, dataset.manifest, dataset.features, columns_with_nulls(0, 0))
    assert "nulls" not in text_of(dataset_table(dataset))


def test_columns_that_drifted_are_named_and_no_name_is_taken_for_markup(dataset: Dataset) -> None:
    psis = np.linspace(0.9, 0.01, 10)
    drift = [ColumnDrift(column=f"[red]{i}", psi=psi, null_rate=(0, 0)) for i, psi in enumerate(psis)]
    write_card(dataset.path, dataset.manifest, dataset.features, columns_with_nulls(0), drift)
    text = text_of(dataset_table(dataset))
    assert "drift of `[red]0`" in text and "PSI 0.90, a large change" in text
    assert "`[red]4`" in text and "`[red]5`" not in text and "and 4 more columns" in text


def test_the_drift_table_tells_before_and_after() -> None:
    moved = ColumnDrift(
        column="a[b]", psi=0.2, null_rate=(0.1, 0.25), unknown_rate=(0.5, 0.5), mean=(1234.5, -2)
    )
    text = text_of(drift_table([moved, ColumnDrift(column="still", psi=0, null_rate=(0, 0))]))
    for expected in ("a[b]", "0.200", "moderate", "10.00% → 25.00%", "50.00%", "1,234 → -2", "little"):
        assert expected in text


def test_a_checkpoint_that_could_not_be_written_is_told_while_training_goes_on() -> None:
    file = StringIO()
    problem = "The checkpoint out/step-5 could not be written:\n  - rank 1: No space left on device [7 bytes]"
    with TrainingProgress(Console(file=file, width=200)) as progress:
        progress({"kind": "checkpoint_failed", "step": 5, "problem": problem})
    assert problem in file.getvalue()


def test_the_bar_tells_a_metric_of_any_target_within_eighty_columns() -> None:
    file = StringIO()
    with TrainingProgress(Console(file=file, width=80)) as progress:
        progress({"kind": "phase", "name": "training"})
        progress({"kind": "progress", "step": 1200, "num_steps": 2400})
        progress({"kind": "metrics", "values": {"train/loss": 0.4321, "train/rows_per_second": 123456.0}})
        progress({"kind": "metrics", "values": {"validation/loss": 0.4, "validation/r2": 0.25}})
    assert "loss 0.4321  rows/s 123,456  r2 0.2500" in file.getvalue()


def _bar_after(step: int, error: type[BaseException] | None = None) -> str:
    file = StringIO()
    with suppress(KeyboardInterrupt), TrainingProgress(Console(file=file, width=80)) as progress:
        progress({"kind": "phase", "name": "test"})
        progress({"kind": "progress", "step": step, "num_steps": 1200})
        if error is not None:
            raise error
    return " ".join(file.getvalue().split())


def test_a_training_that_stopped_early_says_so_and_has_a_full_bar() -> None:
    text = _bar_after(1150)
    assert "test ━━━━━━━━━━━━━━━━━━━━ 1150/1150" in text
    assert text.endswith("stopped early, at step 1,150 of 1,200")


def test_of_a_training_that_made_its_steps_or_was_interrupted_no_early_stop_is_told() -> None:
    assert "1200/1200" in (whole := _bar_after(1200)) and "early" not in whole
    assert "1150/1200" in (broken := _bar_after(1150, KeyboardInterrupt)) and "early" not in broken


def test_a_model_without_a_reference_has_no_column_for_it() -> None:
    metrics = {"test/r2": 0.75, "validation/r2": 0.5}
    text = text_of(training_table({"metrics": metrics}))
    assert "model, test" in text and "model, validation" in text and "reference" not in text
    assert text.index("0.7500") < text.index("0.5000")
    text = text_of(training_table({"metrics": {**metrics, "reference/r2": 0.25}}))
    assert text.index("0.7500") < text.index("0.2500") < text.index("0.5000") and "reference, test" in text
