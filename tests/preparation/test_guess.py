"""Guessing features: each kind of column, each reason to leave one out, each kind of target."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from sparktrain.config import PrepareConfig
from sparktrain.errors import FeaturesInvalid, TargetUnusable
from sparktrain.features import Boolean, Categorical, Numeric, Target, Timestamp, Vector
from sparktrain.preparation import cast_columns, prepare
from sparktrain.preparation.guess import Guess, guess_features

pytestmark = [pytest.mark.spark, pytest.mark.timeout(240)]

ROWS = 400
NOON = dt.datetime(2024, 1, 1, 12, tzinfo=dt.UTC)

# One row's values, by its number; the target depends on none of them.
COLUMNS: dict[str, tuple[str, Callable[[int], Any]]] = {
    "customer_id": ("bigint", lambda i: 10_000 + 7 * i),
    "amount": ("double", lambda i: None if i % 9 == 0 else (i * 7919 % 1000) / 7),
    "rooms": ("int", lambda i: i * 31 % 6),
    "price": ("decimal(10,2)", lambda i: None if i == 3 else Decimal(i * 37 % 211)),
    "area_code": ("int", lambda i: (201, 212, 415, 650)[i * 13 % 4]),
    "size": ("bigint", lambda i: (1, 500, 20_000)[i * 17 % 3]),
    "colour": ("string", lambda i: ("red", "green", None, "blue")[i * 29 % 4]),
    "member": ("boolean", lambda i: i * 41 % 3 == 0),
    "seen_at": ("timestamp", lambda i: NOON + dt.timedelta(hours=37 * i)),
    "born": ("date", lambda i: dt.date(2020, 1, 1) + dt.timedelta(days=i % 30)),
    "pixels": ("array<float>", lambda i: [float(i % 3), 1.0, 2.0]),
    "Größe in m²": ("float", lambda i: float(i * 11 % 173)),
    "width.cm": ("float", lambda i: float(i * 19 % 179)),
    "2nd": ("int", lambda i: i * 23 % 7),
    "path": ("array<int>", lambda i: list(range(i % 4 + 1))),
    "name": ("string", lambda i: f"name {i}"),
    "street": ("string", lambda i: f"street {i // 3}"),
    "story": ("string", lambda i: f"{'a long story ' * 6}{i}"),
    "paid": ("string", lambda i: f"{i * 3 % 101}.50"),
    "when": ("string", lambda i: f"2024-03-{i % 28 + 1:02d} 10:00:00"),
    "constant": ("string", lambda i: "x"),
    "nothing": ("double", lambda i: None),
    "void": ("void", lambda i: None),
    "tags": ("map<string,int>", lambda i: {"a": i}),
    "place": ("struct<x:int>", lambda i: (i,)),
    "bytes": ("binary", lambda i: bytes([i % 7, 3])),
    "row_number": ("int", lambda i: i + 1),
}


def make(spark: SparkSession, target: str, value: Callable[[int], Any], *names: str) -> DataFrame:
    """Rows of the columns in `names` (all), and of the target."""
    chosen = {name: COLUMNS[name] for name in names or COLUMNS}
    schema = ", ".join(f"`{name}` {kind}" for name, (kind, _) in chosen.items())
    rows = [(*(give(i) for _, give in chosen.values()), value(i)) for i in range(ROWS)]
    return spark.createDataFrame(rows, f"{schema}, y {target}")


def late(i: int) -> bool:
    return i * i % 7 < 3


@pytest.fixture(scope="module")
def guessed(spark: SparkSession) -> Guess:
    return guess_features(make(spark, "boolean", late), "y")


def test_each_kind_of_column_becomes_its_feature(guessed: Guess) -> None:
    assert guessed.features == [
        Numeric("amount", null_flag=True),
        Numeric("rooms"),
        Numeric("price"),
        Categorical("area_code"),
        Categorical("size"),
        Categorical("colour"),
        Boolean("member"),
        Timestamp("seen_at", parts=("hour", "day_of_week", "month")),
        Timestamp("born", parts=("day_of_week", "day")),
        Vector("pixels", shape=3),
        Numeric("Größe_in_m", column="Größe in m²"),
        Numeric("width_cm", column="width.cm"),
        Numeric("column_2nd", column="2nd"),
    ]
    assert guessed.target == Target("y")
    assert guessed.key == ["customer_id"]
    assert guessed.rows == ROWS


def test_what_no_feature_can_be_made_of_is_left_out_with_its_reason(guessed: Guess) -> None:
    said = {name: reason for name, reason in guessed.left_out.items()}
    assert set(said) == {
        "customer_id", "path", "name", "street", "story", "paid", "when", "constant", "nothing", "void",
        "tags", "place", "bytes", "row_number",
    }  # fmt: skip
    assert "arrays of 1 to 4 numbers" in said["path"]
    assert "value of its own" in said["name"] and "3.0 rows each" in said["street"]
    assert "Tokens" in said["story"]
    assert "text is numbers" in said["paid"] and "text is times" in said["when"]
    assert guessed.casts == {"paid": "double", "when": "timestamp"}
    assert said["constant"] == "it has the same value in all rows"
    assert said["nothing"] == "it has no value" and "void" in said["void"]
    assert "map" in said["tags"] and "struct" in said["place"] and "Image" in said["bytes"]
    assert said["row_number"] == "it numbers the rows" == said["customer_id"]
    assert all(
        any(f"`{name}` is left out: {why}" == note for note in guessed.notes) for name, why in said.items()
    )


def test_text_that_was_cast_becomes_a_number_and_a_time(spark: SparkSession) -> None:
    df = make(spark, "boolean", late, "paid", "when")
    cast = cast_columns(df, {"paid": "double", "when": "timestamp"}).drop("_uncastable")
    found = guess_features(cast, "y")
    assert [feature.kind for feature in found.features] == ["numeric", "timestamp"]


def test_text_of_digits_is_a_number_or_a_code(spark: SparkSession) -> None:
    df = spark.range(600).selectExpr(
        "LPAD(id % 50, 5, '0') AS place",
        "CAST(id % 50 AS STRING) AS zip",
        "LPAD(id, 6, '0') AS serial",
        "CAST(id AS STRING) AS row",
        "IF(id % 10 = 0, 'n/a', CAST(id * 7 % 599 AS STRING)) AS partly",
        "IF(id % 40 = 0, '-', CAST(id * 7 % 301 / 4 AS STRING)) AS mostly",
        "CAST(id % 3 = 0 AS INT) AS y",
    )
    found = guess_features(df, "y")
    assert found.casts == {"row": "double", "mostly": "double"}
    assert found.features == [Categorical("place"), Categorical("zip")]
    assert found.left_out["serial"] == "nearly every row has a value of its own"
    assert found.left_out["partly"].startswith("90% of its texts are numbers")
    cast = cast_columns(df, found.casts).drop("_uncastable")
    again = guess_features(cast, "y")
    assert again.left_out["row"] == "it numbers the rows"
    assert Numeric("mostly", null_flag=True) in again.features


@pytest.mark.parametrize(
    ("target", "cast", "kind"),
    [
        ("CAST(id % 2 AS STRING)", "bigint", "binary"),
        ("CAST(id % 4 AS STRING)", "bigint", "multiclass"),
        ("CAST(id % 97 / 4 AS STRING)", "double", "regression"),
        ("'c' || id % 2", None, "multiclass"),
    ],
)
def test_a_target_of_text_that_is_numbers_is_cast(
    spark: SparkSession, target: str, cast: str, kind: str
) -> None:
    df = spark.range(400).selectExpr("id % 7 / 2 AS x", f"{target} AS y")
    found = guess_features(df, "y")
    assert found.casts.get("y") == cast
    if cast is not None:
        found = guess_features(cast_columns(df, found.casts).drop("_uncastable"), "y")
    assert found.target == Target("y", kind=kind)


def test_what_looks_wrong_with_arrays_and_rare_targets_is_told(spark: SparkSession) -> None:
    df = spark.range(400).selectExpr(
        "ARRAY(id % 7 / 2, NULL, 1e7) AS large", "ARRAY(id % 7 / 2, 1D) AS small", "id % 100 = 0 AS y"
    )
    found = guess_features(df, "y")
    assert found.features == [Vector("large", shape=3), Vector("small", shape=2)]
    assert found.warnings.keys() == {"large"} and "its numbers reach 1e+07" in found.warnings["large"]
    assert any("is true, or 1, in only 4 of 400 rows" in note for note in found.notes)


def test_what_was_guessed_can_be_prepared(spark: SparkSession, tmp_path: Any) -> None:
    df = make(spark, "boolean", late)
    found = guess_features(df, "y")
    config = PrepareConfig(num_parts=1, rows_per_row_group=64)
    dataset = prepare(df, found.features, found.target, config, name="guessed", root=tmp_path, key=found.key)
    assert dataset.manifest.rows_kept == ROWS
    assert {feature.name for feature in dataset.features.features} == {f.name for f in found.features}


@pytest.mark.parametrize(
    ("kind", "value", "guessed_kind"),
    [
        ("boolean", late, "binary"),
        ("int", lambda i: int(late(i)), "binary"),
        ("double", lambda i: None if i % 50 == 0 else float(late(i)), "binary"),
        ("string", lambda i: "yes" if late(i) else "no", "multiclass"),
        ("int", lambda i: 1 + i * i % 7, "multiclass"),
        ("int", lambda i: i * i % 97, "regression"),
        ("double", lambda i: float(i * i % 97) / 4, "regression"),
        ("decimal(6,2)", lambda i: Decimal(i * i % 97), "regression"),
    ],
)
def test_the_targets_kind_follows_from_its_values(
    spark: SparkSession, kind: str, value: Callable[[int], Any], guessed_kind: str
) -> None:
    assert guess_features(make(spark, kind, value, "amount"), "y").target.kind == guessed_kind


def test_rows_without_a_target_are_told_and_do_not_count(spark: SparkSession) -> None:
    df = make(
        spark, "double", lambda i: None if i % 2 else (float("nan") if i % 4 else i / 3), "amount", "rooms"
    )
    # this column has a value only where the target has none
    found = guess_features(df.withColumn("why", F.when(F.col("y").isNull(), "lost")), "y")
    assert "`y`, the target, is missing in 300 of 400 rows: they are quarantined" in found.notes
    assert found.left_out["why"] == "it has no value"
    assert found.columns["amount"].rows == 100


def test_a_copy_of_the_target_is_left_out_and_what_gives_it_away_is_told(spark: SparkSession) -> None:
    df = make(spark, "boolean", late, "amount", "colour").withColumns(
        {
            "copy": F.col("y"),
            "answer": F.when(F.col("y"), "yes").otherwise("no"),
            "delay": F.when(F.col("y"), 15 + F.col("amount")).otherwise(-F.col("amount")),
            "reason": F.when(F.col("y"), F.concat(F.lit("late "), "colour")).otherwise("none"),
        }
    )  # fmt: skip
    found = guess_features(df, "y")
    assert set(found.left_out) == {"copy", "answer"}
    assert "target `y` itself" in found.left_out["copy"] and "in other words" in found.left_out["answer"]
    assert set(found.warnings) == {"delay", "reason"}
    assert "separate the target's two classes" in found.warnings["delay"]
    assert "goes with only one value of the target" in found.warnings["reason"]
    assert {"delay", "reason"} <= {feature.name for feature in found.features}


def test_a_number_that_is_the_target_times_a_constant_is_told(spark: SparkSession) -> None:
    df = make(spark, "double", lambda i: float(i * i % 97) / 4, "amount")
    df = df.withColumns({"cents": F.col("y") * 100 + F.col("amount") / 1000, "tenths": F.col("y") * 10})
    found = guess_features(df, "y")
    assert "times a constant" in found.warnings["cents"] and "in other words" in found.left_out["tenths"]


def test_classes_that_came_as_floats_are_to_be_cast(spark: SparkSession) -> None:
    found = guess_features(make(spark, "double", lambda i: float(i * i % 5), "amount"), "y")
    assert found.target.kind == "regression" and found.casts == {"y": "int"}


def test_excluded_columns_are_not_looked_at(spark: SparkSession) -> None:
    found = guess_features(
        make(spark, "boolean", late, "amount", "rooms", "name"), "y", exclude=["rooms", "name"]
    )
    assert [feature.name for feature in found.features] == ["amount"]
    assert not found.notes and set(found.columns) == {"amount", "y"}


def test_names_that_become_alike_are_kept_apart(spark: SparkSession) -> None:
    columns = ["id % 5 / 2 AS `a b`", "id % 7 / 3 AS `a.b`", "id % 11 / 3 AS a_b"]
    df = spark.range(99).selectExpr(*columns, "id * id % 7 < 3 AS y")
    found = guess_features(df, "y")
    assert [(f.name, f.source) for f in found.features] == [
        ("a_b_2", "a b"),
        ("a_b_3", "a.b"),
        ("a_b", "a_b"),
    ]


def test_more_columns_than_fit_into_a_pass_are_all_seen(spark: SparkSession) -> None:
    df = spark.range(60).select(*[(F.sin(F.col("id") * k)).alias(f"c{k}") for k in range(1, 131)])
    found = guess_features(df.withColumn("y", F.sin(F.col("c7") * 31) > 0), "y")
    assert [feature.name for feature in found.features] == [f"c{k}" for k in range(1, 131)]


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        ("date", lambda i: dt.date(2024, 1, 1), "it is date"),
        ("int", lambda i: None, "no row has a value"),
        ("string", lambda i: "same", "the same value"),
        ("string", lambda i: f"text {i}", "text of some 400 values"),
    ],
)
def test_a_target_that_nothing_can_be_learnt_of_is_refused(
    spark: SparkSession, kind: str, value: Callable[[int], Any], said: str
) -> None:
    with pytest.raises(TargetUnusable, match=said):
        guess_features(make(spark, kind, value, "amount"), "y")


def test_a_target_that_is_not_there_is_told_with_the_nearest(spark: SparkSession) -> None:
    with pytest.raises(TargetUnusable, match=r"did you mean `amount`\? there are: amount, y"):
        guess_features(make(spark, "boolean", late, "amount"), "amuont")


def test_nothing_to_learn_from_is_refused_with_each_reason(spark: SparkSession) -> None:
    with pytest.raises(FeaturesInvalid, match="`constant` is left out: it has the same value"):
        guess_features(make(spark, "boolean", late, "constant", "name"), "y")


def test_names_that_preparation_refuses_are_refused_at_once(spark: SparkSession) -> None:
    with pytest.raises(FeaturesInvalid, match="row_id"):
        guess_features(spark.range(9).selectExpr("id AS row_id", "id > 3 AS y"), "y")
