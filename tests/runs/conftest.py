from __future__ import annotations

from pathlib import Path

import pytest

from sparktrain.dataset import Dataset
from sparktrain.testing import write_tiny_dataset


@pytest.fixture(scope="package")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One storage root for the tests of this folder: making MLflow's tables takes seconds."""
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="package")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_tiny_dataset(tmp_path_factory.mktemp("datasets") / "tiny", rows=4000, test_rows=1000)
