"""R18, R19: MLflow is away in the middle of a run or at its start, killed or silent.

Training goes on as fast as before; everything is delivered once it is back, or by `sparktrain replay`.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from mlflow import MlflowClient
from pyspark.sql import SparkSession

import sparktrain
from sparktrain.config import Config, parse_config
from sparktrain.dataset import Dataset
from sparktrain.errors import NotPublished, RankFailed, TrackingUnavailable
from sparktrain.runs.directory import RunDirectory
from sparktrain.runs.events import EventReader
from sparktrain.runs.replay import replay
from sparktrain.testing import write_tiny_dataset
from tests.fixtures.command import ROOT, Workplace
from tests.fixtures.mlflow_server import MlflowServer
from tests.fixtures.paused_task import paused_package, paused_task

pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with paused_package(tmp_path_factory.mktemp("code")) as folder:
        yield folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("datasets") / "tiny"
    return write_tiny_dataset(path, 32 * 100, validation_rows=64, test_rows=200)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MlflowServer]:
    with MlflowServer(tmp_path / "server") as running:
        yield running


def config(root: Path, server: MlflowServer, *, epochs: int = 2, required: bool = True) -> Config:
    return parse_config(
        {
            "pipeline": "flight_delays",
            "storage": {"root": str(root)},
            "train": {"epochs": epochs, "global_batch_size": 32, "num_lanes": 4},
            "tracking": {"uri": server.uri, "required": required},
        }
    )


class At:
    """Does something once a step is reached, and something at the end; keeps what happened when."""

    def __init__(
        self, step: int, do: Callable[[], object], at_end: Callable[[], object] = lambda: None
    ) -> None:
        self.step, self.do, self.at_end = step, do, at_end
        self.fired: float | None = None
        self.ended: float | None = None  # when the ranks came to the last phase

    def __call__(self, event: Mapping[str, Any]) -> None:
        if event["kind"] == "progress" and event["step"] >= self.step and self.fired is None:
            self.fired = time.time()
            self.do()
        if event["kind"] == "phase" and event["name"] == "test":
            self.ended = time.monotonic()
            self.at_end()


def only_run(root: Path) -> RunDirectory:
    [path] = (root / "runs").iterdir()
    return RunDirectory(path)


def result_of(run: RunDirectory) -> dict[str, Any]:
    return dict(json.loads(run.result_file.read_bytes()))


def metric_events(run: RunDirectory) -> list[dict[str, Any]]:
    return [event for event in EventReader(run.events).poll() if event["kind"] == "metrics"]


def check_delivered(run: RunDirectory, server: MlflowServer, status: str = "FINISHED") -> None:
    """MLflow has one run, with the value of each (key, step) of the events once, and nothing is spilled."""
    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name("flight_delays")
    assert experiment is not None
    [found] = client.search_runs([experiment.experiment_id])
    assert found.info.status == status
    assert found.info.run_name == run.name
    wanted: dict[str, dict[int, float]] = {}
    for event in metric_events(run):
        for key, value in event["values"].items():
            wanted.setdefault(key, {})[event["step"]] = value
    assert wanted
    for key, values in wanted.items():
        history = client.get_metric_history(found.info.run_id, key)
        assert max(Counter(metric.step for metric in history).values()) == 1, key
        assert {metric.step: metric.value for metric in history} == pytest.approx(values), key
    assert not run.spill_file.exists()


def check_published(run: RunDirectory, server: MlflowServer, versions: int = 1) -> None:
    client, result = MlflowClient(server.uri, registry_uri=server.uri), result_of(run)
    assert result["unpublished"] is None
    found = client.search_model_versions("name='flight_delays'")
    assert len(found) == versions
    version = client.get_model_version_by_alias("flight_delays", "champion")
    assert result["model_uri"] == f"models:/flight_delays/{version.version}"
    data = client.get_run(result["run_id"]).data.metrics
    assert data["test/auroc"] == pytest.approx(result["metrics"]["test/auroc"])
    plots = [file.path for file in client.list_artifacts(result["run_id"], "plots")]
    assert "plots/loss.png" in plots and "plots/roc.png" in plots
    papers = [file.path for file in client.list_artifacts(result["run_id"])]
    assert {"evaluation.json", "report.html", "model.txt"} <= set(papers)
    experiment = client.get_run(result["run_id"]).info.experiment_id
    roles = [
        model.tags["sparktrain.checkpoint_role"]
        for model in client.search_logged_models([experiment])
        if str(model.status) == "READY"
    ]
    assert sorted(roles) in (["best", "last"], ["best, last"]), "each once"


def seconds_per_step(run: RunDirectory, since: float, until: float) -> float:
    """The median over the log windows between two moments."""
    logged = [(e["time"], e["step"]) for e in metric_events(run) if "train/loss" in e["values"]]
    found = [
        (t - s) / (n - m) for (s, m), (t, n) in pairwise(logged) if since <= s and t <= until and n - m == 10
    ]
    assert len(found) >= 5, "too few steps to tell"
    return median(found)


def replay_by_command(run: RunDirectory, code: Path, tmp_path: Path) -> dict[str, Any]:
    """Replay as a user would: another process, in the folder with the pipelines."""
    logs = tmp_path / "logs"
    logs.mkdir(exist_ok=True)
    ended = Workplace(code, logs).run("replay", run.path, "--json", PYTHONPATH=str(ROOT))
    assert ended.exit_code == 0, ended.stderr
    return ended.json


def test_a_server_that_comes_back_gets_everything_once(
    spark: SparkSession, code: Path, dataset: Dataset, server: MlflowServer, tmp_path: Path
) -> None:
    back: list[float] = []

    def restart() -> None:
        time.sleep(4)
        server.start()
        back.append(time.time())

    restarting = threading.Thread(target=restart)

    def away() -> None:
        server.kill()
        restarting.start()

    root = tmp_path / "out"
    # On a busy machine the server takes long to start: the run's end waits for it, its steps do not.
    at = At(200, away, at_end=lambda: restarting.join(40))
    started = time.time()
    result = sparktrain.train(
        dataset, paused_task(), config(root, server, epochs=10), spark=spark, on_event=at
    )
    restarting.join()
    assert at.fired and back, "the server was killed and came back"
    run = only_run(root)
    lost = [e for e in metric_events(run) if at.fired < e["time"] < back[0]]
    assert lost, "metrics were made while it was away"
    before, during = (
        seconds_per_step(run, started, at.fired),
        seconds_per_step(run, at.fired, back[0]),
    )
    assert during < 2 * before + 0.02, "training does not wait for MLflow"
    check_delivered(run, server)
    assert result.model_uri == "models:/flight_delays/1" and result.unpublished is None
    check_published(run, server)
    nothing = replay(run.path)
    assert (nothing.metrics, nothing.run_status) == (0, "FINISHED")
    check_delivered(run, server)


@pytest.mark.parametrize("how", ["killed", "silent"])
def test_what_a_server_missed_for_good_is_replayed(
    spark: SparkSession,
    code: Path,
    dataset: Dataset,
    server: MlflowServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    how: str,
) -> None:
    root = tmp_path / "out"
    at = At(50, server.kill if how == "killed" else server.freeze)
    with pytest.raises(NotPublished) as told, caplog.at_level(logging.WARNING):
        sparktrain.train(dataset, paused_task(), config(root, server, epochs=3), spark=spark, on_event=at)
    assert at.fired and at.ended
    assert time.monotonic() - at.ended < 90, "the end waits for a dead server a bounded time"
    run = only_run(root)
    assert run.replay_command in str(told.value) and "can't be used" in str(told.value)
    assert run.replay_command in caplog.text and "did not confirm" in caplog.text
    result = result_of(run)
    assert (result["status"], result["steps"], result["model_uri"]) == ("finished", 300, None)
    assert result["unpublished"] and result["metrics"]["test/auroc"] > 0
    assert told.value.result == result and told.value.exit_code == 5
    spilled = [json.loads(line) for line in run.spill_file.read_text().splitlines()]
    assert [event for event in spilled if event["kind"] == "metrics"][-1]["step"] == 300
    with pytest.raises(TrackingUnavailable):
        replay(run.path)

    if how == "killed":
        server.start()
    else:
        server.thaw()
    replayed = replay_by_command(run, code, tmp_path)
    assert (replayed["status"], replayed["run_status"]) == ("finished", "FINISHED")
    assert replayed["metrics"] > 0 and replayed["model_uri"] == "models:/flight_delays/1"
    check_delivered(run, server)
    check_published(run, server)
    again = replay(run.path)
    assert {**again.to_dict(), "status": "finished"} == {**replayed, "metrics": 0}
    check_delivered(run, server)
    check_published(run, server)


@pytest.mark.parametrize("how", ["down", "silent"])
def test_without_a_server_at_the_start_training_goes_on_if_it_may(
    spark: SparkSession,
    code: Path,
    dataset: Dataset,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    how: str,
) -> None:
    root = tmp_path / "out"
    server = MlflowServer(tmp_path / "server").start()
    try:
        if how == "down":
            server.kill()
        else:
            server.freeze()
        began = time.monotonic()
        with pytest.raises(TrackingUnavailable, match=r"tracking\.required=false"):
            sparktrain.train(dataset, paused_task(), config(tmp_path / "refused", server), spark=spark)
        assert time.monotonic() - began < 10
        assert not list((tmp_path / "refused").glob("runs/*/attempt-*")), "no gang was started"
        with caplog.at_level(logging.WARNING):
            result = sparktrain.train(
                dataset, paused_task(), config(root, server, required=False), spark=spark
            )
        run = only_run(root)
        assert caplog.text.count(run.replay_command) >= 2, "told at the start and at the end"
        assert (result.status, result.run_id, result.model_uri) == ("finished", None, None)
        assert result.unpublished and result.steps == 200 and run.spill_file.exists()
        if how == "down":
            server.start()
        else:
            server.thaw()
        replayed = replay(run.path)
        assert replayed.model_uri == "models:/flight_delays/1" and replayed.metrics > 0
        check_delivered(run, server)
        check_published(run, server)
        created = MlflowClient(server.uri).get_run(replayed.run_id)
        assert created.data.params["train.epochs"] == "2"
        assert created.inputs.dataset_inputs[0].dataset.digest == dataset.fingerprint
    finally:
        server.kill()


def test_a_server_that_answers_after_the_start_is_found(
    spark: SparkSession, code: Path, dataset: Dataset, server: MlflowServer, tmp_path: Path
) -> None:
    server.freeze()
    at = At(10, server.thaw)
    settings = config(tmp_path / "out", server, epochs=5, required=False)
    result = sparktrain.train(dataset, paused_task(), settings, spark=spark, on_event=at)
    assert at.fired and result.run_id and result.model_uri == "models:/flight_delays/1"
    check_delivered(only_run(tmp_path / "out"), server)


def test_a_run_that_failed_while_the_server_was_away_is_marked_by_a_replay(
    spark: SparkSession, code: Path, dataset: Dataset, server: MlflowServer, tmp_path: Path
) -> None:
    root = tmp_path / "out"
    at = At(50, server.kill)
    with pytest.raises(RankFailed, match="ordered by the test"):
        sparktrain.train(
            dataset, paused_task(fail_step=250), config(root, server, epochs=3), spark=spark, on_event=at
        )
    assert at.fired
    run = only_run(root)
    server.start()
    run_id = result_of(run)["run_id"]
    assert MlflowClient(server.uri).get_run(run_id).info.status == "RUNNING", "nobody could tell it"
    replayed = replay(run.path)
    assert (replayed.run_status, replayed.model_uri) == ("FAILED", None) and replayed.metrics > 0
    check_delivered(run, server, status="FAILED")
