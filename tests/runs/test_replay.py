"""Replay from a run directory alone, into SQLite; tests/faults/test_mlflow_away.py has real servers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pytest

from sparktrain.dataset import Dataset
from sparktrain.errors import ReplayRefused, TrackingUnavailable
from sparktrain.runs.connection import connect
from sparktrain.runs.directory import RunDirectory
from sparktrain.runs.events import EventWriter
from sparktrain.runs.late import LateTracker, start_tracking
from sparktrain.runs.replay import register, replay
from sparktrain.runs.tracking import Tracker
from sparktrain.storage import commit_json, read_json
from tests.fixtures.tiny_model import closed_port, new_run, tiny_config


def ended_run(root: Path, dataset: Dataset, status: str | None = None, **tracking: Any) -> RunDirectory:
    """A run with metrics of three steps, which ended with `status`; None: its driver was killed."""
    run = new_run(root)
    config = tiny_config(root, tracking=tracking)
    commit_json(run.spec_file, {"dataset": dataset.fingerprint, **config.model_dump(mode="json")})
    with EventWriter(run.events, 0, 1) as emit:
        for step in (1, 2, 3):
            emit({"kind": "metrics", "step": step, "values": {"train/loss": 1 / step}})
            emit({"kind": "progress", "step": step, "num_steps": 3, "epoch": 0})
    if status is not None:
        facts = {"path": str(dataset.path), "fingerprint": dataset.fingerprint}
        run.write_result({"status": status, "run_dir": str(run.path), "dataset": facts, "model_uri": None})
    return run


def steps(uri: str, run_id: str) -> list[int]:
    return [metric.step for metric in connect(uri).get_metric_history(run_id, "train/loss")]


def test_a_run_that_mlflow_never_saw_is_created_and_nothing_is_logged_twice(
    root: Path, dataset: Dataset
) -> None:
    run = ended_run(root, dataset, "killed")
    run.spill_file.write_text("what a person may look at")
    first, second = replay(run.path), replay(run.path)
    assert (first.metrics, first.run_status) == (3, "KILLED")
    assert (second.metrics, second.run_id) == (0, first.run_id)
    assert steps(first.tracking_uri, first.run_id) == [1, 2, 3]
    assert connect(first.tracking_uri).get_run(first.run_id).info.status == "KILLED"
    assert read_json(run.result_file)["run_id"] == first.run_id
    found = connect(first.tracking_uri).get_run(first.run_id)
    report = mlflow.artifacts.load_text(f"{found.info.artifact_uri}/{run.report_file.name}")
    assert report == run.report_file.read_text() and first.run_id in report
    assert found.data.tags["mlflow.note.content"].startswith("Killed: 3 of 3 steps")
    assert not run.spill_file.exists()


def test_what_mlflow_has_already_is_left_as_it_is(root: Path, dataset: Dataset) -> None:
    run = ended_run(root, dataset, "failed")
    tracker = Tracker.start(run, tiny_config(root), dataset)
    tracker.log_metrics(1, {"train/loss": 7.0})
    replayed = replay(run.path)
    assert (replayed.run_id, replayed.metrics) == (tracker.run_id, 2)
    history = tracker.client.get_metric_history(tracker.run_id, "train/loss")
    assert {m.step: m.value for m in history} == {1: 7.0, 2: 0.5, 3: pytest.approx(1 / 3)}
    assert len(history) == 3


def test_a_run_without_an_end_stays_running_and_its_resume_is_named(
    root: Path, dataset: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    replayed = replay(ended_run(root, dataset).path)
    assert (replayed.metrics, replayed.run_status) == (3, "RUNNING")
    assert "resume=true continues it" in caplog.text


def test_a_run_goes_to_another_server_where_that_is_wanted(
    root: Path, dataset: Dataset, tmp_path: Path
) -> None:
    run = ended_run(root, dataset, "failed", uri=f"http://127.0.0.1:{closed_port()}")
    with pytest.raises(TrackingUnavailable, match="connection refused"):
        replay(run.path)
    uri = f"sqlite:///{tmp_path}/other.db"
    replayed = replay(run.path, uri)
    assert replayed.tracking_uri == uri and steps(uri, replayed.run_id) == [1, 2, 3]


def test_a_run_is_replayed_to_where_it_was_tracked_whatever_the_environment_says_now(
    root: Path, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path}/first.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    run = ended_run(root, dataset, "failed")
    tracker = Tracker.start(run, tiny_config(root), dataset)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert replay(run.path).run_id == tracker.run_id
    commit_json(run.mlflow_file, {"run_id": "1", "tracking_uri": "http://***@host"})
    with pytest.raises(ReplayRefused, match=r"whose password is not kept.*--tracking-uri"):
        replay(run.path)


def test_metrics_are_replayed_although_the_dataset_is_gone(
    root: Path, dataset: Dataset, tmp_path: Path
) -> None:
    run = ended_run(root, dataset, "failed")
    result = read_json(run.result_file)
    run.write_result({**result, "dataset": {**result["dataset"], "path": str(tmp_path / "gone")}})
    assert replay(run.path).metrics == 3
    run.write_result({**read_json(run.result_file), "status": "finished", "unpublished": "it was away"})
    with pytest.raises(ReplayRefused, match="bring the dataset back"):
        replay(run.path)


def test_what_is_no_run_or_under_way_is_not_replayed(root: Path, dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ReplayRefused, match=r"no run directory.*<storage\.root>/runs/<name>"):
        replay(tmp_path)
    run = ended_run(root, dataset)
    with run.only_reporter() as alone, pytest.raises(ReplayRefused, match="under way"):
        assert alone
        replay(run.path)


def test_only_a_finished_run_s_model_can_be_registered(root: Path, dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ReplayRefused, match="no run directory"):
        register(tmp_path)
    run = ended_run(root, dataset, "killed")
    with pytest.raises(ReplayRefused, match=r"can't be registered: the run did not finish.*resume=true"):
        register(run.path)
    run.write_result({**read_json(run.result_file), "status": "finished"})
    with run.only_reporter() as alone, pytest.raises(ReplayRefused, match=r"can't be registered.*under way"):
        assert alone
        register(run.path)


def test_tracking_that_is_not_required_starts_when_the_server_does(
    root: Path, dataset: Dataset, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(root)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed_port()}")
    config = tiny_config(root, tracking={"required": False})
    tracker = start_tracking(run, config, dataset)
    assert isinstance(tracker, LateTracker) and tracker.run_id is None
    assert run.replay_command in caplog.text and "connection refused" in caplog.text
    assert read_json(run.mlflow_file)["run_id"] is None
    with pytest.raises(TrackingUnavailable):
        tracker.log_events([])
    assert not tracker.finish("FAILED")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow.db")
    tracker.log_events([{"kind": "metrics", "step": 1, "values": {"train/loss": 1.0}, "time": 1.0}])
    assert tracker.finish("FAILED")
    assert tracker.run_id is not None and steps(f"sqlite:///{root}/mlflow.db", tracker.run_id) == [1]
