from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import DoubleType

import sparktrain
from sparktrain.errors import ModelNotFound, SchemaMismatch
from sparktrain.scoring import score
from tests.fixtures.arrow import to_arrow
from tests.fixtures.tiny_model import RAW
from tests.scoring.conftest import Registered

pytestmark = pytest.mark.spark

DDL = "distance double, seats int, month int, carrier string, weekend boolean, remark string"


@pytest.fixture(scope="module")
def spark() -> Iterator[SparkSession]:
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    running = SparkSession.getActiveSession()
    session = (
        SparkSession.builder.master("local[2]")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.sql.session.timeZone", "UTC")
        .getOrCreate()
    )
    yield session
    if running is None:
        session.stop()


@pytest.fixture(scope="module")
def raw(spark: SparkSession) -> DataFrame:
    # plain Python: pandas would turn the missing integers into floats
    return spark.createDataFrame([tuple(row.values()) for row in RAW.to_pylist()], DDL)


def test_every_row_gets_its_probability_and_keeps_its_columns(raw: DataFrame, registered: Registered) -> None:
    scored = score(raw, registered.alias_uri, tracking_uri=registered.tracker.uri)
    assert scored.schema.fields[:-1] == raw.schema.fields
    assert (scored.schema[-1].name, scored.schema[-1].dataType) == ("probability", DoubleType())
    rows = scored.collect()
    np.testing.assert_allclose(
        [row.probability for row in rows], registered.model.expected, rtol=0, atol=1e-7
    )
    assert [row.remark for row in rows] == RAW["remark"].to_pylist()


def test_it_agrees_with_the_served_model_in_any_partitioning(
    spark: SparkSession, registered: Registered, tmp_path: Path
) -> None:
    frame = (
        spark.range(5000)
        .withColumn("distance", F.when(F.col("id") % 7 != 0, F.rand(1) * 200))
        .withColumn("seats", (F.col("id") % 300).cast("long"))
        .withColumn("month", F.when(F.col("id") % 5 != 0, F.col("id") % 13))
        .withColumn(
            "carrier",
            F.element_at(F.array(F.lit("UA"), F.lit("AA"), F.lit("ZZ")), (F.col("id") % 3 + 1).cast("int")),
        )
        .withColumn("weekend", F.col("id") % 2 == 0)
        .cache()
    )
    scored = score(frame.repartition(3), registered.uri, tracking_uri=registered.tracker.uri, batch_rows=37)
    found = {row.id: row.probability for row in scored.select("id", "probability").collect()}
    assert sorted(found) == list(range(5000))
    from sparktrain.scoring.lookup import fetch_model
    from sparktrain.scoring.model import ServedModel

    files = fetch_model(registered.uri, registered.tracker.uri, tmp_path)
    model = ServedModel.load(files / "artifacts", files / "code")
    expected = model.score_arrow(to_arrow(frame.orderBy("id")))
    # batches of another size add up in another order: a few units in the last place of float32
    np.testing.assert_allclose([found[i] for i in range(5000)], expected, rtol=0, atol=4 * 2**-24)
    frame.unpersist()


def test_columns_of_all_kinds_and_no_rows_pass_through(raw: DataFrame, registered: Registered) -> None:
    rich = raw.select(
        "*",
        F.lit("2024-01-02 03:04:05").cast("timestamp").alias("moment"),
        F.lit("2024-01-02").cast("date").alias("day"),
        F.lit("1.50").cast("decimal(10,2)").alias("price"),
        F.array(F.struct(F.lit(1).alias("a"), F.lit("x").alias("b"))).alias("nested"),
        F.create_map(F.lit("k"), F.lit(1.5)).alias("mapping"),
        F.lit(b"\x00\xff").alias("bytes"),
    )
    uri = registered.tracker.uri
    scored = score(rich, registered.uri, tracking_uri=uri)
    assert scored.schema.fields[:-1] == rich.schema.fields
    # as text, because NaN differs from itself
    assert str(scored.drop("probability").collect()) == str(rich.collect())
    assert score(rich.limit(0), registered.uri, tracking_uri=uri).collect() == []


