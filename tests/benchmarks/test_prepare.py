"""prepare beside a plain Spark job of the same shuffle, and beside pyspark.ml; and reading what they made."""

from __future__ import annotations

import resource
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyspark.ml import Pipeline
from pyspark.ml.feature import Imputer, StandardScaler, StringIndexer, VectorAssembler
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from pipelines.flight_delays import data
from sparktrain.config import PrepareConfig, SplitConfig
from sparktrain.dataset import Dataset
from sparktrain.dataset.layout import stored_columns
from sparktrain.dataset.read import RowGroupReader
from sparktrain.features import Categorical, Numeric
from sparktrain.preparation import prepare
from sparktrain.testing import spark_session
from tests.benchmarks.tables import median_seconds, print_table

pytestmark = pytest.mark.timeout(1800)

COPIES = 20
ROUNDS = 3
NUMERIC = [feature for feature in data.FEATURES if isinstance(feature, Numeric)]
TEXT = ["carrier", "origin", "dest", "tailnum"]
# what pyspark.ml's stages can do, for both: 18 columns of numbers, four of text
SHARED = [*NUMERIC, *(Categorical(name) for name in TEXT)]
NO_SPLIT = PrepareConfig(split=SplitConfig(validation=0.0, test=0.0))


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory):
    """A session with the compilers and the collector that a job of minutes has, and room for it."""
    settings = {"spark.driver.memory": "6g", "spark.driver.extraJavaOptions": "-XX:+UseParallelGC"}
    with spark_session(**settings) as session:
        yield session


@pytest.fixture(scope="module")
def flights(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("flights")
    once = data.read(spark, root)
    copies = once.crossJoin(spark.range(COPIES).withColumnRenamed("id", "copy")).repartition(8)
    copies.write.partitionBy("copy").parquet(str(root / "raw"))
    return root / "raw"


def raw(spark: SparkSession, flights: Path, copies: int = COPIES) -> DataFrame:
    return spark.read.parquet(str(flights)).where(F.col("copy") < copies)


def run(df: DataFrame, root: Path, features=data.FEATURES, **options: object) -> Dataset:
    shutil.rmtree(root, ignore_errors=True)
    config = PrepareConfig(**options) if options else PrepareConfig()
    return prepare(df, features, data.TARGET, config, root=root, rules=data.RULES, key=[*data.KEY, "copy"])


def test_prepare_beside_read_repartition_write(spark: SparkSession, flights: Path, tmp_path: Path) -> None:
    df = raw(spark, flights)
    columns = list(dict.fromkeys([feature.source for feature in data.FEATURES] + [data.TARGET.name]))

    def plain() -> None:
        df.select(*columns).repartition(4).write.mode("overwrite").parquet(str(tmp_path / "plain"))

    contestants = {
        "read, repartition, write": plain,
        "prepare, columns": lambda: run(df, tmp_path / "ours"),
        "prepare, blocks": lambda: run(df, tmp_path / "ours", layout="blocks"),
    }
    plain()
    run(raw(spark, flights, 1), tmp_path / "ours")  # compilers warm for both
    rows = df.count()
    seconds = median_seconds(contestants, rounds=ROUNDS)
    print_table(f"{rows:,} rows × {len(columns)} columns", seconds, "read, repartition, write", rows)


def test_prepare_beside_pyspark_ml(spark: SparkSession, flights: Path, tmp_path: Path) -> None:
    df = raw(spark, flights)
    numeric = [feature.source for feature in NUMERIC]
    kept = df.where("arr_delay IS NOT NULL AND distance > 0")
    for_ml = kept.select(
        *[F.col(name).cast("double").alias(name) for name in numeric],
        *TEXT,
        F.col("late").cast("float").alias("late"),
    )

    def with_ml() -> None:
        filled = [f"{name}_filled" for name in numeric]
        stages = [
            Imputer(strategy="mean", inputCols=numeric, outputCols=filled),
            *(StringIndexer(inputCol=name, outputCol=f"{name}_index", handleInvalid="keep") for name in TEXT),
            VectorAssembler(inputCols=filled, outputCol="assembled"),
            StandardScaler(inputCol="assembled", outputCol="features", withMean=True, withStd=True),
        ]
        out = Pipeline(stages=stages).fit(for_ml).transform(for_ml)
        chosen = out.select("features", *(f"{name}_index" for name in TEXT), "late")
        chosen.repartition(4).write.mode("overwrite").parquet(str(tmp_path / "ml"))

    def with_ours() -> None:
        shutil.rmtree(tmp_path / "ours", ignore_errors=True)
        prepare(df, SHARED, data.TARGET, NO_SPLIT, root=tmp_path / "ours", rules=data.RULES)

    with_ours()
    seconds = median_seconds({"pyspark.ml": with_ml, "prepare": with_ours}, rounds=ROUNDS)
    rows = df.count()
    print_table(f"{rows:,} rows: 18 columns of numbers, 4 of text", seconds, "pyspark.ml", rows)

    (home,) = (tmp_path / "ours" / "datasets" / "dataset").glob("[0-9a-f]*")
    seconds = median_seconds(
        {"pyspark.ml": lambda: read_ml(tmp_path / "ml"), "prepare": lambda: read_ours(home)}, rounds=5
    )
    print_table("reading it back as numpy arrays, one thread", seconds, "pyspark.ml", rows)


def read_ml(directory: Path) -> int:
    rows = 0
    for path in sorted(directory.glob("*.parquet")):
        file = pq.ParquetFile(path, memory_map=True)
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, use_threads=False).combine_chunks()
            vectors = table["features"].chunk(0)
            values = vectors.field("values").flatten().to_numpy()
            assert len(values) == 18 * len(table), "dense vectors"
            columns = [table[f"{name}_index"].to_numpy().astype(np.int32) for name in TEXT]
            columns.append(values.astype(np.float32).reshape(-1, 18))
            columns.append(table["late"].to_numpy())
            rows += len(columns[0])
    return rows


