"""The README does what it says: its tree names every file, its own-dataset example runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import sparktrain
from pipelines.flight_delays import data, model
from sparktrain.testing import write_tiny_dataset
from tests.fixtures.arrow import to_arrow
from tests.fixtures.command import SMALL, write_flights
from tests.fixtures.object_store import ENVIRONMENT, object_store

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

_TUMOURS = "test_readme.py::test_the_own_dataset_of_the_readme_trains_and_scores"
_INIT = "test_readme.py::test_the_own_data_of_the_readme_is_trained_registered_and_scored"
RUN_ELSEWHERE = {
    "make run": "integration/test_whole_job.py::test_the_result_has_the_promised_keys",
    "make test": "",  # is what runs this
    "sparktrain append conf/flight_delays.yaml prepare.source.directory=…": (
        "integration/test_append.py::test_new_flights_are_added_and_their_drift_is_told"
    ),
    "sparktrain run conf/flight_delays.yaml": (
        "integration/test_whole_job.py::test_the_result_has_the_promised_keys"
    ),
    "sparktrain run conf/tumours.yaml": _TUMOURS,
    "sparktrain run conf/digits.yaml": "integration/test_digits.py::test_digits_are_read_with_few_errors",
    "make venv && source .venv/bin/activate": "",  # made this environment
    "sparktrain init wine wine.parquet --target target": _INIT,
    "sparktrain run conf/wine.yaml": _INIT,
}
"""Lines of the README that another test runs than `integration/test_readme_commands.py`, and which."""

BLOCKS = {
    "import sparktrain": "test_readme.py::test_the_python_of_the_readme_prepares_trains_and_scores",
    "from sparktrain import TorchClassifier": "test_readme.py::test_the_classifier_of_the_readme_classifies",
    "# pipelines/tumours/data.py": _TUMOURS,
    "# pipelines/tumours/model.py": _TUMOURS,
    "# conf/tumours.yaml": _TUMOURS,
    "dataset = sparktrain.open_dataset(": (
        "test_readme.py::test_the_dataset_in_an_object_store_of_the_readme_streams"
    ),
}
"""Blocks of code by how they begin, and the test that runs each."""


def fenced_blocks() -> list[str]:
    return re.findall(r"^```\w+\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def lines_of_shell() -> list[str]:
    """What the README tells to type, without comments and with single spaces."""
    text = re.sub(r"^```.*?^```", "", README.split("## What is where")[0], flags=re.DOTALL | re.MULTILINE)
    lines = re.findall(r"^    ((?:sparktrain|make|torchrun|spark-submit) .*)$", text, re.MULTILINE)
    return [" ".join(line.partition(" #")[0].split()) for line in lines]


def tree_in_readme() -> set[str]:
    """Paths that the README's tree names; a folder's ends with a slash."""
    section = README.split("## What is where")[1].split("\n## ")[0]
    parents: list[str] = []
    found = set()
    for line in re.findall(r"^    ( *)(\S+)", section, re.MULTILINE):
        depth, name = len(line[0]) // 2, line[1]
        parents = [*parents[:depth], name]
        found.add("".join(parents))
    return found - {"tests/"}


def test_the_tree_names_every_room() -> None:
    folders = [f"{name}/" for name in ("sparktrain", "pipelines", "jobs", "conf", "notebooks")]
    listed = subprocess.run(
        ["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True, check=True
    )
    there = set(folders)
    for file in listed.stdout.split():
        folder, name, *below = file.split("/")
        if name not in ("__init__.py", "py.typed"):
            there.add(f"{folder}/{name}/" if below else f"{folder}/{name}")
    assert tree_in_readme() == there


def test_every_make_target_in_the_readme_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:^    |`)make ([a-z0-9-]+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_command_in_the_readme_exists() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sparktrain.cli", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    for command in re.findall(r"^    sparktrain ([a-z]+) ", README, re.MULTILINE):
        assert command in done.stdout


def test_everything_that_the_readme_tells_to_run_is_run_by_a_test() -> None:
    assert set(RUN_ELSEWHERE) <= set(lines_of_shell())
    begin = {block: [one for one in BLOCKS if block.startswith(one)] for block in fenced_blocks()}
    assert all(len(found) == 1 for found in begin.values()) and len(begin) == len(BLOCKS)
    for place in {*RUN_ELSEWHERE.values(), *BLOCKS.values()} - {""}:
        file, _, name = place.partition("::")
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), place


@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_python_of_the_readme_prepares_trains_and_scores(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it stands but for the settings, which the README says may be changed."""
    for folder in ("pipelines", "conf"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path)
    flights = data.read(spark, tmp_path, directory=str(write_flights(tmp_path / "flights")))
    block = next(block for block in fenced_blocks() if block.startswith("import sparktrain"))
    small = block.replace('flight_delays.yaml")', f'flight_delays.yaml", {[*SMALL]!r})')
    assert small != block
    names: dict[str, Any] = {
        "df": flights,
        "data": data,
        "model": model,
        "function": "of {}".format,
        "argument": 2,
    }
    exec(small, names)
    assert names["result"].status == "finished" and names["result"].metrics["test/auroc"] > 0.6
    rows = to_arrow(names["scored"].select("probability")).to_pylist()
    assert len(rows) == flights.count() and all(0 < row["probability"] < 1 for row in rows)


