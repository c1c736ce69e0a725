"""The documents do what they say: their code runs, and what they name exists."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
import yaml
from pyspark.sql import SparkSession

import sparktrain
from sparktrain import dataset, features, preparation
from sparktrain.config import TrainConfig, all_keys, parse_config
from sparktrain.dataset import Dataset, Stream
from sparktrain.new_pipeline.sizes import sizes_for
from sparktrain.testing import TargetKind, write_tiny_dataset
from sparktrain.training.loop import Loop
from sparktrain.training.module_task import LOSSES
from sparktrain.training.task import TrainTask
from sparktrain.world import World
from tests.fixtures.saves import save
from tests.fixtures.write_petastorm_dataset import DATASET

ROOT = Path(__file__).resolve().parents[1]
MIGRATION = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", MIGRATION, re.DOTALL)


def cells() -> list[str]:
    """What the tables say about us: all but their first column."""
    rows = re.findall(r"^\| (.*) \|$", MIGRATION, re.MULTILINE)
    return [cell for row in rows for cell in row.split(" | ")[1:]]


@pytest.mark.spark
@pytest.mark.timeout(240)
def test_the_code_of_the_migration_runs(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"spark": spark, "__name__": "migration"}
    code = blocks("python")
    assert len(code) == 5
    for block in code:
        exec(block.replace("file:///data/rows", DATASET.as_uri()), names)
        if "Gang(" in block:
            assert len(names["losses"]) == 2 and max(names["losses"]) < 1.0, "it has learnt"
    assert names["state"]["epoch"] == 2
    assert names["table"].column_names == ["row_id", "price"]


def test_the_settings_of_the_migration_exist() -> None:
    [block] = blocks("yaml")
    assert yaml.safe_load(block) == {"data": {"reader": "petastorm"}}
    sections = {key for key in all_keys() if "." not in key}
    named = set(re.findall(r"`([a-z]+\.[a-z_]+)[=:`]", MIGRATION))
    assert {"train.checkpoint_every_steps", "prepare.num_parts", "data.reader"} <= named
    assert not [key for key in named if key.split(".")[0] in sections and key not in all_keys()]


def test_the_calls_of_the_migration_exist() -> None:
    homes = (sparktrain, dataset, features, preparation, Dataset, Stream)
    called = set(re.findall(r"`([A-Za-z_]+)\(", " ".join(cells())))
    assert {"prepare", "read_petastorm", "stream", "mix", "Vector", "to_arrow"} <= called
    assert not [name for name in called if not any(hasattr(home, name) for home in homes)]


def test_the_arguments_of_the_migration_exist() -> None:
    functions = (Dataset.stream, sparktrain.prepare, sparktrain.open_dataset)
    known = {name for function in functions for name in inspect.signature(function).parameters}
    given = set(re.findall(r"`(?:prepare\()?([a-z_]+)=\)?`", " ".join(cells())))
    assert {"world", "num_lanes", "columns", "weight"} <= given
    assert given <= known


def test_the_readme_links_to_every_document() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"](docs/{file.name})" in readme for file in (ROOT / "docs").glob("*.md"))


def test_the_code_of_streaming_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out" / "datasets").mkdir(parents=True)
    made = write_tiny_dataset(tmp_path / "out" / "datasets" / "flight_delays", 5000, num_numeric=3)
    assert made.num_rows("train") == 5000
    text = (ROOT / "docs" / "streaming.md").read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(code) == 2
    names: dict[str, Any] = {}
    for block in code:
        exec(block.replace('batch["late"]', 'batch["label"]'), names)
    assert names["x"].shape == (2048, 3) and names["state"]["epoch"] == 1
    assert set(names["which"].tolist()) == {0}
    given = re.findall(r"`([a-z_]+)=", text)
    known = {*inspect.signature(Dataset.stream).parameters, *inspect.signature(dataset.mix).parameters}
    assert set(given) - known <= {"batch_size"}


def test_the_code_of_checkpoints_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "out" / "runs" / "flight_delays-20260101-120000-abcdef"
    save(run / "checkpoints", 120)
    text = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(code) == 2
    names: dict[str, Any] = {}
    for block in code:
        exec(block, names)
    exported = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert exported.keys() == names["weights"].keys() >= {"0.weight", "1.running_mean"}
    assert all(torch.equal(exported[name], tensor) for name, tensor in names["weights"].items())
    assert exported["0.weight"].unique().tolist() == [120.0]
    settings = set(re.findall(r"`((?:train|storage)\.[a-z_]+)`", text))
    assert {"storage.checkpoints", "train.async_checkpoints"} <= settings <= set(all_keys())


def test_the_settings_of_reliability_exist() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    [block] = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    given = yaml.safe_load(block)["train"]
    assert len(given) == 6 and parse_config({"pipeline": "flight_delays", "train": given})
    own = {name: TrainConfig.model_fields[name].default for name in given if name != "checkpoint_every_steps"}
    assert {name: given[name] for name in own} == own, "each stands there with its default"


def test_the_settings_of_training_exist() -> None:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:train|data)\.[a-z_.]+)`", text))
    assert {"train.strategy", "train.ddp.compression", "train.blocks"} <= named <= set(all_keys())
    metrics = set(re.findall(r"`(train/[a-z_]+)`", text))
    assert {"train/loss", "train/communication_fraction", "train/data_headroom"} <= metrics
    source = (ROOT / "sparktrain" / "training" / "window.py").read_text(encoding="utf-8")
    assert metrics == set(re.findall(r'"(train/[a-z_]+)"', source)), "each metric is told of"
    rows = re.findall(r"^\| `([a-z_]+)`", text, re.MULTILINE)
    strategies = get_args(TrainConfig.model_fields["strategy"].annotation)
    assert set(rows) == set(strategies), "each strategy is told of"


def code_of_tasks() -> list[str]:
    text = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_the_tasks_of_the_document_learn(tmp_path: Path) -> None:
    names: dict[str, Any] = {"__name__": "tasks"}
    code = code_of_tasks()
    assert len(code) == 6
    for number, block in enumerate(code):
        exec(compile(block, "docs/tasks.md", "exec", dont_inherit=True), names)
        task, is_embedded = names["Task"](), "category_0" in block
        kinds: list[TargetKind] = [*(["regression"] if number in (1, 4) else ["binary"])]
        kinds += ["regression"] if "label_1" in block else []
        columns = (
            {"num_numeric": 2, "num_categorical": 1}
            if is_embedded
            else {"num_numeric": 3, "num_categorical": 0}
        )
        rows = {"rows": 640, "validation_rows": 64, "test_rows": 64}
        made = write_tiny_dataset(tmp_path / f"data-{number}", **rows, **columns, target_kinds=kinds)
        config = TrainConfig(ranks=1, epochs=6, global_batch_size=32, num_lanes=4, learning_rate=0.02)
        best = next(iter(task.metrics()))
        plan = config.model_copy(update={"best_metric": best})
        loop = Loop(task, made, plan, World(), tmp_path / f"run-{number}", lambda _: None)
        found = loop.run(None).metrics[f"test/{best}"]
        assert found > (0.7 if best == "r2" else 0.85), block
        if number == 4:
            assert set(loop.updates.optimizers) == {"embedding", "linear"}


def test_the_losses_of_the_document_are_all_there_are() -> None:
    text = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
    rows = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| `")]
    assert re.findall(r"`([a-z0-9_]+)`", " ".join(rows)) == [*LOSSES]
    assert set(re.findall(r"`(train\.[a-z_]+)[`:]", text)) - {"train.model"} <= set(all_keys())


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_every_key_that_a_document_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    sections = {key for key in all_keys() if "." not in key} - {"spark", "pipeline", "resume"}
    named = set(re.findall(rf"(?<![\w./])((?:{'|'.join(sections)})\.[a-z_]+(?:\.[a-z_]+)*)(?=[=:`\s])", text))
    free = ("prepare.source.", "score.source.", "train.model.", "prepare.split.fractions.")
    others = {key for key in named if not key.endswith((".py", ".yaml", ".read"))}
    assert not {key for key in others if key not in all_keys() and not key.startswith(free)}
    for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL):
        given = yaml.safe_load(block)
        given["spark"] = {"master": "local[64]"}  # of as many slots as ranks are asked for
        if given.get("data", {}).get("reader") != "petastorm" and given.get("pipeline") != "orders":
            parse_config({"pipeline": "flight_delays", **given})


@pytest.mark.spark
@pytest.mark.timeout(300)
def test_the_pipeline_of_own_data_prepares_and_learns(spark: SparkSession, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "own_data.md").read_text(encoding="utf-8")
    [data, model] = re.findall(r"```python\n# pipelines/orders/\w+\.py\n(.*?)```", text, re.DOTALL)
    [conf] = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    given = yaml.safe_load(conf)
    assert parse_config({**given, "pipeline": "flight_delays"}).prepare.source == {
        "path": "/data/orders.parquet"
    }
    random, rows = np.random.default_rng(0), 4000
    amount = random.lognormal(3, 1, rows) - 0.5
    colours = random.choice(["red", "green", "blue"], rows)
    orders = pd.DataFrame(
        {
            "order_id": np.arange(rows),
            "amount": amount,
            "weight_kg": np.where(random.random(rows) < 0.2, np.nan, random.random(rows)),
            "colour": colours,
            "customer": [None if number == 7 else f"customer {number % 900}" for number in range(rows)],
            "sold_at": pd.Timestamp("2025-03-01")
            + pd.to_timedelta(random.integers(0, 10**7, rows), unit="s"),
            "returned": amount * np.where(colours == "red", 0.4, 1.0) > 15,
        }
    )
    orders["sold_at"] = orders["sold_at"].astype("datetime64[ns]")
    orders.to_parquet(tmp_path / "orders.parquet")
    assert pq.read_schema(tmp_path / "orders.parquet").field("sold_at").type == pa.timestamp("ns")
    names: dict[str, Any] = {"__name__": "orders"}
    exec(compile(data, "docs/own_data.md", "exec", dont_inherit=True), names)
    exec(compile(model, "docs/own_data.md", "exec", dont_inherit=True), names)
    made = sparktrain.prepare(
        names["read"](spark, tmp_path, path=str(tmp_path / "orders.parquet")),
        names["FEATURES"],
        names["TARGET"],
        root=tmp_path / "out",
        rules=names["RULES"],
        key=names["KEY"],
    )
    assert sum(made.manifest.quarantined.values()) == 1 + int((amount <= 0).sum())
    config = TrainConfig(ranks=1, epochs=10, global_batch_size=64, num_lanes=4, learning_rate=0.02)
    found = Loop(names["Task"](), made, config, World(), tmp_path / "run", lambda _: None).run(None).metrics
    assert found["test/auroc"] > 0.7


def test_own_data_promises_a_reference_only_where_init_writes_one() -> None:
    text = (ROOT / "docs" / "own_data.md").read_text(encoding="utf-8")
    written = {
        kind: sizes_for(1000, kind)["train"]["reference"] for kind in ("binary", "multiclass", "regression")
    }
    assert written == {"binary": "logistic_regression", "multiclass": "none", "regression": "none"}
    assert "With one binary target a logistic regression" in text and "`train.reference: none`" in text
    assert "task" in get_args(TrainConfig.model_fields["reference"].annotation)
    assert callable(TrainTask.reference), "the method that a Task of one's own has for it"


@pytest.mark.parametrize("page", ["databricks.md", "migration.md", "tuning.md"])
def test_code_that_needs_what_is_not_here_is_python_all_the_same(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    for block in re.findall(r"```py\n(.*?)```", text, re.DOTALL):
        compile(block, page, "exec", dont_inherit=True)
        called = set(re.findall(r"\bsparktrain\.(\w+)\(", block))
        assert all(hasattr(sparktrain, name) for name in called)
