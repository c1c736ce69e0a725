"""When a training ends, which state is the best, what callbacks hear, averages of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sparktrain.config import TrainConfig
from sparktrain.dataset import Dataset
from sparktrain.training.checkpoint import checkpoint_name, committed, newest_valid, open_checkpoint
from sparktrain.training.checkpoint_state import export_weights, load_weights
from sparktrain.training.task import Callback
from tests.fixtures.tiny_task import (
    TINY_CONFIG,
    TinyModel,
    TinyTask,
    kill_after,
    last_save,
    metric_curve,
    train_here,
    train_tiny,
)
from tests.training.test_loop import SCRIPT, ScriptedTask


def config(**changes: Any) -> TrainConfig:
    return TINY_CONFIG.model_copy(update=changes)


def evaluated(found: Mapping[str, Any]) -> list[int]:
    return list(metric_curve(found["events"], "validation/loss"))


def test_it_ends_at_max_steps_with_a_save_and_the_schedule_at_its_end(
    dataset: Dataset, tmp_path: Path
) -> None:
    found = train_here(TinyTask(), dataset, config(max_steps=27), tmp_path)
    saved = newest_valid(tmp_path)
    assert saved is not None and (saved.step, found["steps"]) == (27, 27)
    assert evaluated(found) == [20, 27]
    rates = metric_curve(found["events"], "train/learning_rate")
    assert list(rates) == [10, 20, 27] and rates[27] < 0.01 * TINY_CONFIG.learning_rate
    again = train_here(TinyTask(), dataset, config(max_steps=27), tmp_path)
    assert again["steps"] == 27 and evaluated(again) == [], "it was over already"


def test_it_ends_after_max_seconds_of_all_attempts(dataset: Dataset, tmp_path: Path) -> None:
    plan = config(max_seconds=1e-6, keep_checkpoints=9)
    first = train_here(TinyTask(), dataset, plan, tmp_path)
    assert first["steps"] == 10 and evaluated(first) == [10]
    again = train_here(TinyTask(), dataset, plan, tmp_path)
    assert again["steps"] == 10, "the time of the first attempt counts"


def test_it_stops_early_after_evaluations_without_a_better_one(dataset: Dataset, tmp_path: Path) -> None:
    SCRIPT[:] = [0.5, 0.7, 0.6, 0.7, 0.9, 0.1]  # equal is not better; the last one is of the test split
    plan = config(epochs=3, evaluate_every_steps=8, early_stopping_evaluations=2)
    found = train_here(ScriptedTask(), dataset, plan, tmp_path)
    assert evaluated(found) == [8, 16, 20, 24] and found["steps"] == 24
    assert found["best"] == checkpoint_name(16, 1)


@pytest.mark.parametrize("step", [8, 20, 24])
def test_a_resume_counts_on_towards_an_early_stop(dataset: Dataset, tmp_path: Path, step: int) -> None:
    plan = config(
        epochs=3,
        evaluate_every_steps=8,
        checkpoint_every_steps=8,
        early_stopping_evaluations=2,
        keep_checkpoints=9,
    )
    values = [0.5, 0.7, 0.6, 0.7, 0.1]
    SCRIPT[:] = values
    train_here(ScriptedTask(), dataset, plan, tmp_path / "straight")
    kill_after(tmp_path / "straight", tmp_path / "again", step)
    SCRIPT[:] = values[{8: 1, 20: 3, 24: 4}[step] :]
    found = train_here(ScriptedTask(), dataset, plan, tmp_path / "again")
    assert found["steps"] == 24 and found["best"] == checkpoint_name(16, 1) and not SCRIPT


def test_evaluations_within_an_epoch_keep_what_is_best_and_change_nothing_else(
    dataset: Dataset, tmp_path: Path
) -> None:
    task = TinyTask(dropout=0.3)
    plain = train_here(task, dataset, config(keep_checkpoints=50), tmp_path / "plain")
    often = train_here(task, dataset, config(keep_checkpoints=50, evaluate_every_steps=3), tmp_path / "often")
    assert evaluated(plain) == [20, 40]
    assert evaluated(often) == sorted({*range(3, 41, 3), 20, 40})
    curves = [metric_curve(found["events"], "train/loss") for found in (plain, often)]
    assert curves[1].keys() >= curves[0].keys()
    ends = [metric_curve(found["events"], "validation/loss")[40] for found in (plain, often)]
    assert ends[0] == ends[1], "an evaluation must not change what is trained"
    values = metric_curve(often["events"], "validation/auroc")
    best = max(values, key=lambda step: (values[step], -step))
    assert often["best"] == checkpoint_name(best, 1)


def test_the_lowest_loss_is_the_best(dataset: Dataset, tmp_path: Path) -> None:
    plan = config(best_metric="loss", evaluate_every_steps=2, learning_rate=0.3, schedule="constant")
    found = train_here(TinyTask(), dataset, plan, tmp_path)
    losses = metric_curve(found["events"], "validation/loss")
    best = min(losses, key=lambda step: (losses[step], step))
    assert found["best"] == checkpoint_name(best, 1) and best != 40, "the last one was not to be the best"
    assert found["metrics"]["validation/loss"] == losses[best]


@dataclass
class Heard(Callback):
    """Writes down what it hears, and ends the training at an evaluation."""

    end_at: int | None = None
    steps: list[int] = field(default_factory=list)
    evaluations: list[tuple[int, Sequence[str]]] = field(default_factory=list)
    ends: list[tuple[int, Sequence[str]]] = field(default_factory=list)

    def on_step(self, step: int, model: nn.Module) -> None:
        assert isinstance(model, TinyModel) and model.training
        self.steps.append(step)

    def on_evaluation(self, step: int, metrics: Mapping[str, float]) -> bool:
        self.evaluations.append((step, sorted(metrics)))
        return step == self.end_at

    def on_end(self, step: int, metrics: Mapping[str, float]) -> None:
        self.ends.append((step, sorted(metrics)))


@dataclass(frozen=True)
class HeardTask(TinyTask):
    heard: Heard = field(default_factory=Heard)

    def callbacks(self) -> Sequence[Callback]:
        return [self.heard]


@pytest.mark.parametrize("end_at", [None, 15, 20])
def test_callbacks_hear_steps_evaluations_and_the_end_and_may_end_it(
    dataset: Dataset, tmp_path: Path, end_at: int | None
) -> None:
    heard = Heard(end_at)
    found = train_here(HeardTask(heard=heard), dataset, config(evaluate_every_steps=15), tmp_path)
    last = end_at or 40
    assert heard.steps == list(range(1, last + 1)) and found["steps"] == last
    names = [f"validation/{name}" for name in ("accuracy", "auroc", "average_precision", "loss")]
    assert heard.evaluations == [(step, names) for step in (15, 20, 30, 40) if step <= last]
    ((step, seen),) = heard.ends
    assert step == last and "test/auroc" in seen


def test_an_average_of_the_weights_is_evaluated_kept_and_exported(dataset: Dataset, tmp_path: Path) -> None:
    averages: list[AveragedModel] = []

    class Averaging(Callback):
        """The same by torch's own class."""

        def on_step(self, step: int, model: nn.Module) -> None:
            averages[0].update_parameters(model)

    class AveragedTask(TinyTask):
        def build_model(self, features: Any) -> nn.Module:
            model = super().build_model(features)
            averages[:] = [AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))]
            averages[0].update_parameters(model)  # its first call copies
            return model

        def callbacks(self) -> Sequence[Callback]:
            return [Averaging()]

    plan = config(ema_decay=0.9, keep_checkpoints=9)
    found = train_here(AveragedTask(), dataset, plan, tmp_path / "averaged")
    plain = train_here(TinyTask(), dataset, config(keep_checkpoints=9), tmp_path / "plain")
    assert metric_curve(found["events"], "train/loss") == metric_curve(plain["events"], "train/loss")
    assert metric_curve(found["events"], "validation/loss") != metric_curve(
        plain["events"], "validation/loss"
    )
    last = open_checkpoint(tmp_path / "averaged" / checkpoint_name(40, 1))
    model = TinyTask().build_model(dataset.features)
    load_weights(last, model)
    expected = averages[0].module.state_dict()
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-6, atol=1e-7)
    export_weights(last, tmp_path / "weights.safetensors")
    from safetensors.torch import load_file

    exported = load_file(tmp_path / "weights.safetensors")
    assert all(torch.equal(exported[name], weight) for name, weight in model.state_dict().items())


