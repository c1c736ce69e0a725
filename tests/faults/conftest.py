"""Fixtures of the tests of faults, and the table at their end."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from sparktrain.storage import RemotePath, path_of
from tests.fixtures.fault_table import (
    fault_row,
    pytest_collection_modifyitems,
    pytest_runtest_logreport,
    pytest_terminal_summary,
)
from tests.fixtures.object_store import ENVIRONMENT, object_store
from tests.fixtures.temporary import temporary_files
from tests.fixtures.trainings import Driver, Training, tiny_workplace

__all__ = [
    "fault_row",
    "pytest_collection_modifyitems",
    "pytest_runtest_logreport",
    "pytest_terminal_summary",
    "temporary_files",
]


@pytest.fixture(scope="module")
def store() -> Iterator[RemotePath]:
    """A folder of an object store on loopback."""
    with pytest.MonkeyPatch.context() as patch, object_store() as server:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        place = path_of(server.uri("checkpoints"))
        assert isinstance(place, RemotePath)
        yield place


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with pipelines/tiny, conf/tiny.yaml, and out/: the dataset, an empty MLflow."""
    return tiny_workplace(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def driver_of(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Driver]]:
    """Give the driver of a master; each has one Spark session for all the tests that take it."""
    drivers: dict[str, Driver] = {}
    with ExitStack() as stack:

        def start(mode: str) -> Driver:
            if mode not in drivers:
                for driver in drivers.values():  # two clusters at once are too much for two cores
                    driver.close()
                drivers.clear()
                root = tmp_path_factory.mktemp("root")
                shutil.copytree(tiny / "out", root / "out")
                drivers[mode] = stack.enter_context(Driver(mode, tiny, root / "out"))
            return drivers[mode]

        yield start


@pytest.fixture(scope="session")
def straight(driver_of: Callable[[str], Driver]) -> Training:
    """The training to which nothing happened."""
    training = driver_of("local[2]").train()
    assert training.result["status"] == "finished", training.text
    assert training.result["attempts"] == 1 and not training.fired
    return training
