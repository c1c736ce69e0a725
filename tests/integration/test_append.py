"""sparktrain append: the pipeline's new rows become a new version of its newest dataset."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fixtures.command import CONF, Workplace, write_flights
from tests.integration.conftest import Job

pytestmark = [pytest.mark.spark, pytest.mark.slow]


def test_new_flights_are_added_and_their_drift_is_told(
    workplace: Workplace, finished: Job, prepared_root: Callable[[str], Path], tmp_path: Path
) -> None:
    root = prepared_root("out")
    # flights of December, in the dataset or not: another season than the whole year's
    december = write_flights(
        tmp_path / "december", every=20, change=lambda rows: [row for row in rows if row["month"] == "12"]
    )
    ended = workplace.run(
        "append", CONF, f"storage.root={root}", f"prepare.source.directory={december}", "--json"
    )
    assert ended.exit_code == 0, ended.stderr
    told = ended.json["dataset"]
    old = finished.manifest
    manifest = json.loads((Path(told["path"]) / "manifest.json").read_bytes())
    assert manifest["appended_to"] == old["fingerprint"] != told["fingerprint"]
    assert manifest["rows_in"] == manifest["rows_kept"] + sum(manifest["quarantined"].values())
    assert manifest["rows_kept"] > old["rows_kept"]
    assert manifest["quarantined"]["already_there"] > 0
    drift = ended.json["drift"]
    assert drift["month"] > 0.25 and drift["temp"] > 0.25
    assert drift["carrier"] < 0.1
    assert "drift" in ended.stderr and "month" in ended.stderr


def test_without_a_dataset_the_way_out_is_told_before_spark_starts(
    workplace: Workplace, tmp_path: Path
) -> None:
    ended = workplace.run(
        "append", CONF, f"storage.root={tmp_path / 'none'}", JAVA_HOME=str(tmp_path)
    )  # where no Java is: starting Spark would be another error
    assert ended.exit_code == 3
    assert "run `sparktrain prepare`" in ended.stderr + ended.stdout
    assert "Traceback" not in ended.stderr
