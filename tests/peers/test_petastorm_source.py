"""Datasets that Petastorm writes here and now are read as Petastorm itself reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.sql import SparkSession

from sparktrain.preparation import read_petastorm
from tests.fixtures.petastorm import needs_petastorm
from tests.fixtures.write_petastorm_dataset import DATASET, NUM_ROWS, write

pytestmark = [needs_petastorm, pytest.mark.spark, pytest.mark.timeout(120)]

_IMAGES = ("image", "photo")  # Petastorm decodes them by OpenCV, which may not be there


def compare(spark: SparkSession, path: Path) -> None:
    from petastorm import make_reader

    ours = read_petastorm(spark, path.as_uri())
    names = [name for name in ours.columns if name not in _IMAGES]
    found = {row["id"]: row for row in ours.select(names).collect()}
    with make_reader(path.as_uri(), schema_fields=names, num_epochs=1, reader_pool_type="dummy") as reader:
        theirs = {row.id: row._asdict() for row in reader}
    assert len(found) == len(theirs) == NUM_ROWS
    for number, row in theirs.items():
        for name in names:
            check(found[number][name], row[name], name)


def check(ours: Any, theirs: Any, name: str) -> None:
    if theirs is None or isinstance(theirs, str):
        assert ours == theirs, name
    else:
        np.testing.assert_array_equal(
            np.array(ours, theirs.dtype), theirs.reshape(-1) if theirs.ndim else theirs, name
        )


def test_a_dataset_written_by_materialize_dataset(spark: SparkSession, tmp_path: Path) -> None:
    write(spark, tmp_path / "written")
    assert (tmp_path / "written" / "_common_metadata").is_file()
    compare(spark, tmp_path / "written")


def test_the_dataset_that_other_tests_take_for_petastorms_is_one(spark: SparkSession) -> None:
    compare(spark, DATASET)
