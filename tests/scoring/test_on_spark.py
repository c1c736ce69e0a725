from __future__ import annotations

import dataclasses
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
import torch
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import BooleanType, DoubleType, StringType

import sparktrain
from sparktrain.errors import ModelNotFound, SchemaMismatch
from sparktrain.preparation import cast_columns, read_csv
from sparktrain.scoring import score
from sparktrain.scoring.lookup import fetch_model
from sparktrain.scoring.model import ServedModel
from sparktrain.scoring.packed import PackedModel
from tests.fixtures.arrow import to_arrow
from tests.fixtures.rich_model import RAW as RAW_OF_ALL_KINDS
from tests.fixtures.rich_model import rich_model, with_bad_rows
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
    assert scored.schema.fields[:-3] == raw.schema.fields
    added = [(field.name, field.dataType) for field in scored.schema.fields[-3:]]
    strings = StringType()
    assert added == [("prediction", BooleanType()), ("probability", DoubleType()), ("score_error", strings)]
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
    expected = model.score_arrow(to_arrow(frame.orderBy("id")))["probability"].to_numpy()
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
        F.lit(1).alias("with.a.dot"),
        F.lit(2).alias("with `a` tick"),
    )
    uri = registered.tracker.uri
    scored = score(rich, registered.uri, tracking_uri=uri)
    assert scored.schema.fields[:-3] == rich.schema.fields
    # as text, because NaN differs from itself
    own = scored.drop("prediction", "probability", "score_error")
    assert str(own.collect()) == str(rich.collect())
    assert score(rich.limit(0), registered.uri, tracking_uri=uri).collect() == []


