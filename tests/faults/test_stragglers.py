"""R5: a slow rank: the run goes on, and a warning names the rank and its host, and says data or compute."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sparktrain.config import TrainConfig
from sparktrain.dataset import Dataset, open_dataset
from sparktrain.dataset.read import RowGroupReader
from sparktrain.terminal import TrainingProgress
from sparktrain.testing import run_ranks, write_tiny_dataset
from sparktrain.training import pace
from sparktrain.training.loop import Loop
from sparktrain.world import World
from tests.fixtures.tiny_task import TINY_CONFIG, TinyTask

pytestmark = [pytest.mark.ranks, pytest.mark.slow, pytest.mark.timeout(240)]

PERIOD_SECONDS = 0.5  # instead of five, to see in seconds what a training sees in half a minute


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("datasets") / "tiny"
    return write_tiny_dataset(path, 32 * 100, validation_rows=64, rows_per_row_group=8)


@contextmanager
def slow_from(kind: str, culprit: bool) -> Iterator[list[int]]:
    """Make this rank slow in one way; counts how often that was felt."""
    felt: list[int] = []
    if not culprit:
        yield felt
        return
    with pytest.MonkeyPatch.context() as patch:
        if kind == "forward":
            from tests.fixtures.tiny_task import TinyModel

            forward = TinyModel.forward

            def sleeping(self: Any, batch: Any) -> Any:
                felt.append(1)
                time.sleep(0.03)
                return forward(self, batch)

            patch.setattr(TinyModel, "forward", sleeping)
        if kind == "reader":
            read = RowGroupReader.read_table

            def slow_read(self: Any, *args: Any, **options: Any) -> Any:
                felt.append(1)
                time.sleep(0.06)
                return read(self, *args, **options)

            patch.setattr(RowGroupReader, "read_table", slow_read)
        yield felt


def rank_of(kind: str, culprit: int, dataset: Path, train: TrainConfig, directory: Path) -> dict[str, Any]:
    world = World.from_environment()
    pace.PERIOD_SECONDS = PERIOD_SECONDS
    events: list[dict[str, Any]] = []
    with slow_from(kind, culprit == world.rank) as felt:
        loop = Loop(
            TinyTask(), open_dataset(dataset), train, world, directory, lambda e: events.append({**e})
        )
        outcome = loop.run(None)
    said = [event for event in events if event["kind"] == "straggler"]
    fractions = [
        e["values"]["train/straggler_fraction"] for e in events if "train/loss" in e.get("values", {})
    ]
    return {"said": said, "felt": len(felt), "steps": outcome.steps, "fractions": fractions}


@pytest.mark.parametrize(
    ("ranks", "culprit", "kind", "cause"),
    [
        (2, 1, "forward", "compute"),
        (2, 0, "forward", "compute"),
        (3, 1, "forward", "compute"),
        (2, 1, "reader", "data"),
        (3, 0, "reader", "data"),
    ],
)
def test_the_slow_rank_is_named_once_with_its_cause(
    dataset: Dataset, tmp_path: Path, ranks: int, culprit: int, kind: str, cause: str
) -> None:
    train = TINY_CONFIG.model_copy(update={"ranks": ranks, "epochs": 2, "num_lanes": 8})
    found = run_ranks(ranks, rank_of, kind, culprit, dataset.path, train, tmp_path, timeout_seconds=180)
    assert found[culprit]["felt"] > 50, "the fault fired"
    assert [len(rank["said"]) for rank in found] == [int(rank == culprit) for rank in range(ranks)]
    [said] = found[culprit]["said"]
    assert (said["rank"], said["host"], said["cause"]) == (culprit, socket.gethostname(), cause)
    assert said["factor"] > 1.5 and said["seconds"] > 0.01
    assert {rank["steps"] for rank in found} == {200}, "the run went on"
    assert max(found[0]["fractions"]) > 0.2


def test_even_ranks_are_not_spoken_of(dataset: Dataset, tmp_path: Path) -> None:
    train = TINY_CONFIG.model_copy(update={"ranks": 2, "epochs": 10, "num_lanes": 8})
    found = run_ranks(2, rank_of, "none", -1, dataset.path, train, tmp_path, timeout_seconds=180)
    assert [rank["said"] for rank in found] == [[], []]


def starved_rank(dataset: Path, train: TrainConfig, directory: Path) -> dict[str, Any]:
    """Train on a processor each; rank 1 shares its own with a busy process, at a lower priority."""
    import torch

    world = World.from_environment()
    processor = sorted(os.sched_getaffinity(0))
    rival = None
    if world.rank == 0:
        os.sched_setaffinity(0, processor[1:])
    else:
        os.sched_setaffinity(0, processor[:1])
        os.nice(15)  # a sixth of what a process at 7 gets
        program = f"import os; os.sched_setaffinity(0, [{processor[0]}])\nwhile True: pass"
        rival = subprocess.Popen([sys.executable, "-c", program])
        os.setpriority(os.PRIO_PROCESS, rival.pid, 7)

    class Busy(TinyTask):
        def loss(self, outputs: Any, target: Any) -> Any:
            weight = torch.ones(200, 200)
            for _ in range(10):
                weight = weight @ weight.clamp(0, 1e-3)
            return super().loss(outputs, target) + weight.mean() * 0

    pace.PERIOD_SECONDS = PERIOD_SECONDS
    events: list[dict[str, Any]] = []
    try:
        loop = Loop(Busy(), open_dataset(dataset), train, world, directory, lambda e: events.append({**e}))
        began, used = time.monotonic(), time.process_time()
        outcome = loop.run(None)
        got = (time.process_time() - used) / (time.monotonic() - began)
    finally:
        if rival is not None:
            rival.kill()
            rival.wait()
    said = [event for event in events if event["kind"] == "straggler"]
    return {"said": said, "steps": outcome.steps, "processor": got}


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two processors")
def test_a_starved_rank_is_named_as_slow_in_computing(dataset: Dataset, tmp_path: Path) -> None:
    train = TINY_CONFIG.model_copy(update={"ranks": 2, "epochs": 3, "num_lanes": 8})
    found = run_ranks(2, starved_rank, dataset.path, train, tmp_path, timeout_seconds=180)
    said = [event for rank in found for event in rank["said"] if not event["is_over"]]
    assert said, found
    assert {(event["rank"], event["cause"]) for event in said} == {(1, "compute")}
    assert {rank["steps"] for rank in found} == {300}


def test_people_read_who_is_slow_and_where_to_look() -> None:
    console = Console(file=io.StringIO(), width=300)
    event = {"kind": "straggler", "rank": 3, "host": "worker-7", "seconds": 0.25, "factor": 2.4}
    with TrainingProgress(console) as progress:
        progress({**event, "cause": "data", "is_over": False})
        progress({**event, "cause": "data", "is_over": True})
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "Rank 3 on worker-7 is slow" in text and "2.4 times as long, 0.250 s more" in text
    assert "waits for data" in text and "keeps up with the others again" in text
