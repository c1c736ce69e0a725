"""What is published of a run: its figures, its checkpoints, and a model of whatever targets there are."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlflow
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparktrain.dataset import Dataset, open_dataset
from sparktrain.dataset.card import CARD_PAGE
from sparktrain.errors import RankLost
from sparktrain.gang.rank import RunSpec, train_rank
from sparktrain.gang.supervise import describe_dataset
from sparktrain.runs.follow import deliver_all
from sparktrain.runs.publish import Outcome, publish, publish_or_tell
from sparktrain.runs.tracking import Tracker
from sparktrain.testing import TargetKind, run_ranks, write_tiny_dataset
from sparktrain.training.checkpoint import Checkpoint, committed, newest_valid, open_checkpoint
from sparktrain.training.checkpoint_state import export_weights
from tests.fixtures.object_store import ENVIRONMENT, object_store
from tests.fixtures.tiny_kinds.model import Task as KindsTask
from tests.fixtures.tiny_model import new_run, tiny_config
from tests.fixtures.tiny_task import TINY_CONFIG, FaultyTask, TinyRegression, TinyTask

pytestmark = pytest.mark.ranks

REGRESSION = KindsTask(kinds={"label": "regression"})


@pytest.mark.parametrize(
    ("kind", "metric", "prediction", "plots"),
    [
        ("multiclass", "accuracy", pa.list_(pa.float32(), 3), ["calibration", "confusion", "loss", "roc"]),
        ("regression", "r2", pa.float32(), ["loss", "predicted_observed", "residuals"]),
    ],
)
def test_a_model_of_another_target_than_a_binary_one_is_registered_too(
    root: Path, tmp_path: Path, kind: TargetKind, metric: str, prediction: pa.DataType, plots: Sequence[str]
) -> None:
    dataset = write_tiny_dataset(tmp_path / "tiny", 64, validation_rows=20, test_rows=30, target_kinds=[kind])
    config = tiny_config(
        root, train={"best_metric": metric}, tracking={"registered_model": kind, "experiment": kind}
    )
    run = new_run(root)
    tracker = Tracker.start(run, config, dataset)
    train = TINY_CONFIG.model_copy(update={"ranks": 2, "best_metric": metric})
    run.checkpoints.mkdir(exist_ok=True)
    task = KindsTask(kinds={"label": kind})
    outcome = run_ranks(2, train_rank, RunSpec(run.path, dataset.path, task, train, None))[0]
    found = Outcome.of(outcome, dataset, task, config)
    assert publish(run, tracker, dataset, found) == f"models:/{kind}/1"
    metrics = found.metrics
    assert not any(name.startswith("reference/") for name in metrics)
    assert f"test/{metric}" in metrics
    assert names(tracker, "plots") == [f"plots/{name}.png" for name in plots]
    found_run = tracker.client.get_run(tracker.run_id)
    assert "evaluation.json" in found_run.data.tags["mlflow.loggedArtifacts"], "MLflow shows it as a table"
    table = json.loads(mlflow.artifacts.load_text(f"{found_run.info.artifact_uri}/evaluation.json"))
    assert table["columns"] == ["metric", "validation", "test"]
    assert {row[0]: row[2] for row in table["data"]}[metric] == pytest.approx(metrics[f"test/{metric}"])
    rows = pa.concat_tables([pq.read_table(file) for file in sorted(run.predictions.iterdir())])
    assert rows.column_names == ["row_id", "prediction", "target"]
    assert rows.schema.field("prediction").type == prediction
    assert sorted(rows["row_id"].to_pylist()) == list(range(84, 114))


def test_a_model_that_gives_no_scores_is_not_registered_and_the_rest_of_the_run_is_kept(
    root: Path, tmp_path: Path
) -> None:
    dataset = write_tiny_dataset(tmp_path / "tiny", 64, test_rows=30)
    config, run = tiny_config(root, tracking={"registered_model": "none"}), new_run(root)
    tracker = Tracker.start(run, config, dataset)
    task = TinyTask()  # in no model.py, as if that were gone
    run.checkpoints.mkdir(exist_ok=True)
    trained = run_ranks(1, train_rank, RunSpec(run.path, dataset.path, task, TINY_CONFIG, None))[0]
    published = publish_or_tell(run, tracker, dataset, Outcome.of(trained, dataset, task, config))
    assert published.model_uri is None and published.reached
    assert published.problem is not None and "there is no such package with a model.py" in published.problem
    assert "loss.png" in " ".join(names(tracker, "plots"))


@dataclasses.dataclass(frozen=True)
class ComparedTask(TinyRegression):
    """Brings a reference of its own, which fails where there is nothing to divide by."""

    rows: int = 2

    def reference(self, dataset: Dataset) -> dict[str, float]:
        return {"r2": dataset.num_rows("test") / self.rows}


def test_a_task_brings_its_own_reference_and_one_that_fails_costs_no_run(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = write_tiny_dataset(tmp_path / "tiny", 64, test_rows=30, target_kinds=["regression"])
    trained = {"steps": 1, "metrics": {"test/r2": 0.5}, "best": "step-1"}

    def metrics(task: ComparedTask, reference: str) -> dict[str, float]:
        config = tiny_config(root, train={"best_metric": "r2", "reference": reference})
        return dict(Outcome.of(trained, dataset, task, config).metrics)

    assert metrics(ComparedTask(), "task") == {"test/r2": 0.5, "reference/r2": 15.0}
    assert metrics(ComparedTask(), "none") == metrics(ComparedTask(), "logistic_regression")
    assert metrics(ComparedTask(), "none") == {"test/r2": 0.5} == metrics(ComparedTask(rows=0), "task")
    assert "no reference: the Task's own failed" in caplog.text and "ZeroDivisionError" in caplog.text


def test_the_checkpoints_that_matter_become_logged_models_with_their_metrics_once(
    root: Path, tmp_path: Path
) -> None:
    dataset = write_tiny_dataset(
        tmp_path / "tiny", 320, validation_rows=40, test_rows=30, target_kinds=["regression"]
    )
    config = tiny_config(root, train={"best_metric": "r2"}, tracking={"experiment": "checkpoints"})
    run = new_run(root)
    # A rate that rises too far: the best checkpoint is not the last one.
    train = TINY_CONFIG.model_copy(update={"best_metric": "r2", "epochs": 4, "learning_rate": 3.0})
    run.checkpoints.mkdir(exist_ok=True)
    trained = run_ranks(1, train_rank, RunSpec(run.path, dataset.path, REGRESSION, train, None))[0]
    outcome = Outcome.of(trained, dataset, REGRESSION, config)
    tracker = Tracker.start(run, config, dataset)
    deliver_all(run, tracker)
    for _ in range(2):
        publish(run, tracker, dataset, outcome)
    models = tracker.client.search_logged_models([tracker.experiment_id])
    by_role = {model.tags["sparktrain.checkpoint_role"]: model for model in models}
    assert len(models) == len(by_role)
    newest = newest_valid(run.checkpoints)
    assert newest is not None and newest.path.name != trained["best"]
    roles = {"best": trained["best"], "last": newest.path.name}
    assert {role: model.tags["sparktrain.checkpoint"] for role, model in by_role.items()} == roles
    steps = {model.step for model in tracker.client.get_run(tracker.run_id).outputs.model_outputs}
    for role, model in by_role.items():
        assert model.source_run_id == tracker.run_id and str(model.status) == "READY"
        saved = open_checkpoint(run.checkpoints / roles[role])
        assert model.tags["sparktrain.checkpoint_path"] == str(saved.path) and saved.step in steps
        of_it = {metric.key: metric for metric in model.metrics}
        assert len(of_it) == len(model.metrics)
        assert of_it["validation/r2"].step == of_it["train/loss"].step == saved.step
        assert {metric.dataset_digest for metric in model.metrics} == {dataset.fingerprint}
        assert ("test/r2" in of_it) == ("best" in role)
        if "best" in role:
            assert of_it["test/r2"].value == trained["metrics"]["test/r2"]
            assert of_it["validation/r2"].value == trained["metrics"]["validation/r2"]
        files = {file.path for file in tracker.client.list_logged_model_artifacts(model.model_id)}
        if "best" in role:  # which is the registered model, too
            assert files >= {"MLmodel", "artifacts", "code"}
        else:
            assert files == {"checkpoint.json"}
    for key in ("validation/r2", "train/loss", "test/r2"):
        history = tracker.client.get_metric_history(tracker.run_id, key)
        assert len({metric.step for metric in history}) == len(history), f"{key}: each step once"


def test_ranks_train_on_a_dataset_in_an_object_store(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = write_tiny_dataset(
        tmp_path / "tiny", 64, validation_rows=20, test_rows=30, target_kinds=["regression"]
    )
    (dataset.path / CARD_PAGE).write_text("a card")
    task, config = REGRESSION, tiny_config(root, train={"best_metric": "r2"})
    train = TINY_CONFIG.model_copy(update={"ranks": 2, "best_metric": "r2"})
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with object_store() as store:
        uri = store.upload(dataset.path, "tiny")
        metrics = []
        for place in (dataset, open_dataset(uri, cache=tmp_path / "cache")):
            run = new_run(root)
            run.checkpoints.mkdir(exist_ok=True)
            tracker = Tracker.start(run, config, place)
            outcome = run_ranks(2, train_rank, RunSpec(run.path, place.path.resolve(), task, train, None))[0]
            found = Outcome.of(outcome, place, task, config)
            publish(run, tracker, place, found)
            metrics.append(found.metrics)
            assert names(tracker, "dataset") == [f"dataset/{CARD_PAGE}"]
        assert describe_dataset(place)["path"] == uri
    assert metrics[0] == metrics[1]
    assert len(list((tmp_path / "cache").glob("*.whole"))) == 6  # two parts of each split


def test_checkpoints_in_an_object_store_are_resumed_kept_and_published(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = write_tiny_dataset(tmp_path / "tiny", 650, validation_rows=50, test_rows=40)
    train = TINY_CONFIG.model_copy(update={"ranks": 2, "checkpoint_every_steps": 5, "keep_checkpoints": 2})
    task, faulty = TinyTask(dropout=0.3), FaultyTask(dropout=0.3, kind="sigkill", rank=1, step=33)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with object_store() as store:
        runs: dict[str, dict[str, Any]] = {}
        saves: dict[str, Checkpoint] = {}
        for elsewhere in (None, store.uri("saves")):
            config = tiny_config(root, storage={"root": str(root), "checkpoints": elsewhere})
            run = new_run(root)
            run.checkpoints.mkdir(exist_ok=True)
            place = run.checkpoints_in(elsewhere)
            spec = RunSpec(run.path, dataset.path, faulty, train, None, checkpoints=place)
            with pytest.raises(RankLost):
                run_ranks(2, train_rank, spec)
            saved = newest_valid(place)
            assert saved is not None and saved.step == 30, "the fault did not fire"
            monkeypatch.setenv("SPARKTRAIN_ATTEMPT", "2")
            spec = dataclasses.replace(spec, task=task, resume_from=saved.path)
            runs[str(elsewhere)] = run_ranks(2, train_rank, spec)[0]
            last = newest_valid(place)
            assert last is not None and last.step == 40
            saves[str(elsewhere)] = last
            assert len(list(committed(place))) in (2, 3), "two, and the best"
            assert (elsewhere is None) == any(run.checkpoints.iterdir())
        here, there = runs
        assert runs[here] == runs[there]
        assert saves[here].files == saves[there].files
        export_weights(open_checkpoint(place / runs[there]["best"]), tmp_path / "weights.safetensors")
        tracker = Tracker.start(run, config, dataset)
        kept: list[bytes] = []
        monkeypatch.setattr(
            "sparktrain.runs.publish.log_model", lambda *_, weights, **__: kept.append(weights.read_bytes())
        )
        publish(run, tracker, dataset, Outcome.of(runs[there], dataset, task, config))
        assert kept == [(tmp_path / "weights.safetensors").read_bytes()]


def names(tracker: Tracker, folder: str) -> Sequence[str]:
    return [file.path for file in tracker.client.list_artifacts(tracker.run_id, folder)]