def test_the_model_is_loaded_once_a_worker(
    spark: SparkSession, raw: DataFrame, registered: Registered
) -> None:
    scored = score(raw.repartition(4), registered.uri, tracking_uri=registered.tracker.uri)

    def loaded(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from sparktrain.scoring import on_spark

        for batch in batches:
            names = [f"{os.getpid()}:{id(model)}" for model in on_spark._loaded.values()]
            yield pa.RecordBatch.from_pydict({"name": names * batch.num_rows})

    names = {row.name for _ in range(3) for row in scored.mapInArrow(loaded, "name string").collect()}
    workers = {name.partition(":")[0] for name in names}
    assert len(names) == len(workers)


def test_problems_are_reported_before_any_spark_job(
    spark: SparkSession, raw: DataFrame, registered: Registered
) -> None:
    uri = registered.tracker.uri

    def explode(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        raise RuntimeError("a job was started")
        yield from batches

    untouchable = raw.mapInArrow(explode, raw.schema)
    with pytest.raises(
        SchemaMismatch,
        match=r"missing column `month`(.|\n)*missing column `carrier`(.|\n)*there are: distance",
    ):
        score(untouchable.drop("month", "carrier"), registered.uri, tracking_uri=uri)
    with pytest.raises(SchemaMismatch, match="`distance` is string, expected double"):
        score(untouchable.withColumn("distance", F.lit("far")), registered.uri, tracking_uri=uri)
    with pytest.raises(SchemaMismatch, match=r'`Probability`(.|\n)*df\.drop\("Probability"\)'):
        score(untouchable.withColumn("Probability", F.lit(0.5)), registered.uri, tracking_uri=uri)
    with pytest.raises(SchemaMismatch, match="`month`"):
        score(untouchable.select("*", "month"), registered.uri, tracking_uri=uri)
    with pytest.raises(ModelNotFound, match="tiny: @champion"):
        score(untouchable, "models:/nobody@champion", tracking_uri=uri)
    with pytest.raises(ValueError, match="batch_rows is 0"):
        score(untouchable, registered.uri, tracking_uri=uri, batch_rows=0)


CLUSTER = """
    import json, sys
    from pyspark.sql import SparkSession
    from sparktrain.scoring import score

    spark = (
        SparkSession.builder.master("local-cluster[2,1,1024]")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.host", "127.0.0.1")
        .getOrCreate()
    )
    raw = spark.read.parquet(sys.argv[1])
    scored = score(raw.repartition(4), sys.argv[2], tracking_uri=sys.argv[3])

    def find(rows):
        import importlib.util
        yield importlib.util.find_spec("pipelines") is None

    without_pipelines = spark.sparkContext.parallelize(range(2), 2).mapPartitions(find).collect()
    found = {row.remark or "": row.probability for row in scored.collect()}
    spark.stop()
    print(json.dumps({"found": found, "without_pipelines": without_pipelines}))
"""


@pytest.mark.slow
def test_executors_need_no_pipelines_on_their_path(registered: Registered, tmp_path: Path) -> None:
    pq.write_table(RAW, tmp_path / "raw.parquet")
    # only sparktrain, as the wheel would bring it
    shutil.copytree(Path(sparktrain.__file__).parent, tmp_path / "site" / "sparktrain")
    program = tmp_path / "program.py"
    program.write_text(dedent(CLUSTER))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "PYSPARK_PYTHON": sys.executable}
    arguments = [str(tmp_path / "raw.parquet"), registered.alias_uri, registered.tracker.uri]
    done = subprocess.run(
        [sys.executable, str(program), *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    expected = dict(
        zip([name or "" for name in RAW["remark"].to_pylist()], registered.model.expected, strict=True)
    )
    assert result["found"] == pytest.approx(expected, abs=1e-7)
    if not _is_installed_with_pipelines():
        assert result["without_pipelines"] == [True, True]


def _is_installed_with_pipelines() -> bool:
    """Say whether this environment holds the repository for every process (an editable installation)."""
    program = "import importlib.util, sys; sys.exit(importlib.util.find_spec('pipelines') is None)"
    return subprocess.run([sys.executable, "-I", "-c", program], check=False).returncode == 0
