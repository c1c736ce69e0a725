"""Fixtures of the tests of faults."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sparktrain.storage import RemotePath, path_of
from tests.fixtures.object_store import ENVIRONMENT, object_store
from tests.fixtures.temporary import temporary_files

__all__ = ["temporary_files"]


@pytest.fixture(scope="module")
def store() -> Iterator[RemotePath]:
    """A folder of an object store on loopback."""
    with pytest.MonkeyPatch.context() as patch, object_store() as server:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        place = path_of(server.uri("checkpoints"))
        assert isinstance(place, RemotePath)
        yield place
