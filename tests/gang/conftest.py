"""Functions of these tests reach Spark's workers with their code: nobody else can import them by name."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import cloudpickle
import pytest

from tests.fixtures.temporary import temporary_files

__all__ = ["code_by_value", "temporary_files"]


@pytest.fixture(scope="module", autouse=True)
def code_by_value(request: pytest.FixtureRequest) -> Iterator[None]:
    module = sys.modules[request.module.__name__]
    cloudpickle.register_pickle_by_value(module)
    yield
    cloudpickle.unregister_pickle_by_value(module)
