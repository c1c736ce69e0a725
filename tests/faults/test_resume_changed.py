"""R33: configuration or dataset changed on resume: the difference is shown, and refused if it matters."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

import sparktrain
from sparktrain.config import Config, parse_config
from sparktrain.dataset import Dataset
from sparktrain.errors import EXIT_CONFIG, RankFailed, ResumeRefused, RunUnderWay
from sparktrain.runs.directory import RunDirectory
from sparktrain.testing import write_tiny_dataset
from tests.fixtures.paused_task import paused_package, paused_task

pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module", autouse=True)
def code(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with paused_package(tmp_path_factory.mktemp("code")):
        yield


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """10 steps an epoch."""
    return write_tiny_dataset(
        tmp_path_factory.mktemp("datasets") / "tiny", 320, validation_rows=64, test_rows=64
    )


def config(root: Path, *, resume: bool = True, **train: Any) -> Config:
    sizes = {"epochs": 2, "global_batch_size": 32, "num_lanes": 4, "checkpoint_every_steps": 5}
    tree = {"pipeline": "flight_delays", "resume": resume, "storage": {"root": str(root)}}
    return parse_config({**tree, "train": {**sizes, **train}})


@pytest.fixture(scope="module")
def failed(spark: SparkSession, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a run that failed at step 8, after a checkpoint."""
    root = tmp_path_factory.mktemp("root")
    with pytest.raises(RankFailed, match="ordered by the test"):
        sparktrain.train(dataset, paused_task(fail_step=8), config(root, resume=False), spark=spark)
    [manifest] = root.glob("runs/*/checkpoints/*/manifest.json")
    assert json.loads(manifest.read_bytes())["step"] == 5, "the fault fired after the first save"
    return root


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"global_batch_size": 16}, "train.global_batch_size: the run has 32, now 16"),
        ({"num_lanes": 8}, "train.num_lanes: the run has 4, now 8"),
        ({"seed": 7}, "train.seed: the run has 0, now 7"),
        ({"model": {"hidden": 3}}, "train.model.hidden: the run has None, now 3"),
    ],
)
def test_what_breaks_the_meaning_of_a_run_is_refused(
    spark: SparkSession, dataset: Dataset, failed: Path, change: Mapping[str, Any], shown: str
) -> None:
    with pytest.raises(ResumeRefused) as refused:
        sparktrain.train(dataset, paused_task(), config(failed, **change), spark=spark)
    assert shown in str(refused.value) and "resume=false" in str(refused.value)
    assert refused.value.exit_code == EXIT_CONFIG
    check_untouched(failed)


def test_another_dataset_is_refused_by_its_fingerprint(
    spark: SparkSession, dataset: Dataset, failed: Path, tmp_path: Path
) -> None:
    other = write_tiny_dataset(tmp_path / "other", 320, validation_rows=64, test_rows=64, seed=1)
    assert other.fingerprint != dataset.fingerprint
    with pytest.raises(ResumeRefused) as refused:
        sparktrain.train(other, paused_task(), config(failed), spark=spark)
    assert f"dataset: the run has '{dataset.fingerprint}', now '{other.fingerprint}'" in str(refused.value)
    check_untouched(failed)


def test_a_run_that_another_process_trains_is_left_to_it(
    spark: SparkSession, dataset: Dataset, failed: Path
) -> None:
    [run] = (failed / "runs").iterdir()
    before = (run / "result.json").read_bytes()
    with RunDirectory(run).only_reporter() as alone, pytest.raises(RunUnderWay, match="in another process"):
        assert alone
        sparktrain.train(dataset, paused_task(), config(failed), spark=spark)
    check_untouched(failed)
    assert (run / "result.json").read_bytes() == before


def check_untouched(root: Path) -> None:
    """No second run, no second attempt."""
    [run] = (root / "runs").iterdir()
    assert [path.name for path in run.glob("attempt-*")] == ["attempt-001"]


def test_what_a_run_may_change_is_shown_and_goes_on(
    spark: SparkSession, dataset: Dataset, failed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Last in this file: it finishes the run."""
    with caplog.at_level(logging.WARNING):
        changed = config(failed, learning_rate=0.5, epochs=3)
        result = sparktrain.train(dataset, paused_task(), changed, spark=spark)
    assert "resuming with another train.learning_rate: was 0.002, now 0.5" in caplog.text
    assert "resuming with another train.epochs: was 2, now 3" in caplog.text
    assert (result.status, result.steps, result.attempts) == ("finished", 30, 2)