@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_own_data_of_the_readme_is_trained_registered_and_scored(tmp_path: Path) -> None:
    """In an empty folder, as it stands: a file that nobody prepared for; only the target is named."""
    section = README.split("## Your own data")[1].split("```")[0]
    lines = re.findall(r"^    ((?:python|sparktrain) .*?)(?:   #.*)?$", section, re.MULTILINE)
    assert [line.split()[0] for line in lines] == ["python", "sparktrain", "sparktrain"]
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for line in lines:
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=tmp_path,
            env={**os.environ, "PATH": tools},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    [result] = [json.loads(file.read_bytes()) for file in (tmp_path / "out" / "runs").glob("*/result.json")]
    assert result["metrics"]["test/accuracy"] > 0.8
    assert result["model_uri"] == "models:/wine/1"
    assert result["score"]["rows"] == 178


@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_classifier_of_the_readme_classifies(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flights = [
        (float(i % 97), float(i % 24), "AA" if i % 3 else "UA", float(i % 24 > 15)) for i in range(4000)
    ]
    df = spark.createDataFrame(flights, "distance double, hour double, carrier string, late double")
    names: dict[str, Any] = {"df": df}
    exec(next(block for block in fenced_blocks() if block.startswith("from sparktrain import")), names)
    rows = names["classified"].select("late", "rawPrediction", "probability", "prediction").collect()
    assert len(rows) == 4000
    assert sum(row["late"] == row["prediction"] for row in rows) > 3600
    assert all(abs(sum(row["probability"]) - 1) < 1e-6 and len(row["rawPrediction"]) == 2 for row in rows)


def test_the_dataset_in_an_object_store_of_the_readme_streams(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    made = write_tiny_dataset(tmp_path / "flights", 20_000, num_numeric=2, num_categorical=0)
    block = next(block for block in fenced_blocks() if block.startswith("dataset = sparktrain.open_dataset("))
    with object_store() as server:
        uri = server.upload(made.path, "flights")
        names: dict[str, Any] = {"sparktrain": sparktrain}
        code = block.replace("s3://bucket/flights", uri).replace("/mnt/nvme", str(tmp_path))
        assert uri in code and str(tmp_path) in code
        exec(code, names)
        batches = list(names["batches"])
    local = list(made.stream("train", 8192))
    assert len(batches) == len(local) == 2
    for theirs, ours in zip(batches, local, strict=True):
        assert all(torch.equal(theirs[name], ours[name]) for name in ours)
    assert any((tmp_path / "parts").rglob("*"))


@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_own_dataset_of_the_readme_trains_and_scores(tmp_path: Path) -> None:
    blocks = re.findall(r"```\w+\n# ((?:pipelines|conf)/\S+)\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 3
    shutil.copytree(ROOT / "pipelines", tmp_path / "pipelines", ignore=shutil.ignore_patterns("__pycache__"))
    for name, content in blocks:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "sparktrain.cli", "run", "conf/tumours.yaml", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=220,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["metrics"]["test/auroc"] > 0.9
    assert result["score"]["rows"] == 569
