"""prepare is killed, for real: no dataset is seen, a rerun works and tidies up, the living are left alone."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from sparktrain.dataset import open_dataset
from sparktrain.errors import DatasetInvalid
from sparktrain.preparation import staging as module
from sparktrain.preparation.staging import staging_directory
from tests.fixtures import slow_prepare
from tests.fixtures.command import ROOT, Running

pytestmark = [pytest.mark.spark, pytest.mark.slow]


def start(root: Path, phase: str) -> Running:
    given = {slow_prepare.SLOW_PHASE: phase, slow_prepare.READING: str(root / "reading")}
    quick = {"PYSPARK_PYTHON": sys.executable, "JDK_JAVA_OPTIONS": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"}
    command = [sys.executable, "-m", "tests.fixtures.slow_prepare", str(root)]
    return Running(command, ROOT, {**os.environ, **quick, **given}, root / "log")


def wait_for(running: Running, happened: Callable[[], object], limit_seconds: float = 60.0) -> None:
    started = time.monotonic()
    while not happened():
        assert running.process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() - started < limit_seconds
        time.sleep(0.002)


def left_in(home: Path) -> list[Path]:
    return list(home.glob(".staging-*"))


def kill_driver(running: Running) -> None:
    running.signal(signal.SIGKILL)
    assert running.process.wait(30) == -signal.SIGKILL, "it was still running"
    running.seconds_until_gone(30)


@pytest.mark.parametrize("phase", ["spooling", "writing"])
def test_a_killed_preparation_leaves_no_dataset_and_a_rerun_works(
    spark: SparkSession, tmp_path: Path, phase: str
) -> None:
    home = tmp_path / "datasets" / "shop"
    reached = {"spooling": "spool/*.arrow", "writing": "train/*.parquet"}[phase]
    running = start(tmp_path, phase)
    try:
        wait_for(running, lambda: list(home.glob(f".staging-*/{reached}")))
        kill_driver(running)
    finally:
        if running.processes():
            running.kill()
    (left,) = home.iterdir()
    assert left.name.startswith(".staging-") and not (left / "manifest.json").exists()
    assert (left / "train").exists() == (phase == "writing")
    with pytest.raises(DatasetInvalid, match="never committed"):
        open_dataset(home)

    dataset = slow_prepare.run(spark, tmp_path)
    assert sorted(path.name for path in home.iterdir()) == sorted([dataset.fingerprint, "latest.json"])
    assert open_dataset(home) == dataset and dataset.manifest.rows_kept == slow_prepare.NUM_ROWS
    dataset.verify()


def test_what_a_living_preparation_grows_is_left_alone_until_it_is_killed(
    spark: SparkSession, tmp_path: Path
) -> None:
    home = tmp_path / "datasets" / "shop"
    running = start(tmp_path, "reading")
    try:
        wait_for(running, (tmp_path / "reading").exists)
        (growing,) = home.iterdir()
        with pytest.raises(DatasetInvalid, match="never committed"):
            open_dataset(home)
        dataset = slow_prepare.run(spark, tmp_path)
        assert running.process.poll() is None and left_in(home) == [growing]
        assert open_dataset(home) == dataset
        kill_driver(running)
    finally:
        if running.processes():
            running.kill()
    assert left_in(home) == [growing] and not (growing / "spool").exists()
    assert slow_prepare.run(spark, tmp_path) == dataset
    assert left_in(home) == []


def test_what_has_no_owner_goes_when_it_is_old(tmp_path: Path) -> None:
    young, old = tmp_path / ".staging-young", tmp_path / ".staging-old"
    for left in (young, old):
        left.mkdir()
    os.utime(old, (0, time.time() - module._ABANDONED_SECONDS - 60))
    with staging_directory(tmp_path) as staging:
        assert sorted(tmp_path.iterdir()) == sorted([young, staging])
    assert list(tmp_path.iterdir()) == [young]