def test_the_model_is_loaded_once_a_worker(
    spark: SparkSession, raw: DataFrame, registered: Registered, tmp_path: Path
) -> None:
    scored = score(raw.repartition(4), registered.uri, tracking_uri=registered.tracker.uri)
    # workers that other tests had keep their models, too
    digest = PackedModel.of(fetch_model(registered.uri, registered.tracker.uri, tmp_path), "ours").digest

    def loaded(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from sparktrain.scoring import on_spark

        for batch in batches:
            found = [model for name, model in on_spark._loaded.items() if name == digest]
            names = [f"{os.getpid()}:{id(model)}" for model in found]
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


@pytest.fixture(scope="module")
def rich_rows(spark: SparkSession) -> DataFrame:
    """`RAW` of the rich model and its bad rows, with a number for each row."""
    rows, _ = with_bad_rows()
    ddl = (
        "number double, count long, code long, word string, flag boolean, moment timestamp, day date, "
        "vector array<double>, image binary, text string, id string, row int"
    )
    numbered = [(*row.values(), place) for place, row in enumerate(rows.to_pylist())]
    return spark.createDataFrame(numbered, ddl).repartition(3)


def check_rich_scores(rows: list[Row]) -> None:
    raw, reasons = with_bad_rows()
    expected = rich_model("digit").score_arrow(raw).to_pylist()
    assert len(rows) == len(expected)
    for row in rows:
        wanted = expected[row.row]
        assert row.prediction == wanted["prediction"]
        if row.row in reasons:
            assert row.prediction is None and row.probability is None
            assert row.score_error.startswith(reasons[row.row])
        else:
            assert row.score_error is None
            np.testing.assert_allclose(row.probability, wanted["probability"], atol=1e-6)


def test_columns_of_all_kinds_are_read_and_a_bad_row_costs_only_its_own_score(
    rich: Path, rich_rows: DataFrame
) -> None:
    scored = score(rich_rows, str(rich))
    names = ["prediction", "probability", "score_error"]
    assert [field.name for field in scored.schema.fields[-3:]] == names
    assert [field.dataType.simpleString() for field in scored.schema.fields[-3:]] == [
        "bigint",
        "array<double>",
        "string",
    ]
    check_rich_scores(scored.collect())
    with pytest.raises(SchemaMismatch, match=r'df\.drop\("Score_Error", "prediction"\)'):
        score(rich_rows.selectExpr("*", "1 as Score_Error", "2 as prediction"), str(rich))


def test_rows_that_preparation_would_quarantine_have_no_score(
    spark: SparkSession, registered: Registered, tmp_path: Path
) -> None:
    """Their values are null by now: scored, they would pass for rows that lack them."""
    header = "distance,seats,month,carrier,weekend,remark"
    lines = [
        header,
        "100,3,1,AA,true,good",
        "far,3,1,AA,true,malformed",
        "100,many,1,AA,true,text",
        "100,,1,AA,true,null",
    ]
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    ddl = "distance double, seats string, month int, carrier string, weekend boolean, remark string"
    rows = read_csv(spark, tmp_path / "rows.csv", ddl)
    cast = cast_columns(rows, {"seats": "int", "remark": "double"})  # the model knows no remark
    scored = score(cast, registered.uri, tracking_uri=registered.tracker.uri)
    errors = [row.score_error for row in scored.select("score_error").collect()]
    assert errors == [
        None,
        "the row could not be read: far,3,1,AA,true,malformed",
        "column `seats`: 'many' is no long",
        None,
    ]
    assert scored.where("score_error is not null and probability is null and prediction is null").count() == 2

    named_alike = cast.select(
        *cast.columns[:6], F.lit("x").alias("_uncastable"), F.lit(5).alias("_malformed_row")
    )
    plain = score(named_alike, registered.uri, tracking_uri=registered.tracker.uri)
    assert plain.where("score_error is null").count() == 4


@pytest.mark.parametrize("zone", ["UTC", "America/New_York"])
def test_a_udf_of_mlflow_gives_the_same_numbers(
    spark: SparkSession, rich: Path, rich_rows: DataFrame, zone: str
) -> None:
    import mlflow

    before = spark.conf.get("spark.sql.session.timeZone")
    spark.conf.set("spark.sql.session.timeZone", zone)
    try:
        udf = mlflow.pyfunc.spark_udf(spark, str(rich), env_manager="local")
        columns = [name for name in rich_rows.columns if name != "row"]
        scored = rich_rows.select("row", udf(F.struct(*columns)).alias("scores")).select("row", "scores.*")
        assert scored.columns == ["row", "prediction", "probability", "score_error"]
        assert dict(scored.dtypes)["prediction"] == "bigint"
        check_rich_scores(scored.collect())
    finally:
        spark.conf.set("spark.sql.session.timeZone", before or "UTC")


def test_batches_of_a_few_rows_go_through_the_model_together(rich: Path) -> None:
    from sparktrain.scoring import on_spark

    packed = PackedModel.of(rich, "rich")
    batches = RAW_OF_ALL_KINDS.to_batches(max_chunksize=2) * 3
    calls: list[int] = []
    on_spark._loaded.clear()
    model = packed.load(rich.parent / "unpacked")
    model.module.register_forward_hook(lambda module, given, made: calls.append(len(given[0]["number"])))
    on_spark._loaded[packed.digest] = model
    scored = list(on_spark._score_partition(packed, batches[0].schema.names, 4, iter(batches)))
    on_spark._loaded.clear()
    assert calls == [4, 4, 4, 4, 2]
    assert [batch.num_rows for batch in scored] == [2] * 9
    assert (
        pa.Table.from_batches(scored)
        .select(RAW_OF_ALL_KINDS.column_names)
        .equals(pa.Table.from_batches(batches))
    )


@pytest.fixture
def nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> dict[str, ServedModel]:
    from sparktrain.scoring import on_spark

    monkeypatch.setattr(on_spark, "_loaded", loaded := {})
    return loaded


def test_a_worker_keeps_a_few_models_that_are_not_too_large(
    rich: Path, nothing_loaded: dict[str, ServedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparktrain.scoring import on_spark

    content = PackedModel.of(rich, "rich").content
    packed = [PackedModel(name, content) for name in "abcd"]
    first = on_spark.loaded_model(packed[0])
    on_spark.loaded_model(packed[1])
    assert on_spark.loaded_model(packed[0]) is first
    for model in packed[2:]:
        on_spark.loaded_model(model)
    assert list(nothing_loaded) == ["a", "c", "d"] and nothing_loaded["a"] is first
    monkeypatch.setattr(on_spark, "_KEPT_BYTES", 0)
    assert on_spark.loaded_model(packed[0]) is first
    assert list(nothing_loaded) == ["a"]


def test_a_worker_whose_gpu_failed_keeps_no_model(rich: Path, nothing_loaded: dict[str, ServedModel]) -> None:
    from sparktrain.scoring import on_spark

    packed = PackedModel.of(rich, "rich")
    model = on_spark.loaded_model(packed)

    def lost(*_: object) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    model.module.register_forward_pre_hook(lost)
    nothing_loaded[packed.digest] = dataclasses.replace(model, device=torch.device("meta"))
    with pytest.raises(RuntimeError, match="device-side assert"):
        batches = RAW_OF_ALL_KINDS.to_batches()
        list(on_spark._score_partition(packed, batches[0].schema.names, 4, iter(batches)))
    assert nothing_loaded == {}


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
