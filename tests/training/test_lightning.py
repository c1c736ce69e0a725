"""LightningModules, trained without Lightning's Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sparktrain.config import DataConfig
from sparktrain.dataset import Dataset, open_dataset
from sparktrain.errors import LightningUnsupported, StepFailed
from sparktrain.testing import run_ranks, write_tiny_dataset
from sparktrain.training.lightning import LightningTask
from sparktrain.training.loop import Loop
from sparktrain.training.module_task import ModuleTask
from sparktrain.world import World
from tests.fixtures.tiny_task import TINY_CONFIG
from tests.training.test_module_task import COLUMNS, config, train_rank

lightning = pytest.importorskip("lightning")
pytestmark = pytest.mark.timeout(180)


class Lit(lightning.LightningModule):  # type: ignore[misc, name-defined]
    """As its documentation has it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(COLUMNS, 8), nn.ReLU(), nn.Linear(8, 1))
        self.numbers: list[int] = []

    def forward(self, x: Tensor) -> Any:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = functional.mse_loss(self(x).squeeze(1), y)
        self.log("train_loss", loss)
        self.log_dict({"again": loss})
        self.numbers.append(batch_idx)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        raise AssertionError("evaluation is ours")

    def on_validation_epoch_end(self) -> None:
        raise AssertionError("evaluation is ours")

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=TINY_CONFIG.learning_rate, weight_decay=0.0)


class Task(LightningTask):
    module = Lit
    loss_name = "mse_loss"


class Plain(nn.Module):
    """The same network, by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.module = Lit()

    def forward(self, x: Tensor) -> Any:
        return self.module(x)


class PlainTask(ModuleTask):
    module = Plain
    loss_name = "mse_loss"


def tiny(path: Path, **options: Any) -> Dataset:
    defaults: dict[str, Any] = {
        "num_numeric": COLUMNS,
        "num_categorical": 0,
        "target_kinds": ["regression"],
        "validation_rows": 50,
        "test_rows": 41,
    }
    return write_tiny_dataset(path / "tiny", 649, **{**defaults, **options})


@pytest.mark.ranks
@pytest.mark.parametrize(("strategy", "ranks"), [("ddp", 1), ("ddp", 2), ("ddp", 3), ("fsdp", 2)])
def test_a_lightning_module_learns_as_its_network_does_by_the_rows_losses(
    tmp_path: Path, strategy: str, ranks: int
) -> None:
    # 649 rows: the last step of an epoch has 9 of 32, on some ranks nothing but padding.
    dataset, plan = tiny(tmp_path), config(weight_decay=0.0, strategy=strategy, blocks=["Linear"])
    by_hand = train_rank(PlainTask(), dataset.path, plan, tmp_path / "by-hand")
    found = run_ranks(ranks, train_rank, Task(), dataset.path, plan, tmp_path / "lightning")
    assert found[0]["losses"] == pytest.approx(by_hand["losses"], rel=1e-4) and by_hand["losses"]
    assert found[0]["metrics"] == pytest.approx(by_hand["metrics"], rel=1e-3)
    assert found[0]["metrics"]["test/r2"] > 0.8


def test_micro_batches_make_the_same_gradient(tmp_path: Path) -> None:
    path = tiny(tmp_path).path
    gradients = []
    for size in (None, 5):
        plan = config(micro_batch_size=size, clip_gradient_norm=None)
        data, where = DataConfig(tail="mask"), tmp_path / str(size)
        loop = Loop(Task(), open_dataset(path), plan, World(), where, lambda _: None, data)
        loop.updates.make(next(iter(loop.stream)), 1)
        gradients.append([p.grad for p in loop.model.parameters()])
        assert loop.model.module.numbers == [*range(1 if size is None else 7)]
    for one, many in zip(*gradients, strict=True):
        assert one.abs().max() > 1e-4
        torch.testing.assert_close(one, many, rtol=0, atol=1e-6)


class OfADict(Lit):
    def training_step(self, batch: Any) -> dict[str, Tensor]:  # type: ignore[override]
        return {"loss": super().training_step(batch, 0)}

    def configure_optimizers(self) -> Any:
        return {"optimizer": super().configure_optimizers()}


def test_steps_and_optimizers_may_come_in_dicts(tmp_path: Path) -> None:
    made = task_of(OfADict)
    found = train_rank(made, tiny(tmp_path).path, config(), tmp_path / "run")
    assert found["metrics"]["test/r2"] > 0.8


def task_of(module: type) -> LightningTask:
    return type("Task", (LightningTask,), {"module": module, "loss_name": "mse_loss"})()


class Manual(Lit):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class Hooked(Lit):
    def on_train_epoch_end(self) -> None:
        pass

    def configure_callbacks(self) -> Any:
        return []


class WithoutStep(lightning.LightningModule):  # type: ignore[misc, name-defined]
    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (Manual, "Manual has automatic_optimization off.*Write train_step and optimizers of a TrainTask"),
        (Hooked, "Hooked defines configure_callbacks, on_train_epoch_end;"),
        (WithoutStep, "WithoutStep lacks training_step, configure_optimizers;"),
        (Plain, "Plain is no LightningModule.*Use a ModuleTask"),
    ],
)
def test_what_only_the_trainer_does_is_refused(tmp_path: Path, module: type, text: str) -> None:
    with pytest.raises(LightningUnsupported, match=text):
        task_of(module).build_model(tiny(tmp_path).features)


def test_rows_with_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LightningUnsupported, match="one loss for a batch, and the rows have weights"):
        Task().build_model(tiny(tmp_path, weight=True).features)


@pytest.mark.parametrize("kind", ["scheduler", "two", "none"])
def test_schedulers_and_several_optimizers_are_refused(tmp_path: Path, kind: str) -> None:
    class Other(Lit):
        def configure_optimizers(self) -> Any:
            one = super().configure_optimizers()
            scheduler = torch.optim.lr_scheduler.ConstantLR(one)
            given = {"scheduler": {"optimizer": one, "lr_scheduler": scheduler}, "two": [one, one]}
            return given.get(kind)

    task = task_of(Other)
    model = task.build_model(tiny(tmp_path).features)
    with pytest.raises(LightningUnsupported, match=r"one optimizer .*Schedules are train\.schedule"):
        task.optimizers(model, TINY_CONFIG)


def test_a_step_without_a_loss_is_told(tmp_path: Path) -> None:
    class ByRow(Lit):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            return functional.mse_loss(self(x).squeeze(1), y, reduction="none")

    with pytest.raises(StepFailed) as failed:
        train_rank(task_of(ByRow), tiny(tmp_path).path, config(), tmp_path / "run")
    with pytest.raises(LightningUnsupported, match=r"no plain number from training_step but shape \(32,\)"):
        raise failed.value.__cause__  # type: ignore[misc]


def test_the_module_knows_its_device(tmp_path: Path) -> None:
    model = Task().build_model(tiny(tmp_path).features).to("meta")
    assert isinstance(model.module, Lit) and model.module.device.type == "meta"
