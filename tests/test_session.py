"""The session of our commands: one that was there before is not theirs to stop."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from sparktrain.config import parse_config
from sparktrain.session import spark_session


@pytest.mark.spark
@pytest.mark.timeout(120)
def test_a_session_that_was_there_before_lives_on(spark: SparkSession, tmp_path: Path) -> None:
    config = parse_config({"pipeline": "flight_delays", "storage": {"root": str(tmp_path)}})
    with spark_session(config) as same:
        assert same.sparkContext.applicationId == spark.sparkContext.applicationId
    assert spark.range(3).count() == 3
