"""Each strategy: the losses of one rank, the same bits after a resume, saves that any strategy takes up."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sparktrain.config import DdpConfig, FsdpConfig, LocalSgdConfig, TrainConfig
from sparktrain.dataset import Dataset, open_dataset
from sparktrain.errors import RankFailed, TorchTooOld
from sparktrain.features import FittedFeatures
from sparktrain.testing import run_ranks
from sparktrain.training.checkpoint import newest_valid
from sparktrain.training.loop import Loop
from sparktrain.training.step import Step
from sparktrain.training.strategies.fsdp import FullySharded
from sparktrain.training.task import Batch
from sparktrain.world import World
from tests.fixtures.tiny_task import (
    TINY_CONFIG,
    FaultyTask,
    TinyModel,
    TinyTask,
    kill_after,
    last_save,
    metric_curve,
    train_tiny,
)

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(300)]

POWERSGD = DdpConfig(compression="powersgd", powersgd_rank=1, powersgd_start_step=3)
STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fp16": {"ddp": DdpConfig(compression="fp16")},
    "powersgd": {"ddp": POWERSGD},
    "fsdp": {"strategy": "fsdp", "blocks": ["Linear"]},
    "fsdp, whole weights kept": {
        "strategy": "fsdp",
        "blocks": ["Linear"],
        "fsdp": FsdpConfig(reshard_after_forward=False),
    },
    "local_sgd": {"strategy": "local_sgd", "local_sgd": LocalSgdConfig(average_every_steps=4)},
    "post-local": {
        "strategy": "local_sgd",
        "local_sgd": LocalSgdConfig(average_every_steps=3, start_step=10),
    },
    "diloco": {
        "strategy": "local_sgd",
        "local_sgd": LocalSgdConfig(average_every_steps=4, outer_learning_rate=0.7, outer_momentum=0.3),
    },
}
# Of the losses, relative to those of one rank. Sums in another order differ in their last bits, halves of
# floats in the third digit; what sends less than the gradient goes another way to the same place.
TOLERANCE = {"ddp": 1e-5, "fsdp": 1e-5, "fsdp, whole weights kept": 1e-5, "fp16": 1e-3}
APPROXIMATE = 0.15


def config(name: str, **changes: Any) -> TrainConfig:
    return TINY_CONFIG.model_copy(update={**STRATEGIES[name], **changes})


@pytest.fixture(scope="module")
def alone(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """Training losses by step of one rank."""
    directory = tmp_path_factory.mktemp("alone") / "saves"
    (found,) = train_tiny(TinyTask(), dataset, config("ddp", strategy="single"), directory, ranks=1)
    return metric_curve(found["events"], "train/loss")


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("name", STRATEGIES)
def test_the_losses_are_those_of_one_rank(
    dataset: Dataset, alone: dict[int, float], tmp_path: Path, name: str, ranks: int
) -> None:
    found = train_tiny(TinyTask(), dataset, config(name), tmp_path / "saves", ranks=ranks)
    curve = metric_curve(found[0]["events"], "train/loss")
    assert curve.keys() == alone.keys() and len(curve) == 4
    if ranks == 1:
        assert curve == alone, "one rank is one rank, whatever the strategy"
    else:
        assert curve == pytest.approx(alone, rel=TOLERANCE.get(name, APPROXIMATE))
    if ranks > 1 and name not in TOLERANCE:
        assert curve != pytest.approx(alone, rel=1e-5), "it was not this strategy that trained"
    assert all(rank["metrics"] == found[0]["metrics"] for rank in found)


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_resumed_training_has_the_same_bits(
    dataset: Dataset, tmp_path: Path, name: str, ranks: int
) -> None:
    # Saves between two averages, and within an epoch; dropout draws from each rank's own generator.
    task, plan = TinyTask(dropout=0.3), config(name, checkpoint_every_steps=7, keep_checkpoints=100)
    straight = train_tiny(task, dataset, plan, tmp_path / "straight", ranks=ranks)
    kill_after(tmp_path / "straight", tmp_path / "again", 28)
    again = train_tiny(task, dataset, plan, tmp_path / "again", ranks=ranks, attempt=2)
    assert again[0]["events"][0] == {"kind": "resumed", "step": 28}
    assert last_save(tmp_path / "again") == last_save(tmp_path / "straight")
    assert again[0]["metrics"] == straight[0]["metrics"]


CHANGES = [("ddp", "fsdp"), ("fsdp", "diloco"), ("diloco", "powersgd"), ("powersgd", "ddp"), ("fsdp", "fsdp")]


@pytest.mark.parametrize(("before", "after"), CHANGES)
def test_a_save_is_taken_up_by_other_ranks_and_strategies(
    dataset: Dataset, alone: dict[int, float], tmp_path: Path, before: str, after: str
) -> None:
    first = config(before, max_steps=20, schedule="constant")
    train_tiny(TinyTask(), dataset, first, tmp_path / "saves", ranks=2)
    saved = newest_valid(tmp_path / "saves")
    assert saved is not None and saved.step == 20
    second = config(after, schedule="constant")
    found = train_tiny(TinyTask(), dataset, second, tmp_path / "saves", ranks=4, attempt=2)
    assert found[0]["steps"] == 40 and found[0]["events"][0] == {"kind": "resumed", "step": 20}
    curve = metric_curve(found[0]["events"], "train/loss")
    assert list(curve) == [30, 40] and curve == pytest.approx({s: alone[s] for s in curve}, rel=0.2)


def precise(task: TinyTask, dataset: Path, plan: TrainConfig, directory: Path) -> list[float]:
    """Train; the test predictions of this rank."""
    loop = Loop(task, open_dataset(dataset), plan, World.from_environment(), directory, lambda event: None)
    test = loop.run(None).test
    assert test is not None and isinstance(test.prediction, np.ndarray)
    return [float(value) for value in test.prediction]


class Floating(TinyModel):
    """Whose forward asks for float32."""

    def forward(self, batch: Batch) -> Tensor:
        assert batch["numeric_0"].dtype == torch.float32, "a large number would lose its digits"
        return super().forward(batch)


class FloatingTask(TinyTask):
    def build_model(self, features: FittedFeatures) -> nn.Module:
        return Floating(features, 8, 0.0)


@pytest.mark.parametrize("blocks", [[], ["Linear"]])
def test_fsdp_trains_and_evaluates_with_bf16(dataset: Dataset, tmp_path: Path, blocks: list[str]) -> None:
    found = {}
    for precision in ("fp32", "bf16"):
        plan = config("fsdp", precision=precision, blocks=blocks, ranks=2)
        predicted = run_ranks(2, precise, FloatingTask(), dataset.path, plan, tmp_path / precision)
        found[precision] = np.sort(np.concatenate(predicted))
    assert not np.array_equal(found["bf16"], found["fp32"])
    np.testing.assert_allclose(found["bf16"], found["fp32"], atol=0.02)


class DrawnTask(TinyTask):
    """Draws its weights from elsewhere, so that each rank has others."""

    def build_model(self, features: FittedFeatures) -> nn.Module:
        model = super().build_model(features)
        with torch.no_grad():
            for parameter in model.parameters():
                drawn = np.random.default_rng().normal(size=parameter.shape)
                parameter.copy_(torch.from_numpy(drawn))
        return model


class TwoHeadsTask(TinyTask):
    """Two optimizers: the second one's update leaves the first one's parameters without a gradient."""

    def optimizers(self, model: nn.Module, config: TrainConfig) -> Mapping[str, torch.optim.Optimizer]:
        assert isinstance(model, TinyModel)
        return {
            "hidden": torch.optim.SGD(model.hidden.parameters(), lr=0.1),
            "out": torch.optim.SGD(model.out.parameters(), lr=0.1),
        }

    def train_step(self, step: Step, batch: Batch) -> None:
        for name in ("hidden", "out"):
            step.minimize(self.loss(step.forward(batch), step.target(batch)), name)


class ScaledModel(TinyModel):
    """With a temperature, which has no dimension, and a module that training must leave as it is."""

    def __init__(self, features: FittedFeatures) -> None:
        super().__init__(features, 8, 0.3)
        self.temperature = nn.Parameter(torch.tensor(1.0))
        self.dropout.eval()

    def forward(self, batch: Batch) -> Tensor:
        assert not self.dropout.training
        return super().forward(batch) * self.temperature


class ScaledTask(TinyTask):
    def build_model(self, features: FittedFeatures) -> nn.Module:
        return ScaledModel(features)


def weights_after(task: TinyTask, dataset: Path, plan: TrainConfig, directory: Path) -> dict[str, Any]:
    loop = Loop(task, open_dataset(dataset), plan, World.from_environment(), directory, lambda event: None)
    loop.run(None)
    return {name: weight.tolist() for name, weight in loop.model.state_dict().items()}


@pytest.mark.parametrize("name", ["ddp", "powersgd", "local_sgd"])
@pytest.mark.parametrize("task", [DrawnTask(), ScaledTask(), TwoHeadsTask()], ids=lambda t: type(t).__name__)
def test_ranks_end_with_the_same_weights(dataset: Dataset, tmp_path: Path, name: str, task: TinyTask) -> None:
    plan = config(name, ranks=2, evaluate_every_steps=8)
    ranks = run_ranks(2, weights_after, task, dataset.path, plan, tmp_path)
    assert ranks[0] == ranks[1]


class Unused(TinyModel):
    def __init__(self, features: FittedFeatures) -> None:
        super().__init__(features, 8, 0.0)
        self.spare = nn.Linear(2, 2)


class UnusedTask(TinyTask):
    def build_model(self, features: FittedFeatures) -> nn.Module:
        return Unused(features)


def test_parameters_that_no_loss_reaches_are_named(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(RankFailed, match=r"does not reach all .*: spare\.weight, spare\.bias\. Under"):
        train_tiny(UnusedTask(), dataset, config("ddp"), tmp_path / "ddp", ranks=2)
    found = train_tiny(UnusedTask(), dataset, config("fsdp"), tmp_path / "fsdp", ranks=2)
    assert found[0]["steps"] == 40


def test_a_torch_that_can_not_shard_on_cpus_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu.Stream, "record_event")  # as in torch 2.6
    with pytest.raises(TorchTooOld, match=r"fsdp on CPUs: torch .* Way out: take train\.strategy=ddp"):
        FullySharded(config("fsdp"), torch.nn.Linear(2, 1), World())


@pytest.mark.parametrize("step", [3, 4, 21])
@pytest.mark.parametrize("name", ["ddp", "powersgd", "fsdp", "local_sgd", "diloco"])
def test_a_step_that_is_left_out_harms_no_later_one(
    dataset: Dataset, tmp_path: Path, name: str, step: int
) -> None:
    plan = config(name, on_nonfinite="skip", checkpoint_every_steps=1, keep_checkpoints=2)
    task = FaultyTask(kind="nan", rank=1, step=step)
    found = train_tiny(task, dataset, plan, tmp_path / "saves", ranks=2)
    skipped = [
        e["values"].get("train/steps_skipped", 0) for e in found[0]["events"] if e["kind"] == "metrics"
    ]
    assert sum(skipped) == 1 and found[0]["steps"] == 40
    assert found[0]["metrics"]["validation/loss"] < 0.6
