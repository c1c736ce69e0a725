from __future__ import annotations

import logging
import math
import subprocess
import time
from pathlib import Path

import mlflow
import pytest
import yaml
from mlflow.exceptions import MlflowException
from torch import nn

from sparktrain.dataset import Dataset
from sparktrain.errors import TrackingUnavailable
from sparktrain.runs.describe import git_tags, keep_facts
from sparktrain.runs.directory import RunDirectory
from sparktrain.runs.tracking import Tracker
from sparktrain.storage import commit_json, read_json
from tests.fixtures.tiny_model import closed_port, new_run, tiny_config


@pytest.fixture
def run(root: Path) -> RunDirectory:
    return new_run(root)


@pytest.fixture
def tracker(root: Path, run: RunDirectory, dataset: Dataset) -> Tracker:
    return Tracker.start(run, tiny_config(root), dataset)


def steps(tracker: Tracker, key: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in tracker.client.get_metric_history(tracker.run_id, key)]


def event(step: int, **values: float) -> dict[str, object]:
    return {"kind": "metrics", "step": step, "values": values, "time": time.time()}


def test_a_run_tells_what_it_ran_with(root: Path, run: RunDirectory, dataset: Dataset) -> None:
    tracker = Tracker.start(run, tiny_config(root, train={"epochs": 7}), dataset, nn.Linear(3, 1))
    found = tracker.client.get_run(tracker.run_id)
    assert found.info.status == "RUNNING"
    assert found.info.run_name == run.name
    assert found.data.params["train.epochs"] == "7"
    assert found.data.params["pipeline"] == "flight_delays"
    assert found.data.tags["sparktrain.dataset_fingerprint"] == dataset.fingerprint
    assert found.data.tags["sparktrain.run_dir"] == str(run.path)
    assert found.data.tags["model.num_parameters"] == "4"
    assert {"torch.version", "pyspark.version", "pyarrow.version", "mlflow.version", "python.version"} <= set(
        found.data.tags
    )
    text = mlflow.artifacts.load_text(f"{found.info.artifact_uri}/config.yaml")
    assert yaml.safe_load(text)["train"]["epochs"] == 7
    assert read_json(run.mlflow_file) == {
        "run_id": tracker.run_id,
        "experiment": "flight_delays",
        "tracking_uri": f"sqlite:///{root}/mlflow.db",
    }


def test_the_dataset_is_an_input_with_our_fingerprint(tracker: Tracker, dataset: Dataset) -> None:
    (item,) = tracker.client.get_run(tracker.run_id).inputs.dataset_inputs
    assert item.dataset.digest == dataset.fingerprint
    assert item.tags[0].value == "training"
    assert mlflow.data.get_source(item).to_dict() == {"uri": str(dataset.path)}


def test_artifacts_lie_under_the_root_and_nothing_in_the_current_folder(
    root: Path, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tracker = Tracker.start(new_run(root), tiny_config(root), dataset)
    tracker.finish("FINISHED")
    uri = tracker.client.get_run(tracker.run_id).info.artifact_uri
    assert uri.startswith((root / "mlflow-artifacts").as_uri())
    assert list(tmp_path.iterdir()) == []


def test_process_wide_settings_stay_as_they_were(root: Path, dataset: Dataset) -> None:
    before = mlflow.get_tracking_uri()
    Tracker.start(new_run(root), tiny_config(root), dataset).finish("FINISHED")
    assert mlflow.get_tracking_uri() == before
    assert mlflow.active_run() is None


def test_success_is_silent(
    root: Path, dataset: Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tracker = Tracker.start(new_run(tmp_path), tiny_config(tmp_path), dataset)  # creates the tables, too
    tracker.log_metrics(1, {"loss": 0.5})
    tracker.finish("FINISHED")
    assert capfd.readouterr() == ("", "")


def test_secrets_reach_neither_params_nor_artifacts(root: Path, run: RunDirectory, dataset: Dataset) -> None:
    spark = {"conf": {"spark.hadoop.fs.s3a.secret.key": "hunter2", "spark.ui.enabled": "false"}}
    source = {"url": "jdbc://me:hunter2@host/db"}
    tracker = Tracker.start(run, tiny_config(root, spark=spark, prepare={"source": source}), dataset)
    found = tracker.client.get_run(tracker.run_id)
    text = mlflow.artifacts.load_text(f"{found.info.artifact_uri}/config.yaml")
    assert "hunter2" not in text + str(found.data)
    assert found.data.params["spark.conf.spark.ui.enabled"] == "false"


def test_each_step_of_a_key_is_logged_once_even_after_a_resume(
    root: Path, run: RunDirectory, dataset: Dataset, tracker: Tracker
) -> None:
    tracker.log_events([event(step, loss=step / 10) for step in (1, 2, 3)])
    tracker.log_events([event(3, loss=99.0), event(4, loss=0.4), event(4, other=1.0)])
    tracker.finish("KILLED")
    again = Tracker.start(run, tiny_config(root), dataset)
    assert again.run_id == tracker.run_id
    assert again.client.get_run(again.run_id).info.status == "RUNNING"
    again.log_events([event(step, loss=99.0 if step < 5 else 0.5, other=2.0) for step in (3, 4, 5)])
    assert steps(again, "loss") == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4), (5, 0.5)]
    assert steps(again, "other") == [(4, 1.0), (5, 2.0)]


