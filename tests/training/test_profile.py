from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sparktrain.config import parse_config
from sparktrain.errors import ConfigError
from sparktrain.testing import write_tiny_dataset
from sparktrain.training.loop import Loop
from sparktrain.training.profile import StepProfiler
from sparktrain.world import World
from tests.fixtures.tiny_task import TINY_CONFIG, TinyTask


def train(profiler: StepProfiler, steps: range) -> None:
    for number in steps:
        profiler.step(number)
        with torch.profiler.record_function(f"step {number}"):
            torch.ones(8, 8) @ torch.ones(8, 8)
    profiler.close()


def recorded(folder: Path) -> dict[str, set[str]]:
    """Names of what each trace holds, by file."""
    found: dict[str, Any] = {}
    for file in folder.glob("*"):
        trace = json.loads(gzip.decompress(file.read_bytes()))
        found[file.name] = {event.get("name") for event in trace["traceEvents"]}
    return found


def test_the_steps_that_were_asked_for_are_traced_and_no_others(tmp_path: Path) -> None:
    train(StepProfiler((3, 4), World(attempt=2), tmp_path / "profile"), range(1, 8))
    [(name, events)] = recorded(tmp_path / "profile").items()
    assert name == "steps-000000003-000000004-attempt-002.json.gz"
    assert {event for event in events if event.startswith("step ")} == {"step 3", "step 4"}
    assert "aten::matmul" in events


def test_a_training_that_ends_among_them_leaves_what_it_made(tmp_path: Path) -> None:
    train(StepProfiler((3, 9), World(), tmp_path / "profile"), range(1, 5))
    [events] = recorded(tmp_path / "profile").values()
    assert {event for event in events if event.startswith("step ")} == {"step 3", "step 4"}


@pytest.mark.parametrize(
    ("steps", "world", "made"),
    [
        (None, World(), range(1, 5)),
        ((2, 3), World(rank=1, size=2), range(1, 5)),
        ((2, 3), World(), range(3, 9)),  # it goes on from step 2
        ((7, 8), World(), range(1, 5)),
    ],
)
def test_otherwise_nothing_is_recorded(
    tmp_path: Path, steps: tuple[int, int] | None, world: World, made: range
) -> None:
    train(StepProfiler(steps, world, tmp_path / "profile"), made)
    assert not (tmp_path / "profile").exists()


def test_a_trace_that_can_not_be_written_ends_no_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "profile").write_text("no folder")
    train(StepProfiler((1, 1), World(), tmp_path / "profile"), range(1, 4))
    assert "no trace in" in caplog.text


@pytest.mark.parametrize("steps", [[3, 2], [0, 1], [1]])
def test_steps_that_make_no_sense_are_refused(steps: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"train\.profile_steps"):
        parse_config({"pipeline": "flight_delays", "train": {"profile_steps": steps}})


def test_the_loop_traces_its_steps(tmp_path: Path) -> None:
    dataset = write_tiny_dataset(tmp_path / "tiny", 330, validation_rows=50)
    profiler = StepProfiler((3, 5), World(), tmp_path / "profile")
    (tmp_path / "saves").mkdir()
    loop = Loop(
        TinyTask(), dataset, TINY_CONFIG, World(), tmp_path / "saves", lambda event: None, profiler=profiler
    )
    loop.run(None)
    [trace] = (tmp_path / "profile").glob("*")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    updates = [event for event in events if event.get("name") == "Optimizer.step#AdamW.step"]
    assert len(updates) == 3
