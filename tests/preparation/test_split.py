"""Splits and row identities: pure functions of a row's key."""

from __future__ import annotations

import math

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from sparktrain.config import SplitConfig
from sparktrain.preparation.split import SPLIT_COLUMN, add_order, add_split

pytestmark = pytest.mark.spark

CONFIG = SplitConfig(validation=0.2, test=0.1)


def splits_of(df: DataFrame, key: list[str], config: SplitConfig = CONFIG) -> dict[int, str]:
    return {row["id"]: row[SPLIT_COLUMN] for row in add_split(df, key, config).collect()}


def test_a_row_keeps_its_split_when_other_rows_come_and_go(spark: SparkSession) -> None:
    few = splits_of(spark.range(0, 3000, 3).repartition(5), ["id"])
    many = splits_of(spark.range(3000).union(spark.range(5000, 6000)), ["id"])
    assert len(few) == 1000
    assert {number: many[number] for number in few} == few


def test_a_split_depends_on_the_key_alone(spark: SparkSession) -> None:
    df = spark.range(500)
    changed = df.withColumn("other", F.rand(7))
    assert splits_of(changed, ["id"]) == splits_of(df, ["id"])
    assert splits_of(changed, []) != splits_of(df, ["id"])  # no key: the whole row is it


@pytest.mark.parametrize(
    "config", [CONFIG, SplitConfig(validation=0.0, test=0.5), SplitConfig(validation=0.0, test=0.0)]
)
def test_splits_have_about_their_fractions(spark: SparkSession, config: SplitConfig) -> None:
    rows = 20_000
    counted = add_split(spark.range(rows), ["id"], config).groupBy(SPLIT_COLUMN).count().collect()
    counts = {row[SPLIT_COLUMN]: row["count"] for row in counted}
    wanted = {
        "train": 1 - config.validation - config.test,
        "validation": config.validation,
        "test": config.test,
    }
    assert set(counts) == {split for split, fraction in wanted.items() if fraction}
    for split, count in counts.items():
        four_sigma = 4 * math.sqrt(rows * wanted[split] * (1 - wanted[split]))
        assert abs(count - rows * wanted[split]) <= four_sigma


def test_another_seed_gives_other_splits_and_another_order(spark: SparkSession) -> None:
    df = spark.range(500)
    assert splits_of(df, ["id"], CONFIG.model_copy(update={"seed": 1})) != splits_of(df, ["id"])
    ordered = [
        [row["id"] for row in add_order(add_split(df, ["id"], CONFIG), seed).orderBy("_order").collect()]
        for seed in (0, 0, 1)
    ]
    assert ordered[0] == ordered[1] != ordered[2]
    assert sorted(ordered[2]) == list(range(500))


def test_nulls_count_for_a_row_s_identity(spark: SparkSession) -> None:
    values = [(None, "a"), ("a", None), (None, None), ("a", "a"), ("", None), (None, "")]
    df = spark.createDataFrame(values, "left string, right string")
    identities = [row["row_id"] for row in add_split(df, ["left", "right"], CONFIG).collect()]
    assert len(set(identities)) == len(values)
