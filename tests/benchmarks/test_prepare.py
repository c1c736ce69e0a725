"""prepare beside a plain Spark job that only reads, shuffles and writes the same columns."""

from __future__ import annotations

import shutil
from pathlib import Path

from pyspark.sql import SparkSession

from pipelines.flight_delays import data
from sparktrain.config import PrepareConfig
from sparktrain.preparation import prepare
from tests.benchmarks.tables import median_seconds, print_table

COPIES = 4


def test_prepare_beside_read_repartition_write(spark: SparkSession, tmp_path: Path) -> None:
    once = data.read(spark, tmp_path)
    many = once.crossJoin(spark.range(COPIES).withColumnRenamed("id", "copy"))
    many.write.parquet(str(tmp_path / "raw"))
    raw = spark.read.parquet(str(tmp_path / "raw"))
    columns = list(dict.fromkeys([feature.source for feature in data.FEATURES] + [data.TARGET.name]))

    def plain() -> None:
        raw.select(*columns).repartition(4).write.mode("overwrite").parquet(str(tmp_path / "plain"))

    def ours() -> None:
        shutil.rmtree(tmp_path / "datasets", ignore_errors=True)
        prepare(
            raw,
            data.FEATURES,
            data.TARGET,
            PrepareConfig(),
            root=tmp_path,
            rules=data.RULES,
            key=[*data.KEY, "copy"],
        )

    plain()
    rows = raw.count()
    seconds = median_seconds({"read, repartition, write": plain, "prepare": ours}, rounds=3)
    print_table(f"{rows:,} rows × {len(columns)} columns", seconds, "read, repartition, write", rows)
