"""R1, R2, R3, R4, R34: what befalls ranks and executors, and how the training gets past it.

What counts is SHA-256 of weights, optimizer, generators and data cursor, and MLflow's history, beside those
of a training to which nothing happened.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from sparktrain.errors import EXIT_INFRASTRUCTURE, EXIT_TRAINING
from tests.fixtures.fault_table import FaultRow
from tests.fixtures.trainings import EPOCHS, STEPS_PER_EPOCH, Driver, Training, ancestors

pytestmark = [pytest.mark.spark, pytest.mark.ranks, pytest.mark.slow, pytest.mark.timeout(600)]

DriverOf = Callable[[str], Driver]
LOCAL, EXECUTORS, CLUSTER = "local[2]", "local-cluster[2,1,1024]", "standalone[2,1,1024]"
STEPS = EPOCHS * STEPS_PER_EPOCH
STALL = {"stall_timeout_seconds": 5}


def at(step: int, kind: str, rank: int = 1, attempt: int = 1) -> dict[str, Any]:
    return {"rank": rank, "step": step, "kind": kind, "attempt": attempt}


# Steps 7, 14, 20, 21, 28, … are saved: each fault lies between two of them, and costs some steps.
SURVIVED = {
    "killed-thrice": (
        "R2",
        "a rank is killed, three times in one run",
        LOCAL,
        [at(10, "sigkill"), at(26, "sigkill", rank=0, attempt=2), at(46, "sigkill", attempt=3)],
        {},
    ),
    "exits": ("R2", "a rank exits by itself, with code 0", LOCAL, [at(26, "exit")], {}),
    "worker": ("R2", "Spark's Python worker is killed", LOCAL, [at(33, "kill_worker", rank=0)], {}),
    "stopped": ("R4", "a rank is stopped (SIGSTOP)", LOCAL, [at(10, "sigstop")], STALL),
    "hangs": ("R4", "a rank hangs in its own code", LOCAL, [at(26, "hang", rank=0)], STALL),
    "executor": ("R3", "an executor is killed, of local-cluster", EXECUTORS, [at(26, "kill_executor")], {}),
    "killed-on-a-cluster": ("R2", "a rank is killed, on a cluster", CLUSTER, [at(10, "sigkill")], {}),
    "executor-of-a-cluster": (
        "R3",
        "an executor is killed, of a standalone cluster",
        CLUSTER,
        [at(33, "kill_executor", rank=0)],
        {},
    ),
}


@pytest.mark.parametrize("name", SURVIVED)
def test_the_end_is_as_if_nothing_had_happened(
    name: str, driver_of: DriverOf, straight: Training, fault_row: FaultRow
) -> None:
    number, what, mode, faults, train = SURVIVED[name]
    training = driver_of(mode).train(*faults, **train)
    assert [mark["kind"] for mark in training.fired] == [fault["kind"] for fault in faults], training.text
    assert training.error is None, training.text
    assert training.result["attempts"] == len(faults) + 1 == training.num_attempts
    assert training.result["status"] == "finished" and training.result["steps"] == STEPS
    for fault in faults:
        resumed = training.resumed_at(fault["attempt"] + 1)
        assert 0 < fault["step"] - 1 - resumed < 7, "from the newest checkpoint, and some steps were lost"
    assert training.final_state == straight.final_state
    check_history(training, straight)
    assert not training.living_ranks()
    if number == "R4":
        check_culprit(training, faults[0]["rank"])
    notice = max(training.seconds_to_notice(number) for number in range(len(faults)))
    next_step = max(training.seconds_to_next_step(number) for number in range(len(faults)))
    fault_row(number, what, notice=notice, next_step=next_step, end="state and history equal")


def check_history(training: Training, straight: Training) -> None:
    """MLflow has every step once, with the values of the training to which nothing happened."""
    assert training.metrics == straight.metrics
    for name in ("train/loss", "validation/accuracy"):
        steps = [step for step, _ in training.metrics[name]]
        assert steps == sorted(set(steps)) and steps[-1] == STEPS, (name, steps)


def check_culprit(training: Training, rank: int) -> None:
    [text] = training.warnings
    assert "The gang hangs: no rank came forward for" in text
    assert f"rank {rank} on " in text and f"rank {1 - rank} on " not in text.partition("Stack dumps")[0]
    other = training.run_dir / "attempt-001" / "stacks" / f"rank-{1 - rank:03d}.txt"
    assert "most recent call first" in other.read_text() and str(other) in text


def test_a_rank_that_raises_ends_the_training_at_once(driver_of: DriverOf, fault_row: FaultRow) -> None:
    training = driver_of(LOCAL).train(at(10, "raise"))
    assert [mark["kind"] for mark in training.fired] == ["raise"]
    assert (training.error, training.answer["exit_code"]) == ("RankFailed", EXIT_TRAINING)
    first, *rest = training.text.splitlines()
    assert first.startswith("rank 1 on ") and "at step 10 failed: ValueError: a fault on purpose" in first
    assert "attempt-001/errors/rank-001.txt" in training.text and rest
    assert training.num_attempts == 1 and not training.warnings
    assert training.result["status"] == "failed" and not training.living_ranks()
    seconds = training.seconds_to_notice()
    assert seconds < 30
    fault_row("R1", "a rank raises", notice=seconds, end="exit 4; rank, host, step, line; no retry")


def test_a_fault_that_comes_back_ends_the_training_when_the_restarts_are_used_up(
    driver_of: DriverOf, fault_row: FaultRow
) -> None:
    faults = [at(3, "sigkill", attempt=attempt) for attempt in (1, 2, 3)]
    training = driver_of(LOCAL).train(*faults, max_restarts=2, restart_delay_seconds=0.1)
    assert len(training.fired) == 3 == training.num_attempts
    assert (training.error, training.answer["exit_code"]) == ("RestartsExhausted", EXIT_INFRASTRUCTURE)
    assert "3 attempts in a row came no further than the checkpoint of step 0" in training.text
    assert training.result["status"] == "failed" and not training.living_ranks()
    fault_row("R2", "a rank is killed before any checkpoint, each time", end="exit 5 after 1 + max_restarts")


def test_a_new_checkpoint_renews_the_restarts(driver_of: DriverOf, straight: Training) -> None:
    faults = [at(10 + 7 * number, "sigkill", attempt=number + 1) for number in range(3)]
    training = driver_of(LOCAL).train(*faults, max_restarts=1)
    assert len(training.fired) == 3
    assert training.error is None, training.text
    assert training.final_state == straight.final_state


def test_a_cluster_that_lost_a_machine_goes_on_with_fewer_ranks(
    driver_of: DriverOf, tmp_path: Path, fault_row: FaultRow
) -> None:
    driver = driver_of(CLUSTER)
    whole, ledger = tmp_path / "whole", tmp_path / "ledger"
    whole.mkdir()
    ledger.mkdir()
    straight = driver.train(task={"dropout": 0.0, "ledger": str(whole)})
    assert straight.error is None, straight.text
    driver.begin(at(26, "hang"), task={"dropout": 0.0, "ledger": str(ledger)}, min_ranks=1)
    mark = driver.wait_for("faults/*-hang.json")
    run, struck = mark.parents[1], json.loads(mark.read_bytes())["time"]
    rank = json.loads((run / "attempt-001" / "ranks" / "rank-001-started.json").read_bytes())["pid"]
    _, worker = [pid for pid, name in ancestors(rank) if name == "java"]
    os.kill(worker, signal.SIGKILL)  # the machine's daemon: nobody starts an executor there any more
    training = driver.end()
    assert len(training.fired) == 1 and training.fired[0]["time"] == struck
    assert training.error is None, training.text
    assert (training.result["world_size"], training.result["attempts"]) == (1, 2)
    resumed = training.resumed_at(2)
    assert 0 < resumed < 26
    assert global_batches(ledger, {1: 0, 2: resumed}) == global_batches(whole, {1: 0})
    expected = dict(straight.metrics["train/loss"])
    assert dict(training.metrics["train/loss"]) == pytest.approx(expected, rel=1e-4)
    fault_row(
        "R34",
        "a machine of two is lost for good, with min_ranks=1",
        notice=training.seconds_to_notice(),
        next_step=training.seconds_to_next_step(),
        end="goes on with 1 rank, same global batches",
    )


def global_batches(folder: Path, first_steps: Mapping[int, int]) -> dict[int, list[int]]:
    """The rows of each step over all ranks; of what was done twice, the last time counts."""
    found: dict[int, list[int]] = {}
    for attempt, first in sorted(first_steps.items()):
        files = sorted(folder.glob(f"attempt-{attempt}-rank-*"))
        shares = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
        for number, parts in enumerate(zip(*shares, strict=False), start=1):
            found[first + number] = sorted(row for part in parts for row in part)
    assert set(found) == set(range(1, STEPS + 1))
    return found
