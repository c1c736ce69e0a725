"""The whole job, as the README starts it: what it prints, what it leaves, and that all of it agrees."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.models import Model
from pyspark.sql import SparkSession
from torchmetrics.classification import BinaryAUROC

from pipelines.flight_delays.data import KEY
from sparktrain.preparation.split import row_id
from tests.fixtures.arrow import to_arrow
from tests.integration.conftest import Job

pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def client(finished: Job) -> MlflowClient:
    return MlflowClient(finished.tracking_uri, registry_uri=finished.tracking_uri)


@pytest.fixture(scope="module")
def run(finished: Job, client: MlflowClient) -> Run:
    return client.get_run(finished.result["run_id"])


def test_stdout_is_one_json_object_and_the_run_directory_holds_the_same(finished: Job) -> None:
    assert finished.result == json.loads((finished.run_dir / "result.json").read_bytes())
    assert finished.ended.stderr.strip(), "people are told on stderr"
    assert "Traceback" not in finished.ended.stderr


def test_the_result_has_the_promised_keys(finished: Job) -> None:
    result = finished.result
    promised = {"status", "run_id", "run_dir", "dataset", "world_size", "attempts", "steps", "metrics"}
    assert promised | {"model_uri", "seconds"} <= set(result)
    assert {"path", "fingerprint", "rows", "quarantined"} <= set(result["dataset"])
    assert set(result["dataset"]["rows"]) == {"train", "validation", "test"}
    assert (result["status"], result["world_size"], result["attempts"]) == ("finished", 2, 1)
    assert result["steps"] == 2 * (result["dataset"]["rows"]["train"] // 512)
    assert result["model_uri"] == "models:/flight_delays/1"
    assert all(seconds > 0 for seconds in result["seconds"].values())


def test_nothing_is_written_outside_the_storage_root(finished: Job) -> None:
    assert finished.after == finished.before
    left = {path.name for path in finished.scratch.iterdir()}
    assert not {name for name in left if "sparktrain" in name or name.startswith(("spark", "tmp", "pyspark"))}


def test_the_sample_teaches_the_model_something(finished: Job) -> None:
    assert finished.result["metrics"]["test/auroc"] > 0.6
    assert finished.result["metrics"]["validation/auroc"] > 0.6


def test_every_row_that_came_in_was_kept_or_quarantined(finished: Job) -> None:
    manifest, rows = finished.manifest, finished.result["dataset"]["rows"]
    kept, quarantined = sum(rows.values()), sum(finished.result["dataset"]["quarantined"].values())
    assert manifest["rows_in"] == kept + quarantined
    assert manifest["rows_kept"] == kept and quarantined > 0
    assert pq.read_table(finished.dataset / "quarantine").num_rows == quarantined
    written = {name: pads.dataset(finished.dataset / name).count_rows() for name in rows}
    assert written == rows


def test_mlflow_has_one_finished_run_with_the_resolved_configuration(
    finished: Job, client: MlflowClient, run: Run, flights: Path
) -> None:
    experiment = client.get_experiment_by_name("flight_delays")
    assert [r.info.run_id for r in client.search_runs([experiment.experiment_id])] == [run.info.run_id]
    assert run.info.status == "FINISHED"
    assert run.data.params["train.epochs"] == "2"  # overridden
    assert run.data.params["train.learning_rate"] == "0.005"  # of the file
    assert run.data.params["prepare.source.directory"] == str(flights)
    written = yaml.safe_load(_artifact(finished, run, "config.yaml"))
    assert written["train"]["global_batch_size"] == 512 and written["pipeline"] == "flight_delays"


def test_mlflow_has_each_metric_once_a_step(finished: Job, client: MlflowClient, run: Run) -> None:
    for name in ("train/loss", "train/learning_rate", "validation/auroc", "test/auroc"):
        steps = [metric.step for metric in client.get_metric_history(run.info.run_id, name)]
        assert steps and max(Counter(steps).values()) == 1, name
        assert max(steps) == finished.result["steps"], name
    for name, value in finished.result["metrics"].items():
        if name.startswith("test/"):
            assert run.data.metrics[name] == pytest.approx(value, abs=1e-12)


def test_mlflow_knows_the_dataset_by_our_fingerprint(finished: Job, run: Run) -> None:
    [used] = run.inputs.dataset_inputs
    assert used.dataset.digest == finished.result["dataset"]["fingerprint"]
    assert used.dataset.name == "flight_delays"


def test_mlflow_has_the_plots(finished: Job, client: MlflowClient, run: Run) -> None:
    plots = {file.path: file.file_size for file in client.list_artifacts(run.info.run_id, "plots")}
    wanted = {f"plots/{name}.png" for name in ("loss", "roc", "precision_recall", "calibration", "confusion")}
    assert wanted <= set(plots) and min(plots.values()) > 1000


def test_mlflow_has_the_run_on_one_page_its_figures_as_a_table_and_what_it_ran_on(
    finished: Job, client: MlflowClient, run: Run
) -> None:
    papers = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"report.html", "evaluation.json", "config.yaml", "model.txt"} <= papers
    assert run.data.tags["mlflow.note.content"].startswith("Finished: ")
    assert run.data.tags["spark.app_id"] and run.data.tags["sparktrain.attempts"] == "1"
    assert any(re.fullmatch(r"system/.+/cpu_percent", name) for name in run.data.metrics)
    [best] = [
        model
        for model in client.search_logged_models([run.info.experiment_id])
        if "best" in model.tags["sparktrain.checkpoint_role"]
    ]
    metrics = {metric.key: metric.value for metric in best.metrics}
    assert metrics["test/auroc"] == pytest.approx(finished.result["metrics"]["test/auroc"], abs=1e-12)


def test_the_registered_model_takes_raw_columns(finished: Job, client: MlflowClient) -> None:
    version = client.get_model_version_by_alias("flight_delays", "champion")
    assert finished.result["model_uri"] == f"models:/flight_delays/{version.version}"
    folder = client.get_model_version_download_uri("flight_delays", version.version)
    model = Model.load(unquote(folder.removeprefix("file://")))
    columns = model.get_input_schema().input_names()
    assert {"carrier", "dest", "month", "temp"} <= set(columns) and "month_category" not in columns
    assert model.get_output_schema().input_names() == ["prediction", "probability", "score_error"]
    assert model.saved_input_example_info is not None


def test_the_registered_model_takes_the_source_s_own_rows(
    finished: Job, spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through MLflow's pyfunc, as a server would: integers, nulls and all."""
    scores = spark.read.parquet(finished.result["score"]["output"]).limit(2000).toPandas()
    raw = scores.drop(columns=["prediction", "probability", "score_error"])
    assert raw["plane_age"].isna().any() and raw["departure_minute"].dtype == np.int64
    monkeypatch.setenv("MLFLOW_TRACKING_URI", finished.tracking_uri)
    predicted = mlflow.pyfunc.load_model("models:/flight_delays@champion").predict(raw)
    np.testing.assert_allclose(predicted["probability"], scores["probability"], rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def scored(finished: Job, spark: SparkSession) -> pa.Table:
    """The scored rows, with the identity that preparing gave them."""
    rows = spark.read.parquet(finished.result["score"]["output"])
    return to_arrow(rows.select(row_id(KEY).alias("row_id"), "arr_delay", "probability"))


def test_scoring_gives_the_probabilities_of_the_evaluation(finished: Job, scored: pa.Table) -> None:
    evaluated = _evaluated(finished).sort_by("row_id")
    scored = scored.filter(pc.field("row_id").isin(evaluated["row_id"])).sort_by("row_id")
    assert scored["row_id"].to_pylist() == evaluated["row_id"].to_pylist()
    ours, theirs = scored["probability"].to_numpy(), evaluated["probability"].to_numpy()
    assert evaluated.num_rows == finished.result["dataset"]["rows"]["test"]
    assert np.abs(ours - theirs).max() < 1e-6


def test_the_auroc_of_the_scores_is_the_one_in_the_result(finished: Job, scored: pa.Table) -> None:
    rows = _evaluated(finished).select(["row_id"]).join(scored, "row_id")
    late = torch.tensor(pc.greater(rows["arr_delay"], 15).to_numpy().astype("int64"))
    found = BinaryAUROC()(torch.tensor(rows["probability"].to_numpy()), late)
    assert float(found) == pytest.approx(finished.result["metrics"]["test/auroc"], abs=1e-6)


def test_every_raw_row_is_scored_the_quarantined_ones_too(finished: Job) -> None:
    scored = pq.read_table(finished.result["score"]["output"])
    assert scored.num_rows == finished.manifest["rows_in"] == finished.result["score"]["rows"]
    probability = scored["probability"].to_numpy()
    assert ((probability > 0) & (probability < 1)).all()


def test_the_same_input_gives_the_same_dataset(finished: Job) -> None:
    again = finished.again.result()
    assert again.exit_code == 0, again.stderr
    assert again.json["status"] == "finished"
    dataset = again.json["dataset"]
    assert dataset["fingerprint"] == finished.result["dataset"]["fingerprint"]
    assert dataset["rows_in"] == dataset["rows_kept"] + sum(dataset["quarantined"].values())
    features = Path(dataset["path"], "features.json").read_bytes()
    assert features == (finished.dataset / "features.json").read_bytes()


def _artifact(finished: Job, run: Run, name: str) -> str:
    folder = Path(unquote(run.info.artifact_uri.removeprefix("file://")))
    assert folder.is_relative_to(finished.root)
    return (folder / name).read_text(encoding="utf-8")


def _evaluated(finished: Job) -> pa.Table:
    files = sorted((finished.run_dir / "predictions").glob("test-rank-*.parquet"))
    assert len(files) == 2
    return pa.concat_tables([pq.read_table(file) for file in files])
