from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.command import CONF, ROOT, SMALL, Ended, Workplace, write_flights


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return Workplace.create(tmp_path_factory.mktemp("user"))


@pytest.fixture(scope="session")
def faulty_workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """Another, whose Task takes faults as arguments: train.model.pause_seconds=0.1, fail_rank, fail_step."""
    workplace = Workplace.create(tmp_path_factory.mktemp("faulty"))
    pipeline = workplace.path / "pipelines" / "flight_delays"
    (pipeline / "model.py").rename(pipeline / "original.py")
    shutil.copyfile(ROOT / "tests" / "fixtures" / "faulty_model.py", pipeline / "model.py")
    return workplace


@pytest.fixture(scope="session")
def flights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a fortieth of the flights."""
    return write_flights(tmp_path_factory.mktemp("source") / "flights")


@dataclass(frozen=True)
class Job:
    """A whole job that was run, what was there before and after it, and its preparation once more."""

    ended: Ended
    again: Future[Ended]
    root: Path
    scratch: Path
    before: set[str]
    after: set[str]

    @property
    def result(self) -> dict[str, Any]:
        return self.ended.json

    @property
    def run_dir(self) -> Path:
        return Path(self.result["run_dir"])

    @property
    def dataset(self) -> Path:
        return Path(self.result["dataset"]["path"])

    @property
    def manifest(self) -> dict[str, Any]:
        return json.loads((self.dataset / "manifest.json").read_bytes())

    @property
    def tracking_uri(self) -> str:
        return f"sqlite:///{self.root}/mlflow.db"


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, workplace: Workplace, flights: Path) -> Job:
    """`sparktrain run` on a sample: prepared, trained, registered, scored."""
    parent = tmp_path_factory.mktemp("whole")
    root, scratch = parent / "out with spaces", parent / "scratch"
    scratch.mkdir()
    before = workplace.listing()
    source = f"prepare.source.directory={flights}"
    settings = [f"storage.root={root}", source, *SMALL]
    running = workplace.later("run", CONF, *settings, "--json", TMPDIR=str(scratch))
    again = workplace.later("prepare", CONF, f"storage.root={parent / 'again'}", source, "--json")
    ended = running.result()
    assert ended.exit_code == 0, ended.stderr
    return Job(ended, again, root, scratch, before, workplace.listing())


@pytest.fixture
def prepared_root(finished: Job, tmp_path: Path) -> Callable[[str], Path]:
    """Give new storage roots that hold the sample's dataset already, but no run and no MLflow."""

    def create(name: str = "out") -> Path:
        shutil.copytree(finished.root / "datasets", tmp_path / name / "datasets")
        return tmp_path / name

    return create
