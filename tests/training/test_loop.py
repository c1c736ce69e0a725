"""The loop in one process: what is saved, what is kept, where it stops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torchmetrics import Metric

from sparktrain.config import DataConfig
from sparktrain.dataset import Dataset
from sparktrain.errors import CheckpointInvalid, DatasetInvalid, NonFiniteLoss, StepFailed
from sparktrain.testing import write_tiny_dataset
from sparktrain.training import checkpoint as checkpoints
from sparktrain.training.checkpoint_state import load_weights
from sparktrain.training.loop import Loop
from sparktrain.world import World
from tests.fixtures.tiny_task import (
    TINY_CONFIG,
    FaultyTask,
    TinyTask,
    last_save,
    metric_curve,
    train_here,
)


def config(**changes: Any) -> Any:
    return TINY_CONFIG.model_copy(update=changes)


def steps_saved(events: list[dict[str, Any]]) -> list[int]:
    return [event["step"] for event in events if event["kind"] == "checkpoint"]


class Scripted(Metric):
    """A metric that ignores its input and takes the next of given values at each evaluation."""

    higher_is_better = True

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.values = values

    def update(self, prediction: torch.Tensor, target: torch.Tensor) -> None:
        pass

    def compute(self) -> torch.Tensor:
        return torch.tensor(self.values.pop(0))


class ScriptedTask(TinyTask):
    """Its validation metric is what the test says."""

    def metrics(self) -> dict[str, Metric]:
        return {"auroc": Scripted(self.values)}

    @property
    def values(self) -> list[float]:
        return SCRIPT


SCRIPT: list[float] = []


@pytest.fixture
def script() -> list[float]:
    SCRIPT.clear()
    return SCRIPT


def test_training_learns_and_evaluates_the_best_checkpoint(dataset: Dataset, tmp_path: Path) -> None:
    found = train_here(TinyTask(), dataset, config(epochs=3), tmp_path)
    assert found["steps"] == 60
    assert found["metrics"]["test/auroc"] > 0.8
    losses = metric_curve(found["events"], "train/loss")
    assert list(losses) == [10, 20, 30, 40, 50, 60]
    assert losses[60] < 0.8 * losses[10]
    best = max(metric_curve(found["events"], "validation/auroc").items(), key=lambda item: item[1])
    assert found["best"] == checkpoints.checkpoint_name(best[0], 1)
    assert found["metrics"]["validation/auroc"] == best[1]


def test_an_epochs_last_step_is_saved_once_with_its_metrics(dataset: Dataset, tmp_path: Path) -> None:
    found = train_here(TinyTask(), dataset, config(checkpoint_every_steps=5), tmp_path)
    assert steps_saved(found["events"]) == [5, 10, 15, 20, 25, 30, 35, 40]


def test_the_best_checkpoint_stays_when_later_ones_are_worse(
    dataset: Dataset, tmp_path: Path, script: list[float]
) -> None:
    script += [0.9, 0.8, 0.7, 0.5]
    found = train_here(ScriptedTask(), dataset, config(epochs=3, keep_checkpoints=1), tmp_path)
    assert found["best"] == checkpoints.checkpoint_name(20, 1)
    kept = sorted(path.name for path in tmp_path.glob("step-*"))
    assert kept == [checkpoints.checkpoint_name(20, 1), checkpoints.checkpoint_name(60, 1)]
    assert found["metrics"]["validation/auroc"] == pytest.approx(0.9)
    assert found["metrics"]["test/auroc"] == pytest.approx(0.5)


def test_a_metric_without_a_value_does_not_stop_training_and_is_not_the_best(
    dataset: Dataset, tmp_path: Path, script: list[float]
) -> None:
    script += [float("nan"), 0.6, float("nan"), 0.5]
    found = train_here(ScriptedTask(), dataset, config(epochs=3), tmp_path)
    assert found["best"] == checkpoints.checkpoint_name(40, 1)


def test_a_metric_that_never_has_a_value_is_reported_as_it_is(
    dataset: Dataset, tmp_path: Path, script: list[float]
) -> None:
    script += [float("nan")] * 3
    found = train_here(ScriptedTask(), dataset, config(), tmp_path)
    assert found["best"] == checkpoints.checkpoint_name(40, 1), "without a comparison the newest counts"
    assert found["metrics"]["validation/auroc"] != found["metrics"]["validation/auroc"]


@pytest.mark.parametrize(
    ("kind", "step", "last_saved"),
    [
        ("nan", 17, 15),
        ("nan", 15, 10),
        ("infinite_gradient", 15, 10),
    ],  # at 15 the step itself is due for saving
)
def test_nothing_is_saved_once_loss_or_gradient_is_not_finite(
    dataset: Dataset, tmp_path: Path, kind: str, step: int, last_saved: int
) -> None:
    task = FaultyTask(kind=kind, step=step)
    with pytest.raises(StepFailed) as failed:
        train_here(task, dataset, config(checkpoint_every_steps=5), tmp_path)
    assert task.steps[-1] >= step, "the fault did not fire"
    assert isinstance(failed.value.__cause__, NonFiniteLoss)
    assert failed.value.step <= 20
    saved = checkpoints.newest_valid(tmp_path)
    assert saved is not None and saved.step == last_saved
    assert all(torch.isfinite(weight).all() for weight in weights(saved, dataset))


def weights(saved: checkpoints.Checkpoint, dataset: Dataset) -> list[torch.Tensor]:
    model = TinyTask().build_model(dataset.features)
    load_weights(saved, model)
    return list(model.state_dict().values())


def test_an_error_in_a_step_carries_the_steps_number(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(StepFailed) as failed:
        train_here(FaultyTask(kind="raise", step=7), dataset, config(), tmp_path)
    assert failed.value.step == 7
    assert str(failed.value.__cause__) == "broken on purpose"


def test_resuming_a_run_whose_steps_are_done_only_evaluates(dataset: Dataset, tmp_path: Path) -> None:
    straight = train_here(TinyTask(), dataset, config(), tmp_path)
    before = last_save(tmp_path)
    again = train_here(TinyTask(), dataset, config(), tmp_path)
    assert again["rows"] == {}
    assert (again["steps"], again["metrics"]) == (straight["steps"], straight["metrics"])
    assert last_save(tmp_path) == before


def test_a_resumed_run_takes_the_weight_decay_of_its_configuration(dataset: Dataset, tmp_path: Path) -> None:
    train_here(TinyTask(), dataset, config(), tmp_path)
    changed = config(weight_decay=0.5)
    loop = Loop(TinyTask(), dataset, changed, World(), tmp_path, lambda event: None)
    loop.run(checkpoints.newest_valid(tmp_path))
    assert [group["weight_decay"] for group in loop.updates.optimizers["optimizer"].param_groups] == [0.5]


def test_a_best_checkpoint_that_was_damaged_is_not_tested(
    dataset: Dataset, tmp_path: Path, script: list[float]
) -> None:
    class Damaging(ScriptedTask):
        def metrics(self) -> dict[str, Metric]:
            for path in tmp_path.glob("*/rank-*.safetensors"):
                path.write_bytes(path.read_bytes()[:-1] + b"?")
            return super().metrics()

    script += [0.9, 0.8]  # the first is the best, and damaged when the second is evaluated
    with pytest.raises(CheckpointInvalid, match="step-000000020"):
        train_here(Damaging(), dataset, config(), tmp_path)


@pytest.mark.parametrize("ending", ["validation", "train"])
def test_rows_that_can_not_be_read_are_masked_counted_and_named(tmp_path: Path, ending: str) -> None:
    dataset = write_tiny_dataset(tmp_path / "tiny", 650, validation_rows=80, num_parts=4)
    part = dataset.manifest.splits[ending].parts[1]
    (dataset.path / part.path).unlink()
    with pytest.raises(DatasetInvalid, match="part-00001"):
        train_here(TinyTask(), dataset, config(epochs=1), tmp_path / "fail")
    data = DataConfig(on_bad_data="mask")
    found = train_here(TinyTask(), dataset, config(epochs=2), tmp_path / "mask", data=data)
    assert found["steps"] == 40
    (told,) = [event for event in found["events"] if event["kind"] == "masked"]
    assert told["rank"] == 0
    assert set(told["row_groups"]) == {f"{part.path}, row group {i}" for i in range(len(part.row_groups))}
    windows = [e["values"] for e in found["events"] if e["kind"] == "metrics" and "train/loss" in e["values"]]
    masked = sum(values.get("train/rows_masked", 0) for values in windows)
    if ending == "train":
        # each epoch leaves out the 10 rows of 650 that are over, some of which may be masked ones
        assert 2 * (part.rows - 10) <= masked <= 2 * part.rows
    else:
        assert masked == 0
