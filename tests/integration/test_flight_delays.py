"""The example on all of its flights, with four of the ten epochs of `make run`: what it promises at least."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from sparktrain.config import load_config
from sparktrain.gang.supervise import TrainResult
from sparktrain.stages import prepare_stage, train_stage
from tests.fixtures.command import ROOT

pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def trained(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    root: Path = tmp_path_factory.mktemp("flights")
    config = load_config(ROOT / "conf" / "flight_delays.yaml", [f"storage.root={root}", "train.epochs=4"])
    return train_stage(config, spark, prepare_stage(config, spark))


def test_late_flights_are_told_from_others(trained: TrainResult) -> None:
    assert trained.status == "finished" and trained.world_size == 2
    assert trained.dataset["rows"]["test"] > 30_000
    assert trained.metrics["test/auroc"] >= 0.775


def test_the_network_is_worth_more_than_a_logistic_regression(trained: TrainResult) -> None:
    metrics = trained.metrics
    assert metrics["reference/auroc"] > 0.7, "which is no straw man"
    assert metrics["test/auroc"] > metrics["reference/auroc"] + 0.03
    assert metrics["test/average_precision"] > metrics["reference/average_precision"] + 0.05
    assert metrics["test/loss"] < metrics["reference/loss"]
