"""The delay in minutes: a regression on a tenth of the flights, beside who always says the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from pyspark.sql import SparkSession
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from pipelines.flight_delays import data as flight_delays
from pipelines.flight_minutes import data
from sparktrain.config import Config, load_config
from sparktrain.dataset import open_dataset
from sparktrain.gang.supervise import TrainResult
from sparktrain.stages import check_before_spark, prepare_stage, score_stage, train_stage
from tests.fixtures.command import ROOT

pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.timeout(300)]

SAMPLE = ("prepare.source.fraction=0.1", "train.epochs=5", "train.global_batch_size=512")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    root = tmp_path_factory.mktemp("minutes")
    return load_config(ROOT / "conf" / "flight_minutes.yaml", [f"storage.root={root}", *SAMPLE])


@pytest.fixture(scope="module")
def trained(spark: SparkSession, config: Config) -> TrainResult:
    check_before_spark(config, ["prepare", "train", "score"])
    return train_stage(config, spark, prepare_stage(config, spark))


@pytest.fixture(scope="module")
def predictions(trained: TrainResult) -> pa.Table:
    files = sorted((Path(trained.run_dir) / "predictions").glob("test-rank-*.parquet"))
    return pa.concat_tables([pq.read_table(file) for file in files])


def test_the_delay_is_foreseen_better_than_by_its_mean_and_its_median(
    trained: TrainResult, predictions: pa.Table
) -> None:
    assert trained.status == "finished"
    assert trained.metrics["test/r2"] > 0.1
    dataset, minutes = open_dataset(trained.dataset["path"]), predictions["target"].to_numpy()
    known = dataset.to_arrow("train", ["minutes_late"])["minutes_late"].to_numpy()
    for constant in (known.mean(), np.median(known)):
        always = np.full(len(minutes), constant)
        assert trained.metrics["test/rmse"] < 0.95 * root_mean_squared_error(minutes, always)
        assert trained.metrics["test/mae"] < 0.98 * mean_absolute_error(minutes, always)


def test_the_metrics_are_in_minutes_those_of_the_predictions(
    trained: TrainResult, predictions: pa.Table
) -> None:
    minutes, predicted = predictions["target"].to_numpy(), predictions["prediction"].to_numpy()
    assert minutes.max() > 120 and minutes.min() < -20, "some came hours late, some early"
    assert trained.metrics["test/r2"] == pytest.approx(r2_score(minutes, predicted), abs=1e-4)
    assert trained.metrics["test/mae"] == pytest.approx(mean_absolute_error(minutes, predicted), rel=1e-4)
    rmse = root_mean_squared_error(minutes, predicted)
    assert trained.metrics["test/rmse"] == pytest.approx(rmse, rel=1e-4)
    assert trained.metrics["test/loss"] * 3600 == pytest.approx(rmse**2, rel=1e-3)


def test_only_flights_that_arrived_are_learnt_from(trained: TrainResult) -> None:
    assert set(trained.dataset["quarantined"]) == {"arrived"}
    dataset = open_dataset(trained.dataset["path"])
    minutes = [dataset.to_arrow(split, ["minutes_late"])["minutes_late"] for split in trained.dataset["rows"]]
    assert all(column.null_count == 0 for column in minutes)
    # the whole minutes of the source, neither normalized nor cut
    assert all(pc.all(pc.equal(pc.round(column), column)).as_py() for column in minutes)


def test_the_features_are_those_of_the_other_pipeline() -> None:
    assert data.FEATURES is flight_delays.FEATURES and data.KEY == flight_delays.KEY
    assert data.TARGET.source not in {feature.source for feature in data.FEATURES}


def test_mlflow_has_the_run_with_its_r2(trained: TrainResult) -> None:
    client = MlflowClient(f"sqlite:///{Path(trained.run_dir).parents[1]}/mlflow.db")
    run = client.get_run(trained.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test/r2"] == pytest.approx(trained.metrics["test/r2"])


def test_the_registered_model_foresees_the_minutes_of_every_raw_flight(
    spark: SparkSession, config: Config, trained: TrainResult
) -> None:
    assert trained.model_uri == "models:/flight_minutes/1"
    answer = score_stage(config, spark)
    rows = spark.read.parquet(answer["output"])
    assert dict(rows.dtypes)["prediction"] == "double" and "probability" not in rows.columns
    found = rows.select("arr_delay", "prediction", "score_error").toPandas()
    kept, quarantined = sum(trained.dataset["rows"].values()), sum(trained.dataset["quarantined"].values())
    assert len(found) == answer["rows"] == kept + quarantined
    assert found["score_error"].isna().all() and np.isfinite(found["prediction"]).all()
    arrived = found.dropna(subset="arr_delay")
    assert r2_score(arrived["arr_delay"], arrived["prediction"]) > 0.1
