"""Training without Spark: one process, and those of torchrun, by the same command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.trainings import EPOCHS, STEPS_PER_EPOCH, tiny_workplace

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

TRAIN = ("-m", "sparktrain.cli", "train", "conf/tiny.yaml", "spark.master=none")
STEPS = EPOCHS * STEPS_PER_EPOCH
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node=2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_workplace(tmp_path_factory.mktemp("user"))


def python(folder: Path, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    no_java = {name: value for name, value in os.environ.items() if name != "JAVA_HOME"} | {
        "PATH": "/nowhere"
    }
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=no_java,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def steps_seen(result: dict[str, Any]) -> set[int]:
    """Steps whose loss the ranks' events tell."""
    files = (Path(result["run_dir"]) / "events").glob("*.jsonl")
    events = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return {event["step"] for event in events if "train/loss" in event.get("values", {})}


def test_one_process_trains_without_java(folder: Path) -> None:
    ended = python(folder, [*TRAIN, "train.ranks=1", "--json"])
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout)
    assert (result["status"], result["world_size"], result["steps"]) == ("finished", 1, STEPS)
    assert max(steps_seen(result)) == STEPS


def test_the_processes_of_torchrun_are_the_ranks_and_the_first_reports(folder: Path) -> None:
    ended = python(folder, [*TORCHRUN, *TRAIN, "--json"])
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout)  # one line: only one of the two has spoken
    assert (result["status"], result["world_size"], result["steps"]) == ("finished", 2, STEPS)
    predictions = sorted(file.name for file in (Path(result["run_dir"]) / "predictions").iterdir())
    assert predictions == ["test-rank-000.parquet", "test-rank-001.parquet"]


def test_another_number_of_processes_than_ranks_is_refused_with_the_command_that_fits(folder: Path) -> None:
    ended = python(folder, [*TRAIN, "train.ranks=2"])
    assert ended.returncode == 2
    assert "train.ranks: 2 given, without Spark 1 started" in ended.stderr
    assert "torchrun --nproc-per-node=2" in ended.stderr


def test_what_needs_spark_says_so(folder: Path) -> None:
    ended = python(folder, ["-m", "sparktrain.cli", "run", "conf/tiny.yaml", "spark.master=none"])
    assert ended.returncode == 2
    assert "spark.master: none given; only `sparktrain train` works without Spark" in ended.stderr


def test_an_error_names_rank_step_and_the_line_as_in_a_gang(folder: Path) -> None:
    model = folder / "pipelines" / "tiny" / "model.py"
    original = model.read_text()
    model.write_text(original.replace("    def forward(self, batch", "    def forward(self, missing, batch"))
    try:
        ended = python(folder, [*TRAIN, "train.ranks=1"])
    finally:
        model.write_text(original)
    assert ended.returncode == 4
    assert "rank 0 on " in ended.stderr and "at step 1 failed: TypeError" in ended.stderr
    assert "Traceback" not in ended.stderr