@pytest.mark.ranks
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "local_sgd"])
def test_averages_of_weights_go_on_after_a_resume(dataset: Dataset, tmp_path: Path, strategy: str) -> None:
    plan = config(ema_decay=0.9, keep_checkpoints=50, checkpoint_every_steps=7, strategy=strategy)
    straight = train_tiny(TinyTask(), dataset, plan, tmp_path / "straight", ranks=2)
    kill_after(tmp_path / "straight", tmp_path / "again", 28)
    again = train_tiny(TinyTask(), dataset, plan, tmp_path / "again", ranks=2, attempt=2)
    assert last_save(tmp_path / "again") == last_save(tmp_path / "straight")
    assert again[0]["metrics"] == straight[0]["metrics"]


def test_a_resume_that_begins_to_average_begins_with_the_weights(dataset: Dataset, tmp_path: Path) -> None:
    train_here(TinyTask(), dataset, config(max_steps=20), tmp_path)
    found = train_here(TinyTask(), dataset, config(ema_decay=0.5), tmp_path)
    assert found["steps"] == 40
    names = [name for path in committed(tmp_path) for name in open_checkpoint(path).tensors]
    assert any(name.startswith("average/") for name in names)


def test_saves_come_on_time_beside_evaluations(dataset: Dataset, tmp_path: Path) -> None:
    for every in (None, 5, 10):
        plan = config(
            checkpoint_every_steps=5, evaluate_every_steps=every, learning_rate=1.0, schedule="constant"
        )
        found = train_here(TinyTask(), dataset, plan, tmp_path / str(every))
        steps = [event["step"] for event in found["events"] if event["kind"] == "checkpoint"]
        assert steps == list(range(5, 41, 5)), every


def test_a_metric_without_a_value_is_no_better_one_for_an_early_stop(
    dataset: Dataset, tmp_path: Path
) -> None:
    SCRIPT[:] = [float("nan")] * 4
    found = train_here(ScriptedTask(), dataset, config(epochs=5, early_stopping_evaluations=2), tmp_path)
    assert found["steps"] == 40
