"""Casts: what can't be cast is quarantined with its text, the same in ANSI mode and without."""

from __future__ import annotations

import json
import math

import pytest
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F

from sparktrain.errors import CastsInvalid
from sparktrain.preparation import Rule, cast_columns
from sparktrain.preparation.clean import Demands, mark_broken_rules, rule_names
from sparktrain.preparation.rules import RULE_COLUMN

pytestmark = pytest.mark.spark


def cast_values(spark: SparkSession, values: str, kind: str) -> list[Row]:
    df = spark.sql(f"select posexplode(array({values})) as (id, value)")
    return mark_broken_rules(cast_columns(df, {"value": kind}), [], Demands()).orderBy("id").collect()


@pytest.mark.parametrize(
    ("values", "kind", "wrong"),
    [
        ("'1', ' 2 ', 'x', '', null, '1.5', '99999999999', '-3'", "int", [2, 3, 5, 6]),
        ("'1.5', '1e400', '-1e400', 'inf', '-Infinity', 'NaN', null, 'one'", "double", [1, 2, 7]),
        ("1e300, 1e30, double('inf'), double('nan'), null, 1e-60", "float", [0]),
        ("1, 300, null, -129", "tinyint", [1, 3]),
        ("1e19D, double('nan'), 2.7D, double('inf')", "bigint", [0, 1, 3]),
        ("'123.456', '1234', 'x'", "decimal(5, 2)", [1, 2]),
        ("'2013-02-28', '2013-02-30', 'today?'", "date", [1, 2]),
        ("'2013-02-28 10:00:00', '2013-02-28 25:00:00'", "timestamp", [1]),
        ("'true', 'no', '1', 'maybe'", "boolean", [3]),
    ],
)
def test_what_can_not_be_cast_is_told_with_its_text(
    spark: SparkSession, values: str, kind: str, wrong: list[int], ansi: str
) -> None:
    rows = cast_values(spark, values, kind)
    originals = spark.sql(f"select posexplode(array({values})) as (id, value)").orderBy("id").collect()
    assert [row["id"] for row in rows if row[RULE_COLUMN] == "uncastable_value"] == wrong
    for row, original in zip(rows, originals, strict=True):
        if row["id"] in wrong:
            assert row["value"] is None
            text = row["_uncastable"]["value"]
            assert text == original["value"] or float(text) == float(original["value"]) or text == "NaN"
        else:
            assert row["_uncastable"] is None and row[RULE_COLUMN] is None
            assert (row["value"] is None) == (original["value"] is None)


def test_cast_values_are_the_values(spark: SparkSession, ansi: str) -> None:
    rows = cast_values(spark, "'1.5', 'inf', 'NaN', null, '-0.0'", "double")
    values = [row["value"] for row in rows]
    assert values[:2] == [1.5, math.inf] and math.isnan(values[2]) and values[3] is None
    assert math.copysign(1.0, values[4]) == -1.0


def texts(spark: SparkSession) -> DataFrame:
    values = [(0, "1", "2"), (1, "x", "2"), (2, "1", "y"), (3, "x", "y"), (4, None, None)]
    return spark.createDataFrame(values, "id int, a string, `b c` string")


def test_the_first_column_that_failed_names_the_rule_and_all_texts_stay(
    spark: SparkSession, ansi: str
) -> None:
    df = cast_columns(texts(spark), {"a": "int", "b c": "double"})
    assert df.columns == ["id", "a", "b c", "_uncastable"]
    assert [field.dataType.simpleString() for field in df.schema.fields[:3]] == ["int", "int", "double"]
    rules = [Rule("known", "a is not null")]
    marked = mark_broken_rules(df, rules, Demands()).orderBy("id")
    found = [row[RULE_COLUMN] for row in marked.collect()]
    assert found == [None, "uncastable_a", "uncastable_b c", "uncastable_a", "known"]
    assert rule_names(df, rules, Demands()) == ["uncastable_a", "uncastable_b c", "known"]
    quarantined = marked.where("id = 3").select(F.to_json(F.struct(*[f"`{name}`" for name in df.columns])))
    assert json.loads(quarantined.first()[0])["_uncastable"] == {"a": "x", "b c": "y"}  # type: ignore[index]


def test_casts_one_after_the_other_are_as_one(spark: SparkSession) -> None:
    once = cast_columns(texts(spark), {"a": "int", "b c": "double"})
    twice = cast_columns(cast_columns(texts(spark), {"a": "int"}), {"b c": "double"})
    assert twice.schema == once.schema
    assert sorted(twice.collect()) == sorted(once.collect())
    again = cast_columns(once, {"a": "string"})
    assert again.where("id = 1").first()["_uncastable"]["a"] == "x"  # type: ignore[index]
    assert cast_columns(texts(spark), {}).columns == ["id", "a", "b c"]


def test_casts_that_no_value_survives_are_named_all_at_once(spark: SparkSession) -> None:
    df = texts(spark).withColumn("list", F.array("a"))
    with pytest.raises(CastsInvalid) as caught:
        cast_columns(df, {"a": "nmber", "id": "date", "d": "int", "list": "array<int>", "b c": "int)"})
    told = str(caught.value)
    assert "`a` AS nmber" in told and "`id` AS date" in told and "there is no column `d`" in told
    assert "`list` is array<string>" in told and "`b c` AS int)" in told
    assert "Columns there are: id, a, b c, list" in told and len(told.splitlines()) == 2 + 5
