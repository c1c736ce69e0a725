from __future__ import annotations

import logging
import os
import socket
import time
from pathlib import Path

import pytest

from sparktrain.config import TrackingConfig
from sparktrain.errors import TrackingUnavailable
from sparktrain.runs.connection import (
    artifact_location,
    bounded_http,
    check_tracking,
    quiet_mlflow,
    resolve_tracking_uri,
    without_secrets,
)
from tests.fixtures.tiny_model import closed_port

LIMITS = ("MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES")


def test_the_config_wins_over_the_environment_which_wins_over_sqlite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://from.environment")
    assert resolve_tracking_uri(TrackingConfig(uri="http://given"), tmp_path) == "http://given"
    assert resolve_tracking_uri(TrackingConfig(), tmp_path) == "http://from.environment"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert resolve_tracking_uri(TrackingConfig(), tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"


def test_only_a_database_is_told_where_artifacts_go(tmp_path: Path) -> None:
    assert artifact_location("sqlite:///a.db", tmp_path) == f"file://{tmp_path}/mlflow-artifacts"
    assert artifact_location("postgresql+psycopg2://host/db", tmp_path) is not None
    assert artifact_location("http://localhost:5000", tmp_path) is None
    assert artifact_location("databricks", tmp_path) is None


def test_a_server_that_is_down_is_an_error_within_ten_seconds() -> None:
    port = closed_port()
    before = {name: os.environ.get(name) for name in LIMITS}
    start = time.monotonic()
    with pytest.raises(TrackingUnavailable, match=f"127.0.0.1:{port}.*connection refused"):
        check_tracking(f"http://127.0.0.1:{port}")
    assert time.monotonic() - start < 10
    assert {name: os.environ.get(name) for name in LIMITS} == before


def test_a_server_that_takes_the_connection_and_is_silent_is_an_error_within_ten_seconds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        with pytest.raises(TrackingUnavailable):
            check_tracking(f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert time.monotonic() - start < 10


def test_a_sqlite_file_in_no_directory_is_an_error_at_once(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(TrackingUnavailable, match="there is no directory"):
        check_tracking(f"sqlite:///{tmp_path}/nowhere/mlflow.db")
    assert time.monotonic() - start < 10


def test_a_file_that_is_no_database_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is text " * 100)
    with pytest.raises(TrackingUnavailable, match="not a database"):
        check_tracking(f"sqlite:///{tmp_path}/mlflow.db")


def test_passwords_are_masked_in_texts() -> None:
    assert without_secrets("http://me:hunter2@host:5000/x") == "http://***@host:5000/x"
    assert without_secrets("sqlite:////tmp/mlflow.db") == "sqlite:////tmp/mlflow.db"
    with pytest.raises(TrackingUnavailable) as caught:
        check_tracking(f"http://me:hunter2@127.0.0.1:{closed_port()}")
    assert "hunter2" not in str(caught.value)


def test_nested_limits_are_put_back_by_the_last_one_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMITS[0], "77")
    monkeypatch.delenv(LIMITS[1], raising=False)
    first, second = bounded_http(3, 0), bounded_http(3, 0)
    with first:
        second.__enter__()
    assert os.environ[LIMITS[0]] == "3"  # the second still needs it
    second.__exit__(None, None, None)
    assert os.environ[LIMITS[0]] == "77"
    assert LIMITS[1] not in os.environ


def test_quiet_holds_back_success_but_not_warnings() -> None:
    logger = logging.getLogger("mlflow.store.db.utils")
    with quiet_mlflow():
        assert not logger.isEnabledFor(logging.INFO)
        assert logger.isEnabledFor(logging.WARNING)
    assert logger.isEnabledFor(logging.INFO)
