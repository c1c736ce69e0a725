"""A training that is interrupted: what it leaves, how it ends, and that it goes on from there."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.fixtures.command import CONF, Running, Workplace

pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.timeout(240)]

SETTINGS = ("train.epochs=4", "train.global_batch_size=512", "train.checkpoint_every_steps=5")
SLOW = "train.model.pause_seconds=0.1"
ENDLESS = ("train.model.pause_seconds=0.5", "train.epochs=100")


def start_training(workplace: Workplace, root: Path, *settings: str) -> Running:
    given = [f"storage.root={root}", *SETTINGS, SLOW, *settings]
    return workplace.start("train", CONF, *given, "--json")


def wait_for_checkpoint(running: Running, root: Path, timeout_seconds: float = 120.0) -> Path:
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


def test_a_killed_training_goes_on_in_the_same_run(
    faulty_workplace: Workplace, prepared_root: Callable[[str], Path]
) -> None:
    root = prepared_root("killed")
    killed = start_training(faulty_workplace, root)
    run_dir = wait_for_checkpoint(killed, root)
    killed.kill()
    assert killed.seconds_until_gone(15) < 15, "Spark's Python workers end with the JVM"
    assert not (run_dir / "result.json").exists()
    run_id = json.loads((run_dir / "mlflow.json").read_bytes())["run_id"]

    ended = start_training(faulty_workplace, root, "resume=true").wait()
    assert ended.exit_code == 0, ended.stderr
    result = ended.json
    assert (result["run_dir"], result["run_id"], result["attempts"]) == (str(run_dir), run_id, 2)
    assert list(root.glob("runs/*")) == [run_dir]
    resumed = [event for event in events(run_dir) if event["kind"] == "resumed"]
    assert resumed and all(event["step"] >= 5 for event in resumed), "it began anew"
    check_tracked_once(root, run_id, result["steps"])


def check_tracked_once(root: Path, run_id: str, num_steps: int) -> None:
    uri = f"sqlite:///{root}/mlflow.db"
    client = MlflowClient(uri, registry_uri=uri)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert len(client.search_runs([run.info.experiment_id])) == 1
    for name in ("train/loss", "validation/auroc"):
        steps = [metric.step for metric in client.get_metric_history(run_id, name)]
        assert max(Counter(steps).values()) == 1 and max(steps) == num_steps, (name, steps)
    per_epoch = num_steps // 4
    validated = [metric.step for metric in client.get_metric_history(run_id, "validation/auroc")]
    assert sorted(validated) == [per_epoch * epoch for epoch in range(1, 5)]


def events(run_dir: Path) -> list[dict[str, object]]:
    files = sorted((run_dir / "events").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_an_interrupt_ends_every_process_and_says_how_to_go_on(
    faulty_workplace: Workplace, prepared_root: Callable[[str], Path]
) -> None:
    roots = prepared_root("interrupted"), prepared_root("terminated")
    interrupted, terminated = (start_training(faulty_workplace, root, *ENDLESS) for root in roots)
    run_dirs = wait_for_checkpoint(interrupted, roots[0]), wait_for_checkpoint(terminated, roots[1])
    interrupted.signal_group(signal.SIGINT)  # as Ctrl-C in a terminal does
    terminated.signal(signal.SIGTERM)  # as `kill` does
    check_killed(interrupted, roots[0], run_dirs[0], exit_code=130)
    check_killed(terminated, roots[1], run_dirs[1], exit_code=143)


def check_killed(running: Running, root: Path, run_dir: Path, exit_code: int) -> None:
    ended = running.wait(20)
    running.seconds_until_gone(10)
    assert ended.exit_code == exit_code, ended.stderr
    assert "Traceback" not in ended.stderr and "resume=true" in ended.stderr
    assert ended.json["status"] == "killed" and ended.json["run_dir"] == str(run_dir)
    assert json.loads((run_dir / "result.json").read_bytes())["status"] == "killed"
    run = MlflowClient(f"sqlite:///{root}/mlflow.db").get_run(ended.json["run_id"])
    assert run.info.status == "KILLED"