def read_ours(directory: Path) -> int:
    from sparktrain.dataset import open_dataset

    dataset = open_dataset(directory)
    manifest = dataset.manifest
    names = [column.name for column in manifest.columns if column.role in ("feature", "target")]
    stored = stored_columns(manifest.columns, manifest.layout, names)
    reader = RowGroupReader(dataset.path, manifest, "train", stored)
    groups = sum(len(part.row_groups) for part in manifest.splits["train"].parts)
    rows = 0
    for group in range(groups):
        table = reader.read_table(group)
        columns = [column.values(table.column(column.name)) for column in stored]
        rows += len(columns[0])
    return rows


def test_four_times_the_rows(spark: SparkSession, flights: Path, tmp_path: Path) -> None:
    few, many = raw(spark, flights, COPIES // 4), raw(spark, flights)
    run(few, tmp_path / "ours")
    seconds = median_seconds(
        {"a quarter": lambda: run(few, tmp_path / "ours"), "all": lambda: run(many, tmp_path / "ours")},
        rounds=ROUNDS,
    )
    print_table(f"{few.count():,} and {many.count():,} rows", seconds, "a quarter")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    ratio = seconds["all"] / seconds["a quarter"]
    print(f"all takes {ratio:.2f} times as long; the driver's Python peaked at {peak:.0f} MiB")


def test_five_hundred_columns(spark: SparkSession, tmp_path: Path) -> None:
    rows, width = 100_000, 500
    columns = [
        (F.rand(i) * i if i % 5 else F.floor(F.rand(i) * 50).cast("string")).alias(f"c{i}")
        for i in range(width)
    ]
    spark.range(rows).select("id", *columns, (F.rand(7) > 0.5).alias("late")).write.parquet(
        str(tmp_path / "wide")
    )
    df = spark.read.parquet(str(tmp_path / "wide"))
    features = [Numeric(f"c{i}") if i % 5 else Categorical(f"c{i}") for i in range(width)]
    config = PrepareConfig()
    started = time.perf_counter()
    prepare(df, features, data.TARGET, config, root=tmp_path / "ours", key=["id"])
    print(f"\n{rows:,} rows × {width} columns: {time.perf_counter() - started:.1f} s, the first time")
