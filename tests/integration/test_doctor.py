"""doctor: finds what would make a run fail, all of it at once."""

from __future__ import annotations

import os
import socket
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.command import CONF, Ended, Workplace

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def findings(ended: Ended) -> dict[str, dict[str, Any]]:
    assert "Traceback" not in ended.stderr
    return {finding["what"]: finding for finding in ended.json["findings"]}


@dataclass(frozen=True)
class Visits:
    """Two visits of the doctor, at the same time: each starts Spark."""

    ranks: int
    uri: str
    healthy: Future[Ended]
    ill: Future[Ended]


@pytest.fixture(scope="module")
def visits(workplace: Workplace, tmp_path_factory: pytest.TempPathFactory) -> Visits:
    parent = tmp_path_factory.mktemp("doctor")
    with socket.create_server(("127.0.0.1", 0)) as server:
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"  # closed from here on
    ranks = (os.cpu_count() or 1) + 2
    wrong = [f"tracking.uri={uri}", "spark.master=local[*]", f"train.ranks={ranks}", "train.model.depth=3"]
    healthy = workplace.later("doctor", CONF, f"storage.root={parent}/healthy", "--json")
    ill = workplace.later("doctor", CONF, f"storage.root={parent}/ill", *wrong, "--json")
    return Visits(ranks, uri, healthy, ill)


@pytest.mark.spark
def test_nothing_is_wrong_with_the_example(visits: Visits) -> None:
    ended = visits.healthy.result()
    assert ended.exit_code == 0, ended.stderr
    assert ended.json["status"] == "finished"
    found = findings(ended)
    assert {"Java", "storage", "MLflow", "pipeline", "slots", "executors"} <= set(found)
    assert {finding["level"] for finding in found.values()} == {"ok"}
    assert "pyspark" in found["executors"]["found"]


@pytest.mark.spark
def test_every_error_is_found_in_one_visit(visits: Visits) -> None:
    ended = visits.ill.result()
    assert ended.exit_code == 5
    found = findings(ended)
    errors = {what for what, finding in found.items() if finding["level"] == "error"}
    assert errors == {"MLflow", "pipeline", "slots"}
    assert visits.uri in found["MLflow"]["found"] and "Start the server" in found["MLflow"]["way_out"]
    assert f"needs {visits.ranks} slots" in found["slots"]["found"]
    assert "train.ranks" in found["slots"]["way_out"]
    assert "'depth'" in found["pipeline"]["found"] and "hidden_sizes" in found["pipeline"]["found"]


def test_a_java_that_is_too_old_is_found_without_starting_spark(workplace: Workplace, tmp_path: Path) -> None:
    java = tmp_path / "jdk-11" / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\" 2019-01-15' >&2\n")
    java.chmod(0o755)
    settings = [f"storage.root={tmp_path}/out", "--json"]
    ended = workplace.run("doctor", CONF, *settings, JAVA_HOME=str(tmp_path / "jdk-11"))
    assert ended.exit_code == 5
    found = findings(ended)["Java"]
    assert found["level"] == "error"
    assert "Java 11" in found["found"] and "17" in found["found"] + found["way_out"]
    assert found["way_out"], "every finding names its way out"


def test_a_missing_java_is_told_by_a_run_too(workplace: Workplace, tmp_path: Path) -> None:
    settings = [f"storage.root={tmp_path}/out", "--json"]
    ended = workplace.run("prepare", CONF, *settings, JAVA_HOME=str(tmp_path))
    assert ended.exit_code == 5
    assert "no Java in JAVA_HOME" in ended.json["error"] and "Install a JDK 17" in ended.json["error"]
    assert "Traceback" not in ended.stderr
