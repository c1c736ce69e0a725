"""Params as a configuration, and what is refused before anything runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pytest
from pyspark.sql.types import DoubleType, StructField, StructType

from sparktrain import TorchClassifier, TorchRegressor
from sparktrain.errors import ConfigError, SchemaMismatch, SplitEmpty, StorageUnwritable, TrackingUnavailable
from sparktrain.estimator.fitting import storage_root
from sparktrain.estimator.inputs import inputs_of
from sparktrain.estimator.settings import named_by_params, settings_of

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark


@pytest.fixture(autouse=True)
def no_mlflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody has told MLflow where to track."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    mlflow.set_tracking_uri(None)
    yield
    mlflow.set_tracking_uri(None)


def settings(spark: SparkSession, num_rows: int | None = None, **params: Any) -> Any:
    return settings_of(TorchClassifier(**params), spark, Path("root"), num_rows)


def test_params_are_the_configurations_keys_by_their_usual_names(spark: SparkSession) -> None:
    found = settings(spark, maxIter=3, stepSize=0.5, seed=7, numWorkers=2, batchSize=100, patience=4)
    assert found.pipeline == "torch_classifier"
    assert (found.train.epochs, found.train.learning_rate, found.train.seed) == (3, 0.5, 7)
    assert (found.train.ranks, found.train.early_stopping_evaluations) == (2, 4)
    assert (found.train.global_batch_size, found.train.num_lanes) == (100, 4)
    assert (found.prepare.split.validation, found.prepare.split.test) == (0.1, 0.0)
    assert found.train.best_metric == "loss" and found.data.tail == "mask"


def test_without_patience_every_row_is_trained_on(spark: SparkSession) -> None:
    assert settings(spark).prepare.split.wanted == ("train",)
    split = settings(spark, validationIndicatorCol="v", patience=1).prepare.split
    assert (split.method, split.column) == ("column", "_split_of_row")


def test_no_batch_is_larger_than_all_rows(spark: SparkSession) -> None:
    assert settings(spark, num_rows=10).train.global_batch_size == 10
    assert settings(spark, num_rows=1, numWorkers=2).train.global_batch_size == 2


def test_further_keys_of_the_configuration_hold(spark: SparkSession) -> None:
    found = settings(spark, config={"train.precision": "bf16", "prepare.num_parts": 2, "train.ddp": {}})
    assert (found.train.precision, found.prepare.num_parts) == ("bf16", 2)


def test_what_can_not_be_is_told_at_once_with_the_way_out(spark: SparkSession) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(
            spark,
            maxIter=0,
            handleInvalid="drop",
            patience=-1,
            validationFraction=1.5,
            config={"train.epoch": 3, "train.seed": 3, "storage.root": "x"},
        )
    text = str(caught.value)
    for told in (
        "handleInvalid: 'drop' given; it is error, skip or keep",
        "patience: -1 given",
        "validationFraction: 1.5 given",
        "- maxIter: 0 given",
        "train.epoch: unknown key; did you mean train.epochs?",
        "config: train.seed is what the Param seed says; set that",
        "config: storage.root is what the Param storageRoot says; set that",
    ):
        assert text.count(told) == 1
    assert "7 errors in the estimator's Params" in text, "each is told once"
    with pytest.raises(ConfigError, match=r"^1 error in"):
        settings(spark, patience=-1)
    with pytest.raises(ConfigError, match=r"^1 error in"):
        settings(spark, patience=2, validationFraction=1.5)
    with pytest.raises(ConfigError, match=r"numWorkers: needs 3 slots, .* set numWorkers=\d"):
        settings(spark, numWorkers=3)


def test_what_no_network_can_be_of_is_told_before_any_row_is_read(spark: SparkSession) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(spark, hiddenLayers=[8, 0], embeddingSize=0, dropout=1.0, thresholds=[0.5, -1.0])
    text = str(caught.value)
    for told in (
        "4 errors",
        "hiddenLayers: [8, 0] given; each layer has 1 or more, and [] is a linear model",
        "embeddingSize: 0 given; it is 1 or more",
        "dropout: 1.0 given; it is at least 0 and below 1",
        "thresholds: [0.5, -1.0] given; give numbers above 0",
    ):
        assert told in text
    with pytest.raises(ConfigError, match="taskArguments: no task is given; set task"):
        settings(spark, taskArguments={"a": 1})
    with pytest.raises(ConfigError, match="dropout: a task of your own is given; set what it has in"):
        settings(spark, task="pipelines.flight_delays", dropout=2.0)
    assert settings(spark, hiddenLayers=[], dropout=0.0, thresholds=[0.0, 1.0]).pipeline == "torch_classifier"


def test_errors_of_files_splits_and_mlflow_name_params() -> None:
    errors = {
        r"lies under storageRoot: .* storageRoot=/": StorageUnwritable("/nowhere", "Read-only file system"),
        r"correct trackingUri .* leave both empty to log nothing": TrackingUnavailable("http://a", "no"),
        r"^3 rows .* split validation\. Give more rows or another valid": SplitEmpty(3, ["validation"]),
    }
    for told, error in errors.items():
        with pytest.raises(type(error), match=told) as caught, named_by_params():
            raise error
        assert not re.search(r"(storage|prepare)\.\w+|SQLite", str(caught.value))


def test_mlflow_is_left_alone_unless_somebody_set_it(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settings(spark).tracking.is_none
    uri = f"sqlite:///{tmp_path}/a.db"
    assert settings(spark, trackingUri=uri).tracking.uri == uri
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/b.db")
    found = settings(spark).tracking
    assert found.uri == f"sqlite:///{tmp_path}/b.db" and not found.register_model
    assert settings(spark, registeredModelName="m").tracking.register_model


def test_a_model_without_a_registry_to_go_to_is_refused(spark: SparkSession) -> None:
    with pytest.raises(ConfigError, match="registeredModelName: there is no MLflow; set trackingUri"):
        settings(spark, registeredModelName="m")


def test_an_active_run_is_the_parent_also_of_copies_that_other_threads_fit(
    spark: SparkSession, tmp_path: Path
) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/a.db")
    with mlflow.start_run(experiment_id="0") as run:
        assert settings(spark).tracking.parent_run_id == run.info.run_id
        copied = TorchRegressor().copy()
    again = copied.copy({})
    assert settings_of(again, spark, tmp_path).tracking.parent_run_id == run.info.run_id
    given = TorchRegressor(parentRunId="abc")
    assert settings_of(given, spark, tmp_path).tracking.parent_run_id == "abc"


def test_an_input_that_is_there_twice_is_refused() -> None:
    schema = StructType([StructField(name, DoubleType()) for name in ("a", "x", "x")])
    assert [item.name for item in inputs_of(TorchClassifier(inputCols=["a"]), "features", schema)] == ["a"]
    with pytest.raises(SchemaMismatch, match="there are several columns of this name"):
        inputs_of(TorchClassifier(inputCols=["a", "x"]), "features", schema)


class ACluster:
    """As much of a session as is asked for."""

    class conf:
        @staticmethod
        def get(name: str, default: str) -> str:
            return {"spark.master": "spark://head:7077"}.get(name, default)


def test_a_cluster_needs_a_directory_that_all_see(tmp_path: Path) -> None:
    cluster: Any = ACluster()
    with pytest.raises(ConfigError, match="storageRoot: it is not set, and executors on other hosts"):
        storage_root(TorchClassifier(), cluster)
    assert storage_root(TorchClassifier(storageRoot=str(tmp_path)), cluster) == tmp_path