def test_values_that_are_not_finite_are_counted_also_over_a_resume(
    root: Path, run: RunDirectory, dataset: Dataset, tracker: Tracker
) -> None:
    tracker.log_events([event(1, loss=1.0), event(2, loss=math.nan), event(3, loss=math.inf)])
    again = Tracker.start(run, tiny_config(root), dataset)
    again.log_events([event(2, loss=math.nan), event(3, loss=math.inf), event(4, loss=-math.inf)])
    assert steps(again, "loss") == [(1, 1.0)]
    assert steps(again, "loss_nonfinite") == [(2, 1.0), (3, 2.0), (4, 3.0)]


def test_a_request_whose_answer_was_lost_is_not_logged_twice(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = tracker.client.log_batch

    def send_and_fail(*args: object, **options: object) -> None:
        send(*args, **options)
        raise MlflowException("the answer was lost")

    events = [event(1, loss=0.1), event(2, loss=0.2)]
    with monkeypatch.context() as patch:
        patch.setattr(tracker.client, "log_batch", send_and_fail)
        with pytest.raises(MlflowException):
            tracker.log_events(events)
    tracker.log_events([{**e, "time": time.time() + 60} for e in events] + [event(3, loss=0.3)])
    assert steps(tracker, "loss") == [(1, 0.1), (2, 0.2), (3, 0.3)]


def test_more_metrics_than_one_call_takes_arrive(tracker: Tracker) -> None:
    tracker.log_events([event(step, a=step, b=-step) for step in range(1, 1202)])
    assert len(steps(tracker, "a")) == len(steps(tracker, "b")) == 1201


def test_a_resume_shows_what_the_configuration_changed(
    root: Path, run: RunDirectory, dataset: Dataset, tracker: Tracker
) -> None:
    again = Tracker.start(run, tiny_config(root, train={"epochs": 9}), dataset)
    found = again.client.get_run(again.run_id).data
    assert found.params["train.epochs"] == "4"
    assert found.tags["resumed_with.train.epochs"] == "9"
    assert [tag for tag in found.tags if tag.startswith("resumed_with")] == ["resumed_with.train.epochs"]
    assert len(again.client.get_run(again.run_id).inputs.dataset_inputs) == 1


def test_a_run_that_mlflow_lost_is_replaced_with_a_warning(
    root: Path, run: RunDirectory, dataset: Dataset, tracker: Tracker, caplog: pytest.LogCaptureFixture
) -> None:
    tracker.client.delete_run(tracker.run_id)
    with caplog.at_level(logging.WARNING):
        again = Tracker.start(run, tiny_config(root), dataset)
    assert again.run_id != tracker.run_id
    assert "no longer has the run" in caplog.text
    assert read_json(run.mlflow_file)["run_id"] == again.run_id


def test_a_deleted_experiment_is_an_error_with_a_way_out(
    root: Path, run: RunDirectory, dataset: Dataset, tracker: Tracker
) -> None:
    gone = tracker.client.create_experiment("gone")
    tracker.client.delete_experiment(gone)
    config = tiny_config(root, tracking={"experiment": "gone"})
    with pytest.raises(TrackingUnavailable, match=r"'gone' was deleted; restore it"):
        Tracker.start(new_run(root), config, dataset)


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_the_end_is_marked(tracker: Tracker, status: str) -> None:
    tracker.finish(status)  # type: ignore[arg-type]
    info = tracker.client.get_run(tracker.run_id).info
    assert info.status == status
    assert info.end_time


def test_a_server_that_is_down_at_start_is_an_error_within_ten_seconds(
    root: Path, run: RunDirectory, dataset: Dataset
) -> None:
    start = time.monotonic()
    config = tiny_config(root, tracking={"uri": f"http://127.0.0.1:{closed_port()}"})
    with pytest.raises(TrackingUnavailable, match="connection refused"):
        Tracker.start(run, config, dataset)
    assert time.monotonic() - start < 10
    assert not run.mlflow_file.exists()


def test_a_server_that_is_down_at_the_end_does_not_hide_the_outcome(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def down(*args: object) -> None:
        raise MlflowException("Connection refused")

    monkeypatch.setattr(tracker.client, "set_terminated", down)
    with caplog.at_level(logging.WARNING):
        tracker.finish("FINISHED")
    assert "could not mark" in caplog.text


def test_a_run_is_shown_under_its_parent_in_the_same_experiment(root: Path, dataset: Dataset) -> None:
    sweep = Tracker.start(new_run(root), tiny_config(root, tracking={"experiment": "a sweep"}), dataset)
    config = tiny_config(root, tracking={"parent_run_id": sweep.run_id})
    children = [Tracker.start(new_run(root), config, dataset) for _ in range(2)]
    found = sweep.client.search_runs([sweep.experiment_id], f"tags.mlflow.parentRunId = '{sweep.run_id}'")
    assert {run.info.run_id for run in found} == {child.run_id for child in children}
    assert "mlflow.parentRunId" not in sweep.client.get_run(sweep.run_id).data.tags


def test_a_parent_that_mlflow_does_not_have_is_an_error_before_a_run_exists(
    root: Path, run: RunDirectory, dataset: Dataset
) -> None:
    config = tiny_config(root, tracking={"parent_run_id": "f" * 32})
    with pytest.raises(TrackingUnavailable, match=r"no run 'f+', which tracking\.parent_run_id names"):
        Tracker.start(run, config, dataset)
    assert not run.mlflow_file.exists()


def test_facts_are_those_of_the_driver_that_trained_also_when_another_delivers(
    root: Path, run: RunDirectory, dataset: Dataset
) -> None:
    keep_facts(run, dataset, nn.Linear(3, 1), {"spark.app_id": "local-1"})
    facts = read_json(run.facts_file)
    commit_json(run.facts_file, {**facts, "tags": {**facts["tags"], "python.version": "3.99"}})
    tracker = Tracker.start(run, tiny_config(root), None)
    found = tracker.client.get_run(tracker.run_id)
    assert found.data.tags["spark.app_id"] == "local-1"
    assert found.data.tags["python.version"] == "3.99"
    assert found.data.tags["model.num_parameters"] == "4"
    assert found.data.tags["sparktrain.dataset_fingerprint"] == dataset.fingerprint
    assert "Linear" in mlflow.artifacts.load_text(f"{found.info.artifact_uri}/model.txt")


def test_the_end_says_how_many_attempts_it_took(run: RunDirectory, tracker: Tracker) -> None:
    for number in (1, 2, 3):
        run.attempt(number).mkdir()
    tracker.finish("FAILED")
    tags = tracker.client.get_run(tracker.run_id).data.tags
    assert (tags["sparktrain.attempts"], tags["sparktrain.restarts"]) == ("3", "2")


def test_commit_branch_and_changes_are_those_of_the_repository(tmp_path: Path) -> None:
    def git(*command: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *who, *command], cwd=tmp_path, check=True, capture_output=True, timeout=60)

    git("init", "-b", "sweep")
    (tmp_path / "model.py").write_text("1")
    git("add", ".")
    git("commit", "-m", "first")
    tags = git_tags(tmp_path)
    assert len(tags.pop("mlflow.source.git.commit")) == 40
    assert tags == {"mlflow.source.git.branch": "sweep", "mlflow.source.git.dirty": "false"}
    (tmp_path / "model.py").write_text("2")
    git("checkout", "--detach")
    tags = git_tags(tmp_path)
    assert tags["mlflow.source.git.dirty"] == "true" and "mlflow.source.git.branch" not in tags
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / ".git").write_text("no repository")
    assert git_tags(tmp_path / "none") == {}
