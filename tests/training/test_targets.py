"""Targets of every kind, several of them, and rows that count for more than others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, mean_absolute_error, r2_score, roc_auc_score
from sklearn.metrics import root_mean_squared_error as rmse
from torch import Tensor, nn
from torchmetrics import Metric

from sparktrain.dataset import open_dataset
from sparktrain.errors import LossNotByRow, StepFailed
from sparktrain.features import FittedFeatures
from sparktrain.testing import TargetKind, run_ranks, write_tiny_dataset
from sparktrain.training.evaluate import Evaluation, evaluate
from sparktrain.training.loop import Loop
from sparktrain.training.task import R2, Accuracy, Batch, MacroAUROC, TrainTask
from sparktrain.world import World
from tests.fixtures.tiny_task import (
    TINY_CONFIG,
    TinyModel,
    TinyMulticlass,
    TinyRegression,
    TinyTask,
    metric_curve,
    train_here,
)

TASKS: dict[TargetKind, Any] = {
    "binary": TinyTask,
    "multiclass": TinyMulticlass,
    "regression": TinyRegression,
}
ROWS = 32  # of the train split and of a step: one step sees each row once


def first_step(path: Path, kind: TargetKind, directory: Path) -> tuple[Batch, dict[str, Tensor]]:
    """This rank's rows of the first step, and the gradients that it takes."""
    config = TINY_CONFIG.model_copy(update={"clip_gradient_norm": None, "global_batch_size": ROWS})
    loop = Loop(
        TASKS[kind](), open_dataset(path), config, World.from_environment(), directory, lambda _: None
    )
    batch = next(iter(loop.stream))
    loop.updates.make(batch, 1)
    return batch, {name: weight.grad for name, weight in loop.model.named_parameters()}


def repeated(batch: Batch) -> Batch:
    """The batch with each row as often as its weight says, in units of the smallest."""
    times = (batch["weight"] * 1.5).round().long()
    return {name: column.repeat_interleave(times, dim=0) for name, column in batch.items()}


@pytest.mark.ranks
@pytest.mark.parametrize("kind", TASKS)
def test_a_weight_acts_as_repeating_the_row_would(tmp_path: Path, kind: TargetKind) -> None:
    path = write_tiny_dataset(tmp_path / "tiny", ROWS, target_kinds=[kind], weight=True).path
    ((batch, alone),) = run_ranks(1, first_step, path, kind, tmp_path)
    together = run_ranks(2, first_step, path, kind, tmp_path)
    assert sorted(batch["weight"].unique().tolist()) == pytest.approx([0, 2 / 3, 4 / 3, 2])
    task, rows = TASKS[kind](), repeated(batch)
    assert len(rows["row_id"]) == ROWS / 4 * (0 + 1 + 2 + 3)
    torch.manual_seed(TINY_CONFIG.seed)
    model = task.build_model(open_dataset(path).features)
    task.loss(model(rows), rows["label"]).mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 1e-4
        for gradients in (alone, *(gradients for _, gradients in together)):
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=0, atol=1e-6)


def evaluate_rank(path: Path, kind: TargetKind, num_lanes: int) -> Evaluation:
    dataset, task = open_dataset(path), TASKS[kind]()
    torch.manual_seed(0)
    model = task.build_model(dataset.features)
    return evaluate(model, task, dataset, "validation", ROWS, num_lanes, World.from_environment())


def joined(found: Sequence[Evaluation]) -> tuple[np.ndarray, ...]:
    columns = ("row_id", "prediction", "target")
    return tuple(np.concatenate([getattr(evaluation, name) for evaluation in found]) for name in columns)


