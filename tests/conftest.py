"""Fixtures that several folders of tests share."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from sparktrain.testing import spark_session

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# A busy machine is no failure: what takes too long is pytest-timeout's to say.
settings.register_profile("sparktrain", deadline=None)
settings.load_profile("sparktrain")


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """Each test draws the same numbers, such as a model's first weights, whatever ran before it.

    torch is seeded where it is there already: tests that do without it stay fast.
    """
    random.seed(0)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def spark() -> Iterator[SparkSession]:
    """One Spark for all the tests that take it: starting one costs seconds."""
    with spark_session() as session:
        yield session
