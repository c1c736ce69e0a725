"""R9: a process of attempt 1 that nobody could end trains on while attempt 2 runs, and damages nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from tests.fixtures.fault_table import FaultRow
from tests.fixtures.trainings import EPOCHS, STEPS_PER_EPOCH, Driver

pytestmark = [pytest.mark.spark, pytest.mark.ranks, pytest.mark.slow, pytest.mark.timeout(600)]


def test_what_it_saves_is_never_gone_on_with(
    driver_of: Callable[[str], Driver], tiny: Path, tmp_path: Path, fault_row: FaultRow
) -> None:
    driver = driver_of("local[2]")
    straight = driver.train(ranks=1)
    assert straight.error is None, straight.text
    # Attempt 2 waits at step 22 for the end of the leftover, and dies later: whom does attempt 3 trust?
    faults = [
        {"rank": 0, "step": 10, "kind": "sigkill", "attempt": 1},
        {"rank": 0, "step": 31, "kind": "sigkill", "attempt": 2},
    ]
    driver.begin(*faults, task={"leftover": str(tmp_path)}, ranks=1)
    environment = json.loads(wait_for(tmp_path / "environment.json"))
    assert (environment["RANK"], environment["SPARKTRAIN_ATTEMPT"]) == ("0", "1")
    with (tmp_path / "log").open("w") as log_file:
        command = [sys.executable, "-m", "tests.fixtures.leftover_rank", tmp_path, driver.root]
        process = subprocess.Popen(command, cwd=tiny, env=environment, stdout=log_file, stderr=log_file)
    training = driver.end()
    assert process.wait(60) == 0, (tmp_path / "log").read_text()
    assert len(training.fired) == 2
    log = (tmp_path / "log").read_text()
    leftover = json.loads((tmp_path / "ended").read_bytes())
    resumed = {e["attempt"]: e for e in training.events if e["kind"] == "resumed"}
    assert resumed[2]["time"] < leftover["began"] + 60 and leftover["ended"] < resumed[3]["time"]
    assert leftover["began"] < leftover["ended"], log
    assert leftover["outcome"] == "trained to the end" or "AttemptSuperseded" in leftover["outcome"], log
    assert not [e for e in training.events if e["attempt"] == 1 and e["time"] > leftover["began"]]
    assert training.error is None, training.text
    assert resumed[3]["step"] == 28, "from attempt 2's own, though the leftover's were of later steps"
    assert training.result["steps"] == EPOCHS * STEPS_PER_EPOCH
    assert training.final_state == straight.final_state
    assert training.metrics == straight.metrics
    fault_row("R9", "a process of attempt 1 trains on beside attempt 2", end="state and history equal")


def wait_for(file: Path, timeout_seconds: float = 150.0) -> str:
    deadline = time.monotonic() + timeout_seconds
    while not file.exists():
        assert time.monotonic() < deadline, f"{file} did not come"
        time.sleep(0.02)
    return file.read_text()


IN_ANOTHER_GROUP = """
    import os, subprocess, sys, threading, time
    from pathlib import Path

    from sparktrain.errors import RankEnded
    from sparktrain.gang.process import call_in_process
    from sparktrain.gang.spec import GangSpec
    from sparktrain.world import World

    def leave() -> bytes:
        os.setpgid(0, subprocess.Popen(["sleep", "1000"], process_group=0).pid)
        pids = Path(sys.argv[1], "pids")
        pids.write_text(f"{os.getpid()} {os.getpgid(0)}")
        time.sleep(1000)
        return b""

    spec = GangSpec(directory=Path(sys.argv[1]), size=1, token="", payload=b"")
    spec.create_folders()
    threading.Timer(1.0, spec.stop_file.touch).start()
    try:
        call_in_process(leave, spec, World(rank=0, size=1))
    except RankEnded:
        print("ended")
"""


def test_a_rank_that_has_left_its_process_group_is_ended_too(tmp_path: Path) -> None:
    command = [sys.executable, "-c", dedent(IN_ANOTHER_GROUP), tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "ended\n", done.stderr
    rank, group = (tmp_path / "pids").read_text().split()
    assert rank != group, "it has not left"
    assert not Path("/proc", rank).exists() and not Path("/proc", group).exists()
