"""The Task for rows of columns: what it learns, what it refuses, and how it travels with a model."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from sparktrain.dataset import open_dataset
from sparktrain.features import FittedFeatures, FittedNumeric, FittedTarget
from sparktrain.gang.supervise import _check_class
from sparktrain.runs.package import copy_own, copy_pipeline, find_package
from sparktrain.scoring.model import pipeline_module
from sparktrain.tabular.model import Kind, Task
from sparktrain.testing import write_tiny_dataset
from sparktrain.training.loop import Loop
from sparktrain.world import World
from tests.fixtures.tiny_task import TINY_CONFIG

PACKAGE = "sparktrain.tabular"


@pytest.mark.parametrize(
    ("kind", "metric", "at_least"),
    [("binary", "auroc", 0.95), ("multiclass", "accuracy", 0.8), ("regression", "r2", 0.9)],
)
def test_it_learns_each_kind_of_target(tmp_path: Path, kind: Kind, metric: str, at_least: float) -> None:
    path = write_tiny_dataset(tmp_path / "tiny", 1000, validation_rows=300, target_kinds=[kind]).path
    config = TINY_CONFIG.model_copy(update={"epochs": 4, "best_metric": metric})
    task = Task(kind, hidden_sizes=(16,), dropout=0.0)
    (tmp_path / "run").mkdir()
    loop = Loop(task, open_dataset(path), config, World(), tmp_path / "run", lambda _: None)
    assert loop.run(None).metrics[f"validation/{metric}"] > at_least


def of_kind(kind: str, classes: tuple[str, ...] = ()) -> FittedFeatures:
    target: Any = {"name": "label", "column": "label", "kind": kind, "input_type": "long"}
    number = FittedNumeric(name="x", column="x", input_type="double", fill=0.0)
    return FittedFeatures(features=(number,), targets=(FittedTarget(**target, classes=classes),))


def test_a_regression_is_told_in_the_units_of_its_target() -> None:
    task = Task("regression", target_mean=1000.0, target_scale=50.0)
    outputs = torch.tensor([0.0, 1.0, -2.0])
    assert task.predict(outputs).tolist() == [1000.0, 1050.0, 900.0]
    assert task.loss(outputs, torch.tensor([1000.0, 1000.0, 1000.0])).tolist() == [0.0, 1.0, 4.0]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="`label` is regression and kind is binary: set "):
        Task().build_model(of_kind("regression"))
    with pytest.raises(ValueError, match="every row has the `label` 3: there is nothing to learn"):
        Task("multiclass").build_model(of_kind("multiclass", ("3",)))
    with pytest.raises(ValueError, match="it is one of binary, multiclass, regression"):
        Task("ranking")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dropout is 1"):
        Task(dropout=1)
    with pytest.raises(ValueError, match="target_scale is 0"):
        Task(target_scale=0)


def test_a_model_of_it_is_loaded_from_plain_arguments_by_the_sparktrain_that_is_at_work(
    tmp_path: Path,
) -> None:
    task = Task("multiclass", hidden_sizes=(5,), scaling={"v": ([1.0], [2.0])})
    _check_class(task)
    assert copy_pipeline(PACKAGE, find_package(PACKAGE), tmp_path / "code") == []
    assert (copy_own(tmp_path / "code") / "tabular" / "network.py").is_file()
    arguments = json.loads(json.dumps(asdict(task)))
    before = sys.modules["sparktrain.tabular.model"]
    with pipeline_module(PACKAGE, tmp_path / "code") as module:
        assert module is before
        model = module.Task(**arguments).build_model(of_kind("multiclass", ("0", "1", "2")))
    assert sys.modules["sparktrain.tabular.model"] is before
    assert model({"x": torch.zeros(7)}).shape == (7, 3)
