"""Fixtures of the training tests."""

from __future__ import annotations

import pytest

from sparktrain.dataset import Dataset
from sparktrain.testing import write_tiny_dataset
from tests.fixtures.temporary import temporary_files

__all__ = ["dataset", "temporary_files"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """20 steps an epoch at 32 rows a step."""
    path = tmp_path_factory.mktemp("training") / "tiny"
    return write_tiny_dataset(path, 650, validation_rows=50, test_rows=40)
