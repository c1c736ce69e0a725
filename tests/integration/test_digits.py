"""The digits, as conf/digits.yaml has them: images of bytes through Spark, a CNN, and what comes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from pyspark.sql import SparkSession
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score

from pipelines.digits.data import KEY
from sparktrain.config import Config, load_config
from sparktrain.dataset import Dataset, open_dataset
from sparktrain.gang.supervise import TrainResult
from sparktrain.preparation.split import row_id
from sparktrain.stages import check_before_spark, prepare_stage, score_stage, train_stage
from tests.fixtures.arrow import to_arrow
from tests.fixtures.command import ROOT

pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.timeout(300)]

SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return load_config(ROOT / "conf" / "digits.yaml", [f"storage.root={tmp_path_factory.mktemp('digits')}"])


@pytest.fixture(scope="module")
def trained(spark: SparkSession, config: Config) -> TrainResult:
    check_before_spark(config, ["prepare", "train", "score"])
    return train_stage(config, spark, prepare_stage(config, spark))


@pytest.fixture(scope="module")
def dataset(trained: TrainResult) -> Dataset:
    return open_dataset(trained.dataset["path"])


@pytest.fixture(scope="module")
def predictions(trained: TrainResult) -> pa.Table:
    files = sorted((Path(trained.run_dir) / "predictions").glob("test-rank-*.parquet"))
    assert len(files) == trained.world_size == 2
    return pa.concat_tables([pq.read_table(file) for file in files])


def test_digits_are_read_with_few_errors(trained: TrainResult) -> None:
    assert trained.status == "finished" and trained.attempts == 1
    assert trained.metrics["test/accuracy"] >= 0.97
    assert trained.metrics["test/auroc"] > 0.99


def test_every_image_is_in_one_split_bit_for_bit(trained: TrainResult, dataset: Dataset) -> None:
    assert trained.dataset["quarantined"] == {}
    assert all(trained.dataset["rows"][split] > 100 for split in SPLITS)
    tables = [dataset.to_arrow(split, ["image", "digit"]) for split in SPLITS]
    pixels = [np.asarray(t["image"].to_pylist(), np.uint8).reshape(-1, 64) for t in tables]
    digits = np.concatenate([t["digit"].to_numpy() for t in tables])
    assert dataset.features.target.classes == tuple("0123456789"), "so that a class' number is the digit"
    source = load_digits()
    written = np.column_stack([np.concatenate(pixels), digits])
    there = np.column_stack([source.data.astype(np.uint8), source.target])
    assert sorted(map(bytes, written.astype(np.uint8))) == sorted(map(bytes, there.astype(np.uint8)))


def test_an_image_is_one_value_of_64_bytes_in_the_parts(dataset: Dataset) -> None:
    parts = sorted(Path(str(dataset.path), "train").glob("*.parquet"))
    assert len(parts) == 2
    assert all(pq.read_schema(part).field("image").type == pa.binary(64) for part in parts)


def test_the_metrics_are_those_of_the_predictions(trained: TrainResult, predictions: pa.Table) -> None:
    assert predictions.num_rows == trained.dataset["rows"]["test"]
    assert len(set(predictions["row_id"].to_pylist())) == predictions.num_rows
    probability = np.array(predictions["prediction"].to_pylist())  # [rows, 10]
    assert probability.shape == (predictions.num_rows, 10)
    np.testing.assert_allclose(probability.sum(axis=1), 1, atol=1e-5)
    accuracy = accuracy_score(predictions["target"].to_numpy(), probability.argmax(axis=1))
    assert trained.metrics["test/accuracy"] == pytest.approx(accuracy, abs=1e-6)


def test_mlflow_has_the_run_with_its_accuracy(trained: TrainResult) -> None:
    client = MlflowClient(f"sqlite:///{Path(trained.run_dir).parents[1]}/mlflow.db")
    run = client.get_run(trained.run_id)
    assert run.info.status == "FINISHED" and run.data.params["pipeline"] == "digits"
    assert run.data.metrics["test/accuracy"] == pytest.approx(trained.metrics["test/accuracy"])
    curve = [m.value for m in client.get_metric_history(trained.run_id, "validation/accuracy")]
    assert len(curve) == 20 and curve[-1] > curve[0]


def test_the_registered_model_reads_every_raw_digit_as_the_evaluation_did(
    spark: SparkSession, config: Config, trained: TrainResult, predictions: pa.Table
) -> None:
    assert trained.model_uri == "models:/digits/1"
    answer = score_stage(config, spark)
    assert answer["rows"] == len(load_digits().target)
    rows = spark.read.parquet(answer["output"])
    types = {name: kind for name, kind in rows.dtypes if name not in ("number", "image", "digit")}
    assert types == {"prediction": "bigint", "probability": "array<double>", "score_error": "string"}
    scored = to_arrow(rows.withColumn("row_id", row_id(KEY)))
    assert scored["score_error"].null_count == scored.num_rows
    assert accuracy_score(scored["digit"].to_numpy(), scored["prediction"].to_numpy()) >= 0.97
    evaluated = dict(
        zip(predictions["row_id"].to_pylist(), predictions["prediction"].to_pylist(), strict=True)
    )
    found = {row["row_id"]: row["probability"] for row in scored.to_pylist() if row["row_id"] in evaluated}
    assert found.keys() == evaluated.keys()
    wanted = [evaluated[row] for row in found]
    np.testing.assert_allclose(list(found.values()), wanted, rtol=0, atol=1e-6)
