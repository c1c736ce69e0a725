"""Evaluation: every row once over all ranks, metrics as if one process had seen all of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, average_precision_score, log_loss, roc_auc_score

from sparktrain.dataset import open_dataset
from sparktrain.testing import run_ranks, write_tiny_dataset
from sparktrain.training.evaluate import Evaluation, evaluate
from sparktrain.world import World
from tests.fixtures.tiny_task import TinyTask

GLOBAL_BATCH_SIZE, NUM_LANES = 32, 4


def evaluate_rank(path: Path) -> Evaluation:
    dataset, task = open_dataset(path), TinyTask()
    torch.manual_seed(0)
    model = task.build_model(dataset.features)
    world = World.from_environment()
    return evaluate(model, task, dataset, "validation", GLOBAL_BATCH_SIZE, NUM_LANES, world)


def assert_is_exact(found: list[Evaluation], path: Path) -> None:
    """Hold the metrics against scikit-learn's, over the rows that the ranks name."""
    row_id, prediction, target = (
        np.concatenate([getattr(evaluation, name) for evaluation in found])
        for name in ("row_id", "prediction", "target")
    )
    stored = open_dataset(path).to_arrow("validation", ["row_id", "label"])
    assert sorted(row_id.tolist()) == sorted(stored["row_id"].to_pylist()), "a row is missing or twice"
    labels = dict(zip(stored["row_id"].to_pylist(), stored["label"].to_pylist(), strict=True))
    assert [labels[row] for row in row_id.tolist()] == target.tolist()
    expected = {
        "auroc": roc_auc_score(target, prediction),
        "average_precision": average_precision_score(target, prediction),
        "accuracy": accuracy_score(target, prediction > 0.5),
        "loss": log_loss(target, prediction.astype(np.float64)),
    }
    for evaluation in found:
        assert evaluation.metrics == pytest.approx(expected, abs=2e-6)
        assert evaluation.metrics == found[0].metrics, "ranks disagree"


@pytest.mark.ranks
@pytest.mark.parametrize("num_ranks", [1, 2, 3])
@pytest.mark.parametrize("rows", [7, 32, 100, 333])
def test_metrics_are_exact_at_any_number_of_ranks(tmp_path: Path, num_ranks: int, rows: int) -> None:
    dataset = write_tiny_dataset(tmp_path / "tiny", 64, validation_rows=rows, rows_per_row_group=16)
    assert_is_exact(run_ranks(num_ranks, evaluate_rank, dataset.path), dataset.path)


@pytest.mark.parametrize("value", [0, 1])
def test_what_rows_of_one_class_do_not_tell_is_not_a_number(value: int) -> None:
    for name, metric in TinyTask().metrics().items():
        metric.update(torch.tensor([0.2, 0.7]), torch.tensor([value, value]))
        assert torch.isnan(metric.compute()) == (name in ("auroc", "average_precision"))
        metric.update(torch.tensor([0.9]), torch.tensor([1 - value]))
        assert not torch.isnan(metric.compute())


@pytest.mark.ranks
def test_a_rank_without_any_row_takes_part(tmp_path: Path) -> None:
    dataset = write_tiny_dataset(tmp_path / "tiny", 64, validation_rows=9, num_parts=1)
    found = run_ranks(3, evaluate_one_lane, dataset.path)
    assert [len(evaluation.row_id) for evaluation in found] == [9, 0, 0]
    assert_is_exact(found, dataset.path)
    for evaluation in found:
        columns = (evaluation.row_id, evaluation.prediction, evaluation.target)
        assert [column.dtype for column in columns] == [np.int64, np.float32, np.float32]


def evaluate_one_lane(path: Path) -> Evaluation:
    dataset, task = open_dataset(path), TinyTask()
    torch.manual_seed(0)
    model = task.build_model(dataset.features)
    return evaluate(model, task, dataset, "validation", 32, 1, World.from_environment())


def test_evaluating_leaves_the_model_in_training_mode_and_its_weights_alone(tmp_path: Path) -> None:
    dataset, task = write_tiny_dataset(tmp_path / "tiny", 64, validation_rows=50), TinyTask(dropout=0.5)
    model = task.build_model(dataset.features)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first, second = (evaluate(model, task, dataset, "validation", 32, 4, World()) for _ in range(2))
    assert model.training
    assert first.metrics == second.metrics, "dropout was on"
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
