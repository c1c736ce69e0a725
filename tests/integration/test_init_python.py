"""init_pipeline from Python: of DataFrames and files with whatever names, prepared by what was written."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

import sparktrain
from sparktrain.config import PrepareConfig, parse_config
from sparktrain.errors import PipelineExists, SourceUnreadable
from sparktrain.features import Categorical, Numeric, Target
from sparktrain.new_pipeline import Created

pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.timeout(300)]


def data_of(created: Created) -> ModuleType:
    """Import the data.py that was written, from where it lies."""
    file = created.into / "pipelines" / created.name / "data.py"
    spec = importlib.util.spec_from_file_location(f"made_{created.name}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prepared(created: Created, spark: SparkSession, root: Path) -> sparktrain.Dataset:
    data = data_of(created)
    tree = yaml.safe_load((created.into / created.config).read_text())
    config: PrepareConfig = parse_config(tree, has_package=False).prepare
    rows = data.read(spark, root, **config.source)
    return sparktrain.prepare(
        rows, data.FEATURES, data.TARGET, config, name=created.name, root=root, rules=data.RULES, key=data.KEY
    )


def test_a_dataframe_with_names_of_any_kind_becomes_a_pipeline(spark: SparkSession, tmp_path: Path) -> None:
    df = spark.range(300).selectExpr(
        "id % 7 / 2 AS row_id",  # preparation adds one of this name
        "id % 19 / 2 AS prediction",  # scoring adds one of this name
        "id % 11 / 2 AS `a``b`",
        "id % 13 / 2 AS `width.cm`",
        "CAST(id % 17 AS STRING) AS `Größe in m`",
        "IF(id % 5 = 0, NULL, CONCAT('x', id % 3)) AS type",
        "IF(id % 30 = 0, NULL, CAST(id * id % 7 AS DOUBLE)) AS class",
    )
    created = sparktrain.init_pipeline(df, "odd", "class", into=tmp_path)
    data = data_of(created)
    assert data.RENAMED == {"row_id": "row_id_", "prediction": "prediction_", "a`b": "a_b"}
    assert data.CASTS == {"class": "int", "Größe in m": "double"}
    assert Target("class", kind="multiclass") == data.TARGET
    assert [
        Numeric("row_id_"),
        Numeric("prediction_"),
        Numeric("a_b"),
        Numeric("width_cm", column="width.cm"),
        Numeric("Größe_in_m", column="Größe in m"),
        Categorical("type"),
    ] == data.FEATURES
    assert (tmp_path / "data" / "odd.parquet").is_dir(), "where read() finds the rows"
    dataset = prepared(created, spark, tmp_path / "out")
    assert dataset.manifest.rows_kept == 290 and dataset.manifest.quarantined == {"target_missing": 10}
    with pytest.raises(PipelineExists, match="odd"):
        sparktrain.init_pipeline(df, "odd", "class", into=tmp_path)


def scored_rows(created: Created, spark: SparkSession, place: Path) -> DataFrame:
    """Rows as the pipeline reads them for scoring."""
    return data_of(created).read(spark, place.parent, path=str(place))


def test_rows_to_be_scored_need_no_target(spark: SparkSession, tmp_path: Path) -> None:
    df = spark.range(300).selectExpr("id % 7 / 2 AS x", "'n' || id % 3 AS kind", "id % 2 AS y")
    for kind in ("csv", "json"):
        df.coalesce(1).write.option("header", True).format(kind).save(str(tmp_path / f"rows.{kind}"))
        created = sparktrain.init_pipeline(
            tmp_path / f"rows.{kind}", f"of_{kind}", "y", into=tmp_path, spark=spark
        )
        new = tmp_path / f"new.{kind}"
        df.limit(5).drop("y").coalesce(1).write.option("header", True).format(kind).save(str(new))
        read = scored_rows(created, spark, new)
        assert read.where("x IS NOT NULL AND kind IS NOT NULL AND _malformed_row IS NULL").count() == 5
    with_text = df.withColumn("y", F.col("y").cast("string"))
    created = sparktrain.init_pipeline(with_text, "of_text", "y", into=tmp_path)
    df.limit(5).drop("y").write.parquet(str(tmp_path / "new.parquet"))
    assert data_of(created).CASTS == {"y": "bigint"} and Target("y") == data_of(created).TARGET
    assert scored_rows(created, spark, tmp_path / "new.parquet").count() == 5


def test_a_csv_whose_rows_span_lines_is_read_by_its_rows(spark: SparkSession, tmp_path: Path) -> None:
    rows = [f'"{number}","two\nlines",{number % 5}.5,{number % 2}' for number in range(200)]
    (tmp_path / "rows.csv").write_text("\n".join(["a`b,text,x,y", *rows]))
    created = sparktrain.init_pipeline(tmp_path / "rows.csv", "lines", "y", into=tmp_path, spark=spark)
    assert created.guess.rows == 200 and created.guess.left_out["text"] == "it has the same value in all rows"
    dataset = prepared(created, spark, tmp_path / "out")
    assert dataset.manifest.rows_kept == 200 and not dataset.manifest.quarantined

    (tmp_path / "semicolons.csv").write_text("a;y\n1;2\n")
    with pytest.raises(SourceUnreadable, match=r"one column, 'a;y', separated by ';'"):
        sparktrain.init_pipeline(tmp_path / "semicolons.csv", "no", "y", into=tmp_path, spark=spark)


def test_what_few_rows_can_be_learnt_from_is_learnt(spark: SparkSession, tmp_path: Path) -> None:
    df = spark.range(20).selectExpr("id % 7 / 2 AS x", "id % 4 = 0 AS y")
    created = sparktrain.init_pipeline(df, "few", "y", into=tmp_path)
    assert any("true, or 1, in only 5 of 20 rows" in note for note in created.guess.notes)
    tree = yaml.safe_load((created.into / created.config).read_text())
    dataset = prepared(created, spark, tmp_path / "out")
    assert dataset.num_rows("train") >= parse_config(tree, has_package=False).train.global_batch_size


def test_what_can_t_be_cast_is_told_as_what_happens_to_it(spark: SparkSession, tmp_path: Path) -> None:
    df = spark.range(400).selectExpr(
        "IF(id % 25 = 0, 'n/a', CAST(id % 17 AS STRING)) AS price",
        "IF(id % 25 = 1, '?', CAST(id % 13 AS STRING)) AS size",
        "IF(id % 25 = 2, 'soon', CAST(DATE_ADD(DATE'2024-01-01', CAST(id AS INT)) AS STRING)) AS sold",
        "id % 3 = 0 AS good",
    )
    created = sparktrain.init_pipeline(df, "shop", "good", into=tmp_path)
    number = "16 of its 400 texts are no numbers: their rows are quarantined, and never scored"
    time = "16 of its 400 texts are no times: their rows are quarantined, and never scored"
    assert created.guess.warnings == {"price": number, "size": number, "sold": time}
    assert created.guess.rows == 400 and all(seen.nulls == 0 for seen in created.guess.columns.values())
    data = data_of(created)
    assert not any(feature.null_flag for feature in data.FEATURES)
    # 12 % of the rows, more than a pipeline allows that says nothing of it
    quarantined = prepared(created, spark, tmp_path / "out").manifest.quarantined
    assert quarantined == {"uncastable_price": 16, "uncastable_size": 16, "uncastable_sold": 16}


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_files_of_text_become_a_pipeline(spark: SparkSession, tmp_path: Path, kind: str) -> None:
    df = spark.range(200).selectExpr(
        "id % 31 / 2 AS `the size`",
        "IF(id % 2 = 0, 'a, b', 'c') AS name",
        "timestamp_seconds(id * 90000) AS sold",
        "id * id % 101 / 4 AS price",
    )
    source = tmp_path / f"rows.{kind}"
    rows = df.toPandas()
    if kind == "csv":
        rows.to_csv(source)  # with its index, in a column without a name
    else:
        rows["a box"] = [{"select from": number, "b`c": [{"x y": number}]} for number in rows.index]
        rows.to_json(source, orient="records", lines=True, date_format="iso")
    created = sparktrain.init_pipeline(source, "text", "price", into=tmp_path, spark=spark)
    assert created.guess.target.kind == "regression"
    (reason,) = created.guess.left_out.items()
    if kind == "csv":
        assert reason == ("_c0", "it has no name and numbers the rows, as an index that pandas wrote")
    else:
        assert reason[0] == "a box" and reason[1].endswith("is no type that features read")
    assert {f.source: f.kind for f in created.guess.features} == {
        "the size": "numeric",
        "name": "categorical",
        "sold": "timestamp",
    }
    dataset = prepared(created, spark, tmp_path / "out")
    assert dataset.manifest.rows_kept == 200 and not dataset.manifest.quarantined


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("x.json", '[\n  {\n    "a": 1,\n    "y": 2\n  }\n]\n', "one array.*one object a line"),
        ("x.json", '\n [{"a": 1, "y": 2}, {"a": 2, "y": 3}]', "one array.*one object a line"),
        ("x.json", '{\n  "a": 1,\n  "y": 2\n}\n', "no line of it is an object.*one object a line"),
        ("x.csv", "a,y,a\n1,2,3\n", "more than one `a`.*rename"),
        ("x.csv", "a,y,A\n1,2,3\n", "more than one `a`, `A`.*rename"),
    ],
)
def test_text_that_is_no_table_is_told(
    spark: SparkSession, tmp_path: Path, name: str, text: str, words: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(SourceUnreadable, match=words):
        sparktrain.init_pipeline(tmp_path / name, "text", "y", into=tmp_path, spark=spark)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_table_becomes_a_pipeline_that_reads_it(spark: SparkSession, tmp_path: Path) -> None:
    things = spark.range(100).selectExpr("id % 9 / 2 AS a", "id % 2 = 0 AS b", "id * id % 3 = 0 AS y")
    things.createOrReplaceTempView("things")
    created = sparktrain.init_pipeline("things", "of_table", "y", into=tmp_path, spark=spark)
    tree = yaml.safe_load((tmp_path / created.config).read_text())
    assert tree["prepare"]["source"] == {"table": "things"}
    assert prepared(created, spark, tmp_path / "out").manifest.rows_kept == 100
