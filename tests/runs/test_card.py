"""The dataset's card goes along with the run."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest

from sparktrain.dataset import Dataset
from sparktrain.dataset.card import write_card
from sparktrain.dataset.statistics import ColumnStatistics, Statistics
from sparktrain.runs.publish import log_card
from sparktrain.runs.tracking import Tracker
from sparktrain.testing import write_tiny_dataset
from tests.fixtures.tiny_model import new_run, tiny_config


@pytest.fixture
def carded(tmp_path: Path) -> Dataset:
    dataset = write_tiny_dataset(tmp_path / "carded", 100)
    column = ColumnStatistics(column="numeric_0", input_type="double", rows=100, nulls=7)
    statistics = Statistics(columns=(column,), codes={}, targets=())
    write_card(dataset.path, dataset.manifest, dataset.features, statistics)
    return dataset


def test_the_card_is_stored_with_the_run(root: Path, carded: Dataset) -> None:
    tracker = Tracker.start(new_run(root), tiny_config(root), carded)
    log_card(tracker, carded)
    stored = tracker.client.list_artifacts(tracker.run_id, "dataset")
    assert [file.path for file in stored] == ["dataset/card.html", "dataset/card.json"]
    uri = tracker.client.get_run(tracker.run_id).info.artifact_uri
    for name in ("card.html", "card.json"):
        text = mlflow.artifacts.load_text(f"{uri}/dataset/{name}")
        assert text == (carded.path / name).read_text(encoding="utf-8") and "numeric_0" in text


def test_a_dataset_without_a_card_leaves_nothing(root: Path, dataset: Dataset) -> None:
    tracker = Tracker.start(new_run(root), tiny_config(root), dataset)
    log_card(tracker, dataset)
    assert tracker.client.list_artifacts(tracker.run_id, "dataset") == []
