"""Reaching MLflow: which server, is it there, and quietly. Only here is its environment touched."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from sparktrain.config import TrackingConfig
from sparktrain.errors import TrackingUnavailable

if TYPE_CHECKING:
    from mlflow import MlflowClient

_PROBE_TIMEOUT_SECONDS = 3
_PROBE_LIMIT_SECONDS = 8.0
_USERINFO = re.compile(r"(?<=://)[^/@\s]+@")


def resolve_tracking_uri(config: TrackingConfig, root: Path) -> str:
    """Return where to track: `tracking.uri`, else MLFLOW_TRACKING_URI, else a SQLite file under `root`."""
    given = config.uri or os.environ.get("MLFLOW_TRACKING_URI")
    return given or f"sqlite:///{root.resolve()}/mlflow.db"


def mlflow_setting() -> tuple[str | None, str | None]:
    """Return the tracking URI that this process has set for MLflow, and the run active in this thread.

    Either is None if there is none; MLflow is not imported for it.
    """
    from_environment = os.environ.get("MLFLOW_TRACKING_URI") or None
    if (mlflow := sys.modules.get("mlflow")) is None:
        return from_environment, None
    active = mlflow.active_run()
    is_set = from_environment is not None or active is not None or mlflow.is_tracking_uri_set()
    return (mlflow.get_tracking_uri() if is_set else None), (active.info.run_id if active else None)


def artifact_location(uri: str, root: Path) -> str | None:
    """Return where a new experiment's artifacts go; None where the server decides.

    A plain database has no place for artifacts, and MLflow's default is ./mlruns of whoever asks.
    """
    return (root.resolve() / "mlflow-artifacts").as_uri() if is_database(uri) else None


def is_database(uri: str) -> bool:
    return urlsplit(uri).scheme.split("+")[0] in ("sqlite", "mysql", "postgresql", "mssql")


def without_secrets(uri: str) -> str:
    """Mask the user and password of a URI, for texts that people see."""
    return _USERINFO.sub("***@", uri)


def connect(uri: str) -> MlflowClient:
    """Return a client of this server and of its model registry; process-wide settings stay as they are."""
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=os.environ.get("MLFLOW_REGISTRY_URI") or uri)


def check_tracking(uri: str) -> None:
    """Ask the server one question; creates the tables of a new SQLite file.

    Raises:
        TrackingUnavailable: within ten seconds for a server that does not answer.
    """
    if is_database(uri):
        _check_database(uri)
        return
    failures: list[Exception] = []
    # A thread, because name resolution has no time limit of its own.
    probe = threading.Thread(target=_probe, args=(uri, failures), name="mlflow-probe", daemon=True)
    with bounded_http(_PROBE_TIMEOUT_SECONDS, max_retries=0):
        probe.start()
        probe.join(_PROBE_LIMIT_SECONDS)
    if probe.is_alive():
        raise TrackingUnavailable(without_secrets(uri), f"no answer within {_PROBE_LIMIT_SECONDS:g} s")
    if failures:
        raise TrackingUnavailable(without_secrets(uri), reason_of(failures[0])) from failures[0]


def _probe(uri: str, failures: list[Exception]) -> None:
    try:
        with quiet_mlflow():
            connect(uri).search_experiments(max_results=1)
    except Exception as error:
        failures.append(error)


def _check_database(uri: str) -> None:
    try:
        _check_sqlite_file(uri)
        with quiet_mlflow(), _first_use(uri):
            connect(uri).search_experiments(max_results=1)
    except Exception as error:
        raise TrackingUnavailable(without_secrets(uri), reason_of(error)) from error


@contextlib.contextmanager
def _first_use(uri: str) -> Iterator[None]:
    """Let one process at a time find, or make, the tables of a SQLite file: two at once would clash."""
    path = sqlite_file(uri)
    if path is None:
        yield
        return
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def sqlite_file(uri: str) -> Path | None:
    """The file of a SQLite database; None for other servers and for one that lives in memory."""
    path = unquote(uri.partition("///")[2]).partition("?")[0]
    return Path(path) if uri.startswith("sqlite:") and path and path != ":memory:" else None


def _check_sqlite_file(uri: str) -> None:
    """Open the file ourselves: MLflow retries a path that can't work for half a minute."""
    path = sqlite_file(uri)
    if path is None:
        return
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no directory {path.parent}")
    with contextlib.closing(sqlite3.connect(path, timeout=5)) as database:
        database.execute("PRAGMA schema_version").fetchone()


def reason_of(error: BaseException) -> str:
    """Return the last line of an error that says something: MLflow wraps the cause in long chains."""
    text = " ".join(str(error).split())
    if match := re.search(r"(Connection refused|Name or service not known|timed out|No route to host)", text):
        return match[1].lower()
    return without_secrets(text[:300]) or type(error).__name__


@contextlib.contextmanager
def bounded_http(timeout_seconds: int, max_retries: int) -> Iterator[None]:
    """Limit MLflow's HTTP requests, which otherwise retry for minutes; put the environment back afterwards.

    MLflow takes these only from the environment, at each request.
    """
    wanted = {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(timeout_seconds),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(max_retries),
    }
    with _shared("http", lambda: _set_environment(wanted)):
        yield


@contextlib.contextmanager
def quiet_mlflow() -> Iterator[None]:
    """Hold back what MLflow and alembic say on success (tables, run URLs, bars); warnings and errors stay."""
    with _shared("quiet", _lower_voices):
        yield


def _lower_voices() -> Callable[[], None]:
    import mlflow  # noqa: F401  # importing it sets the level of its logger, so before we do

    restore_environment = _set_environment(
        {"MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
    )
    levels = {name: logging.getLogger(name).level for name in ("mlflow", "alembic")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.WARNING)

    def undo() -> None:
        restore_environment()
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)

    return undo


def _set_environment(wanted: Mapping[str, str]) -> Callable[[], None]:
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)

    def undo() -> None:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    return undo


_users: dict[str, int] = {}
_undo: dict[str, Callable[[], None]] = {}
_lock = threading.Lock()


@contextlib.contextmanager
def _shared(setting: str, apply: Callable[[], Callable[[], None]]) -> Iterator[None]:
    """Apply a process-wide setting while anyone uses it: threads would restore each other's values."""
    with _lock:
        if not _users.get(setting):
            _undo[setting] = apply()
        _users[setting] = _users.get(setting, 0) + 1
    try:
        yield
    finally:
        with _lock:
            _users[setting] -= 1
            if not _users[setting]:
                _undo.pop(setting)()
