"""R7, R8: the driver is killed, interrupted, terminated: no process is left, and the run can go on."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.fixtures.command import ROOT, Running, Workplace
from tests.fixtures.fault_table import FaultRow
from tests.fixtures.trainings import EPOCHS, STEPS_PER_EPOCH, Training

pytestmark = [pytest.mark.spark, pytest.mark.ranks, pytest.mark.slow, pytest.mark.timeout(400)]

SLOW = "train.model.pause_seconds=0.1"
ENDLESS = ("train.epochs=1000", "train.model.stubborn=true")


@pytest.fixture
def place(tiny: Path, tmp_path: Path) -> Workplace:
    return Workplace(tiny, tmp_path, {"PYTHONPATH": str(ROOT)})


@pytest.fixture
def new_root(tiny: Path, tmp_path: Path) -> Callable[[str], Path]:
    def create(name: str) -> Path:
        shutil.copytree(tiny / "out", tmp_path / name)
        return tmp_path / name

    return create


def start(place: Workplace, root: Path, *settings: str) -> Running:
    return place.start("train", "conf/tiny.yaml", f"storage.root={root}", SLOW, *settings, "--json")


def wait_for_checkpoint(running: Running, root: Path, timeout_seconds: float = 150.0) -> Path:
    """Return the run directory, once a checkpoint lies in it."""
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        if found := list(root.glob("runs/*/checkpoints/step-*/manifest.json")):
            return found[0].parents[2]
        if running.process.poll() is not None:
            pytest.fail(f"ended before its first checkpoint: {running.wait()}")
        time.sleep(0.05)
    running.kill()
    pytest.fail("no checkpoint in time")


def test_a_killed_driver_leaves_no_rank_and_the_same_command_goes_on_in_the_same_run(
    place: Workplace, new_root: Callable[[str], Path], straight: Training, fault_row: FaultRow
) -> None:
    root = new_root("killed")
    killed = start(place, root)
    run_dir = wait_for_checkpoint(killed, root)
    before = [line for line in killed.processes().values() if "pyspark" in line and "daemon" in line]
    assert len(before) >= 3, "Spark's daemon, workers, guards and ranks were to be there"
    killed.signal(signal.SIGKILL)  # the driver alone: nobody is left to tell the others
    seconds = killed.seconds_until_gone(20)
    assert not (run_dir / "result.json").exists(), "it was too fast"
    run_id = json.loads((run_dir / "mlflow.json").read_bytes())["run_id"]

    started = time.time()
    ended = start(place, root, "resume=true").wait()
    assert ended.exit_code == 0, ended.stderr
    result = ended.json
    assert (result["run_dir"], result["run_id"], result["attempts"]) == (str(run_dir), run_id, 2)
    assert list(root.glob("runs/*")) == [run_dir]
    training = Training(root, {"result": result, "warnings": [], "ended": time.time()}, "")
    assert 7 <= training.resumed_at(2) < EPOCHS * STEPS_PER_EPOCH, "it began anew"
    assert training.final_state == straight.final_state
    check_tracked_once(root, run_id, training, straight)
    metrics = [e for e in training.events if e["attempt"] == 2 and e["kind"] == "metrics"]
    fault_row(
        "R7",
        "the driver is killed; the command again, with resume=true",
        notice=seconds,
        next_step=min(event["time"] for event in metrics) - started,
        end="no process left; one run, state and history equal",
    )


def check_tracked_once(root: Path, run_id: str, training: Training, straight: Training) -> None:
    uri = f"sqlite:///{root}/mlflow.db"
    client = MlflowClient(uri, registry_uri=uri)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert len(client.search_runs([run.info.experiment_id])) == 1
    assert training.metrics == straight.metrics


@pytest.mark.parametrize(
    ("number", "is_for_all", "exit_code"),
    [(signal.SIGINT, True, 130), (signal.SIGTERM, False, 143)],
    ids=["Ctrl-C", "SIGTERM"],
)
def test_an_interrupt_ends_even_ranks_that_ignore_it_and_what_they_started(
    number: int,
    is_for_all: bool,
    exit_code: int,
    place: Workplace,
    new_root: Callable[[str], Path],
    fault_row: FaultRow,
) -> None:
    root = new_root("interrupted")
    running = start(place, root, *ENDLESS)
    run_dir = wait_for_checkpoint(running, root)
    before = list(running.processes().values())
    assert (before.count("sleep 1000 "), before.count("sleep 1001 ")) == (2, 2), "each rank was to have both"
    # to the whole group, as Ctrl-C in a terminal does, or to the driver alone, as `kill` does
    (running.signal_group if is_for_all else running.signal)(number)
    signalled = time.monotonic()
    ended = running.wait(30)
    running.seconds_until_gone(10)
    seconds = time.monotonic() - signalled
    assert seconds < 20, "ten are promised, and two to eight usual; five other test runs may share the cores"
    assert ended.exit_code == exit_code, ended.stderr
    assert "Traceback" not in ended.stderr and "resume=true" in ended.stderr
    assert ended.json["status"] == "killed" and ended.json["run_dir"] == str(run_dir)
    assert json.loads((run_dir / "result.json").read_bytes())["status"] == "killed"
    run = MlflowClient(f"sqlite:///{root}/mlflow.db").get_run(ended.json["run_id"])
    assert run.info.status == "KILLED"
    name = "Ctrl-C" if is_for_all else "SIGTERM to the driver"
    end = f"exit {exit_code}, run KILLED, no process left"
    fault_row("R8", f"{name}, and ranks that ignore it", notice=seconds, end=end)
