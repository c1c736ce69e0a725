"""One step: the gradient of the whole batch however it is cut, precision, own steps, several optimizers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sparktrain.config import DataConfig, LocalSgdConfig, TrainConfig
from sparktrain.dataset import Dataset, open_dataset
from sparktrain.errors import StepFailed, StepMisused
from sparktrain.features import FittedFeatures
from sparktrain.testing import run_ranks, write_tiny_dataset
from sparktrain.training.loop import Loop
from sparktrain.training.step import Step
from sparktrain.training.task import Batch
from sparktrain.world import World
from tests.fixtures.tiny_task import (
    TINY_CONFIG,
    TinyModel,
    TinyTask,
    kill_after,
    last_save,
    train_here,
    train_tiny,
)

ROWS = 45  # of the train split: a step of 32, and one of 13 and padding


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("step") / "tiny"
    return write_tiny_dataset(path, ROWS, validation_rows=20, test_rows=20)


def gradients_of(dataset: Path, directory: Path, config: TrainConfig, steps: int) -> dict[str, Tensor]:
    """Gradients of the last of some steps, none of which changes a weight; and how many passes it took."""
    world = World.from_environment()
    plan = config.model_copy(update={"ranks": world.size})
    loop = Loop(TinyTask(), open_dataset(dataset), plan, world, directory, lambda _: None, MASKED)
    batches = iter(loop.stream)
    for number in range(1, steps + 1):
        batch = next(batches)
        seen = len(loop.model.seen)
        loop.updates.make(batch, number)
    found = {name: _whole(p.grad) for name, p in loop.model.named_parameters()}
    return {**found, "passes": torch.tensor(len(loop.model.seen) - seen)}


def _whole(gradient: Any) -> Tensor:
    return gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient.clone()


MASKED = DataConfig(tail="mask")
FROZEN = TINY_CONFIG.model_copy(
    update={"clip_gradient_norm": None, "learning_rate": 1e-30, "weight_decay": 0.0}
)


def whole_gradient(dataset: Dataset, step: int) -> dict[str, Tensor]:
    """By hand: of the mean loss of all real rows of a step, in one pass of one process."""
    task = TinyTask()
    torch.manual_seed(FROZEN.seed)
    model = task.build_model(dataset.features)
    stream = dataset.stream("train", 32, num_lanes=4, seed=FROZEN.seed, tail="mask")
    batch = [*stream][step - 1]
    real = {name: column[batch["row_weight"] > 0] for name, column in batch.items()}
    assert len(real["row_id"]) == (32 if step == 1 else ROWS - 32)
    task.loss(model(real), real["label"]).mean().backward()
    return {name: p.grad for name, p in model.named_parameters()}


@settings(max_examples=25, deadline=None)
@given(size=st.integers(1, 40), step=st.integers(1, 2))
def test_micro_batches_and_masks_give_the_gradient_of_the_whole_batch(
    dataset: Dataset, tmp_path_factory: pytest.TempPathFactory, size: int, step: int
) -> None:
    plan = FROZEN.model_copy(update={"micro_batch_size": size})
    found = gradients_of(dataset.path, tmp_path_factory.mktemp("loop"), plan, step)
    assert found.pop("passes") == math.ceil(32 / size)
    for name, gradient in whole_gradient(dataset, step).items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-6)


@pytest.mark.ranks
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("size", [None, 3])
def test_uneven_ranks_with_masks_and_micro_batches_do_so_too(
    dataset: Dataset, tmp_path: Path, strategy: str, ranks: int, size: int | None
) -> None:
    plan = FROZEN.model_copy(update={"strategy": strategy, "micro_batch_size": size})
    found = run_ranks(ranks, gradients_of, dataset.path, tmp_path, plan, 2)
    expected = whole_gradient(dataset, 2)
    passes = {int(rank.pop("passes")) for rank in found}
    assert passes == {1 if size is None else math.ceil(math.ceil(32 / ranks) / 3)}, "ranks pass equally often"
    for rank in found:
        for name, gradient in expected.items():
            assert gradient.abs().max() > 1e-4
            torch.testing.assert_close(rank[name], gradient, rtol=0, atol=1e-6)


@pytest.mark.ranks
def test_ranks_on_their_own_take_the_mean_of_their_own_rows(dataset: Dataset, tmp_path: Path) -> None:
    local = LocalSgdConfig(average_every_steps=100)
    plan = FROZEN.model_copy(update={"strategy": "local_sgd", "local_sgd": local})
    found = run_ranks(2, gradients_of, dataset.path, tmp_path, plan, 1)
    for name, gradient in whole_gradient(dataset, 1).items():
        together = torch.stack([rank[name] for rank in found]).mean(0)
        assert not torch.allclose(found[0][name], found[1][name], atol=1e-5), "each was to have its own"
        torch.testing.assert_close(together, gradient, rtol=0, atol=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_as_well(dataset: Dataset, tmp_path: Path, precision: str) -> None:
    losses = {}
    for name in ("fp32", precision):
        plan = TINY_CONFIG.model_copy(update={"epochs": 20, "precision": name})
        found = train_here(Watched(), dataset, plan, tmp_path / name)
        losses[name] = found["metrics"]["validation/loss"]
        kind = (
            torch.float32 if name == "fp32" else getattr(torch, {"bf16": "bfloat16", "fp16": "float16"}[name])
        )
        assert kind in Watched.seen, "the passes were to be in that precision"
    assert losses[precision] == pytest.approx(losses["fp32"], rel=0.02)
    assert losses[precision] != losses["fp32"]


class Watched(TinyTask):
    """Remembers in which precision its outputs came."""

    seen: set[torch.dtype] = set()  # noqa: RUF012

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        self.seen.add(outputs.dtype)
        return super().loss(outputs, target)


class OverflowingTask(TinyTask):
    """Whose gradients are too large for fp16 at the scale that it begins with."""

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        return super().loss(outputs, target) * 100


def test_a_scale_that_overflows_is_lowered_and_its_steps_are_left_out(
    dataset: Dataset, tmp_path: Path
) -> None:
    plan = TINY_CONFIG.model_copy(update={"precision": "fp16", "epochs": 20})
    found = train_here(OverflowingTask(), dataset, plan, tmp_path)
    skipped = [e["values"].get("train/steps_skipped", 0) for e in found["events"] if e["kind"] == "metrics"]
    assert 1 <= sum(skipped) <= 12, "the first steps were to overflow, and no others"
    assert math.isfinite(found["metrics"]["validation/loss"])


class TwoHeads(nn.Module):
    """The tiny model, and one more that learns what the first gets wrong."""

    seen: tuple[()] = ()

    def __init__(self, features: FittedFeatures) -> None:
        super().__init__()
        self.first, self.second = TinyModel(features, 8, 0.0), TinyModel(features, 8, 0.0)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        first = self.first(batch)
        return {"first": first, "both": first.detach() + self.second(batch)}


@dataclass(frozen=True)
class TwoOptimizers(TinyTask):
    """Full control: two optimizers, a step of its own, two updates in it."""

    forwards: int = 2
    name: str = "second"

    def build_model(self, features: FittedFeatures) -> nn.Module:
        return TwoHeads(features)

    def optimizers(self, model: nn.Module, config: TrainConfig) -> Mapping[str, torch.optim.Optimizer]:
        assert isinstance(model, TwoHeads)
        return {
            "first": torch.optim.SGD(model.first.parameters(), lr=0.5, momentum=0.9),
            "second": torch.optim.AdamW(model.second.parameters(), lr=config.learning_rate),
        }

    def train_step(self, step: Step, batch: Batch) -> None:
        outputs = step.forward(batch)
        step.minimize(super().loss(outputs["first"], step.target(batch)), "first")
        if self.forwards == 2:
            outputs = step.forward(batch)
        step.minimize(super().loss(outputs["both"], step.target(batch)), self.name)

    def loss(self, outputs: Any, target: Tensor) -> Tensor:
        return super().loss(outputs["both"], target)

    def predict(self, outputs: Any) -> Tensor:
        return super().predict(outputs["both"])


@pytest.mark.ranks
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_task_steps_by_itself_with_several_optimizers_and_resumes(
    dataset: Dataset, tmp_path: Path, ranks: int
) -> None:
    plan = TINY_CONFIG.model_copy(update={"epochs": 6, "checkpoint_every_steps": 2, "keep_checkpoints": 50})
    big = write_tiny_dataset(tmp_path / "tiny", 200, validation_rows=50)
    straight = train_tiny(TwoOptimizers(), big, plan, tmp_path / "straight", ranks=ranks)
    losses = [e["values"]["train/loss"] for e in straight[0]["events"] if "train/loss" in e.get("values", {})]
    assert losses[-1] < 0.7 * losses[0]
    kill_after(tmp_path / "straight", tmp_path / "again", 14)
    train_tiny(TwoOptimizers(), big, plan, tmp_path / "again", ranks=ranks, attempt=2)
    assert last_save(tmp_path / "again") == last_save(tmp_path / "straight")


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (TwoOptimizers(forwards=1), "calls minimize twice after one forward; let each"),
        (TwoOptimizers(name="third"), r"optimizer 'third'; optimizers\(\) made: first, second"),
    ],
)
def test_a_step_that_asks_for_what_it_can_not_have_is_told(
    dataset: Dataset, tmp_path: Path, task: TwoOptimizers, said: str
) -> None:
    with pytest.raises(StepFailed) as failed:
        train_here(task, dataset, TINY_CONFIG, tmp_path)
    assert isinstance(failed.value.__cause__, StepMisused)
    with pytest.raises(StepMisused, match=said):
        raise failed.value.__cause__
