"""Activation checkpointing and torch.compile: the same numbers, and names of weights as they were."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparktrain.config import TrainConfig
from sparktrain.dataset import Dataset
from sparktrain.errors import BlocksUnknown
from sparktrain.testing import write_tiny_dataset
from sparktrain.training.blocks import blocks_of, prepare_model
from sparktrain.training.checkpoint import newest_valid
from tests.fixtures.tiny_task import TINY_CONFIG, TinyTask, train_here, train_tiny


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.dropout = nn.Linear(4, 4), nn.Dropout(0.2)
        self.passes = 0

    def forward(self, values: Tensor) -> Tensor:
        self.passes += 1
        return values + self.dropout(torch.tanh(self.linear(values)))


def trained(config: TrainConfig) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(Block(), Block(), nn.Linear(4, 1))
    prepare_model(model, config)
    model(torch.randn(8, 4)).square().mean().backward()
    return model, {name: p.grad for name, p in model.named_parameters()}


def test_blocks_are_found_by_class_and_unknown_ones_refused() -> None:
    model, _ = trained(TINY_CONFIG)
    assert blocks_of(model, ["Block"]) == [model[0], model[1]]
    assert blocks_of(model, []) == []
    with pytest.raises(
        BlocksUnknown, match=r"names Layer, .*Block \(2\), Dropout \(2\), Linear \(3\)\. Give"
    ):
        blocks_of(model, ["Block", "Layer"])


def test_activation_checkpointing_passes_twice_and_gives_the_same_gradients() -> None:
    plain, expected = trained(TINY_CONFIG)
    plan = TINY_CONFIG.model_copy(update={"activation_checkpointing": True, "blocks": ["Block"]})
    model, found = trained(plan)
    assert [block.passes for block in (plain[0], model[0], model[1])] == [1, 2, 2]
    assert found.keys() == expected.keys() and model.state_dict().keys() == plain.state_dict().keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("blocks") / "tiny"
    return write_tiny_dataset(path, 330, validation_rows=50, test_rows=40)


@pytest.mark.ranks
@pytest.mark.timeout(300)
@pytest.mark.parametrize("strategy", ["single", "ddp", "fsdp"])
def test_sharded_and_checkpointed_blocks_train_as_plain_ones(
    dataset: Dataset, tmp_path: Path, strategy: str
) -> None:
    def losses(**changes: Any) -> float:
        plan = TINY_CONFIG.model_copy(update={"strategy": strategy, "blocks": ["Linear"], **changes})
        directory = tmp_path / str(len(list(tmp_path.iterdir())))
        found = train_tiny(TinyTask(), dataset, plan, directory, ranks=1 if strategy == "single" else 2)
        value: float = found[0]["metrics"]["validation/loss"]
        return value

    assert losses(activation_checkpointing=True) == losses()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_model_trains_to_the_same_loss_and_is_saved_under_the_same_names(
    dataset: Dataset, tmp_path: Path
) -> None:
    plans = {
        name: TINY_CONFIG.model_copy(update={"compile": name == "compiled"}) for name in ("plain", "compiled")
    }
    found = {name: train_here(Compilable(), dataset, plan, tmp_path / name) for name, plan in plans.items()}
    saves = {name: newest_valid(tmp_path / name) for name in plans}
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1, "nothing was compiled"
    assert saves["plain"] is not None and saves["compiled"] is not None
    assert saves["compiled"].tensors.keys() == saves["plain"].tensors.keys()
    expected = found["plain"]["metrics"]["validation/loss"]
    assert found["compiled"]["metrics"]["validation/loss"] == pytest.approx(expected, rel=1e-4)


class Plain(nn.Module):
    """The tiny model without its memory of rows, which no graph can hold."""

    seen: tuple[()] = ()

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names, self.hidden, self.out = model.names, model.hidden, model.out

    def forward(self, batch: Any) -> Tensor:
        inputs = torch.stack([batch[name].float() for name in self.names], dim=1)  # [rows, features]
        return self.out(torch.relu(self.hidden(inputs))).squeeze(1)


class Compilable(TinyTask):
    def build_model(self, features: Any) -> nn.Module:
        return Plain(super().build_model(features))