def losses_of(kind: TargetKind, prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
    """What each row's loss is, from its prediction."""
    wide = prediction.astype(np.float64)
    if kind == "regression":
        return (wide - target) ** 2
    if kind == "multiclass":
        return -np.log(wide[np.arange(len(target)), target])
    return -np.log(np.where(target == 1, wide, 1 - wide))


@pytest.mark.ranks
@pytest.mark.parametrize("num_ranks", [1, 3])
@pytest.mark.parametrize("kind", TASKS)
def test_the_evaluations_loss_is_weighted_and_its_metrics_are_not(
    tmp_path: Path, kind: TargetKind, num_ranks: int
) -> None:
    # 30 rows: three ranks get an unequal number of each weight, and padding
    path = write_tiny_dataset(
        tmp_path / "tiny", 64, validation_rows=30, target_kinds=[kind], weight=True
    ).path
    found = run_ranks(num_ranks, evaluate_rank, path, kind, 4)
    row_id, prediction, target = joined(found)
    assert sorted(row_id) == list(range(64, 94))
    losses = losses_of(kind, prediction, target)
    weighted = np.average(losses, weights=row_id % 4)
    assert abs(weighted - losses.mean()) > 1e-3, "the weights were to matter"
    for evaluation in found:
        assert evaluation.metrics["loss"] == pytest.approx(weighted, rel=1e-5)
        if kind == "multiclass":
            assert evaluation.metrics["accuracy"] == pytest.approx(
                accuracy_score(target, prediction.argmax(1)), rel=1e-6
            )
        elif kind == "regression":
            assert evaluation.metrics["mae"] == pytest.approx(
                mean_absolute_error(target, prediction), rel=1e-5
            )
        else:
            assert evaluation.metrics["auroc"] == pytest.approx(roc_auc_score(target, prediction), rel=1e-5)


def expected_metrics(kind: TargetKind, prediction: np.ndarray, target: np.ndarray) -> dict[str, float]:
    if kind == "regression":
        return {
            "r2": r2_score(target, prediction),
            "rmse": rmse(target, prediction),
            "mae": mean_absolute_error(target, prediction),
        }
    return {
        "auroc": roc_auc_score(target, prediction / prediction.sum(1, keepdims=True), multi_class="ovr"),
        "accuracy": accuracy_score(target, prediction.argmax(1)),
    }


@pytest.mark.ranks
@pytest.mark.parametrize("num_lanes", [1, 4], ids=["ranks_without_rows", "rows_everywhere"])
@pytest.mark.parametrize("kind", ["multiclass", "regression"])
def test_metrics_are_exact_over_ranks(tmp_path: Path, kind: TargetKind, num_lanes: int) -> None:
    path = write_tiny_dataset(
        tmp_path / "tiny", 64, validation_rows=9, num_parts=1, target_kinds=[kind], seed=1
    ).path
    found = run_ranks(3, evaluate_rank, path, kind, num_lanes)
    if num_lanes == 1:
        assert [len(evaluation.row_id) for evaluation in found] == [9, 0, 0]
    row_id, prediction, target = joined(found)
    stored = open_dataset(path).to_arrow("validation", ["row_id", "label"]).to_pydict()
    assert dict(zip(row_id, target, strict=True)) == dict(zip(*stored.values(), strict=True))
    assert target.dtype == (np.int64 if kind == "multiclass" else np.float32)
    expected = expected_metrics(kind, prediction, target)
    for evaluation in found:
        assert {k: v for k, v in evaluation.metrics.items() if k != "loss"} == pytest.approx(
            expected, rel=1e-5
        )


@pytest.mark.parametrize(
    ("kind", "metric", "at_least"), [("multiclass", "accuracy", 0.7), ("regression", "r2", 0.8)]
)
def test_each_kind_learns(tmp_path: Path, kind: TargetKind, metric: str, at_least: float) -> None:
    dataset = write_tiny_dataset(
        tmp_path / "tiny", 650, validation_rows=50, test_rows=100, target_kinds=[kind], weight=True
    )
    config = TINY_CONFIG.model_copy(update={"epochs": 8, "best_metric": metric})
    found = train_here(TASKS[kind](), dataset, config, tmp_path / "run")
    losses = list(metric_curve(found["events"], "train/loss").values())
    assert losses[-1] < 0.5 * losses[0]
    assert found["metrics"][f"test/{metric}"] > at_least
    assert len(found["test"].prediction) == 100


class Both(nn.Module):
    """A number for each of two targets."""

    def __init__(self, features: FittedFeatures) -> None:
        super().__init__()
        self.network = TinyModel(features, 8, 0.0, outputs=2)

    @property
    def seen(self) -> list[list[int]]:
        return self.network.seen

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return dict(zip(("label", "label_1"), self.network(batch).unbind(1), strict=True))


class Errors(R2):
    """R2 of the second target."""

    def update(self, prediction: dict[str, Tensor], target: dict[str, Tensor]) -> None:
        assert {name: column.dtype for name, column in target.items()} == {
            "label": torch.int64,
            "label_1": torch.float32,
        }
        super().update(prediction["label_1"], target["label_1"])


class TwoTargets(TrainTask):
    def build_model(self, features: FittedFeatures) -> nn.Module:
        return Both(features)

    def loss(self, outputs: dict[str, Tensor], target: dict[str, Tensor]) -> Tensor:
        assert {name: column.dtype for name, column in target.items()} == {
            "label": torch.float32,
            "label_1": torch.float32,
        }
        number = nn.functional.mse_loss(outputs["label_1"], target["label_1"], reduction="none")
        cross = nn.functional.binary_cross_entropy_with_logits(
            outputs["label"], target["label"], reduction="none"
        )
        return number + cross

    def predict(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**outputs, "label": torch.sigmoid(outputs["label"])}

    def metrics(self) -> dict[str, Metric]:
        return {"r2": Errors()}


def test_several_targets_reach_the_loss_as_a_dict(tmp_path: Path) -> None:
    dataset = write_tiny_dataset(
        tmp_path / "tiny", 650, validation_rows=50, test_rows=40, target_kinds=["binary", "regression"]
    )
    config = TINY_CONFIG.model_copy(update={"epochs": 4, "best_metric": "r2"})
    found = train_here(TwoTargets(), dataset, config, tmp_path / "run")
    losses = list(metric_curve(found["events"], "train/loss").values())
    assert losses[-1] < 0.5 * losses[0]
    assert found["metrics"]["test/r2"] > 0.8
    assert len(found["test"].row_id) == 40
    for columns in (found["test"].prediction, found["test"].target):
        assert {name: column.shape for name, column in columns.items()} == {"label": (40,), "label_1": (40,)}
    assert 0 <= found["test"].prediction["label"].min() <= found["test"].prediction["label"].max() <= 1


class Unsqueezed(TinyRegression):
    """Its outputs of shape [rows, 1] make losses of shape [rows, rows] with a target of shape [rows]."""

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        return (outputs.unsqueeze(1) - target) ** 2


class Averaged(TinyRegression):
    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        return super().loss(outputs, target).mean()


@pytest.mark.parametrize(("task", "shape"), [(Unsqueezed(), r"\(32, 32\)"), (Averaged(), r"\(\)")])
def test_a_loss_that_is_not_by_row_is_refused(tmp_path: Path, task: TrainTask, shape: str) -> None:
    dataset = write_tiny_dataset(tmp_path / "tiny", ROWS, target_kinds=["regression"])
    with pytest.raises(StepFailed) as failed:
        train_here(task, dataset, TINY_CONFIG, tmp_path / "run")
    assert failed.value.step == 1
    with pytest.raises(LossNotByRow, match=rf"gave shape {shape} for 32 rows(.|\n)*reduction"):
        raise failed.value.__cause__


def measured(metric: Metric, prediction: object, target: object, dtype: torch.dtype) -> float:
    """Its value after two updates."""
    predictions, targets = torch.tensor(prediction, dtype=torch.float32), torch.tensor(target, dtype=dtype)
    half = len(targets) // 2
    metric.update(predictions[:half], targets[:half])
    metric.update(predictions[half:], targets[half:])
    return float(metric.compute())


@given(
    seed=st.integers(0, 1000),
    rows=st.integers(2, 300),
    mean=st.sampled_from([0.0, 1.0, -1e4, 1e5]),
    scale=st.sampled_from([1e-4, 1.0, 1e5]),
)
def test_r2_is_exact_whatever_the_targets_mean_and_unit(
    seed: int, rows: int, mean: float, scale: float
) -> None:
    random = np.random.default_rng(seed)
    target = (scale * (mean + random.standard_normal(rows))).astype(np.float32)
    prediction = (target + scale * random.standard_normal(rows)).astype(np.float32)
    expected = r2_score(target.astype(np.float64), prediction.astype(np.float64))
    if not np.isfinite(expected) or np.ptp(target) < 0.1 * scale:
        return
    assert measured(R2(), prediction, target, torch.float32) == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("target", [[0.1], [0.1] * 1000, [1e7] * 333, [0.0] * 5])
def test_r2_of_a_target_that_does_not_vary_has_no_value(target: list[float]) -> None:
    assert np.isnan(measured(R2(), np.arange(len(target)), target, torch.float32))


def test_macro_auroc_without_a_row_of_each_class_has_no_value() -> None:
    predictions = np.full((4, 3), 1 / 3)
    assert np.isnan(measured(MacroAUROC(), predictions, [0, 1, 1, 0], torch.int64))
    assert measured(MacroAUROC(), predictions, [0, 1, 2, 0], torch.int64) == 0.5
    assert np.isnan(measured(MacroAUROC(), np.ones((4, 1)), [0, 0, 0, 0], torch.int64))


def test_accuracy_counts_the_most_probable_class() -> None:
    predictions = [[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.3, 0.4, 0.3]]
    assert measured(Accuracy(), predictions, [0, 2, 0], torch.int64) == pytest.approx(2 / 3)
