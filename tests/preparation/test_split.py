"""Splits and row identities: pure functions of a row."""

from __future__ import annotations

import math

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from sparktrain.config import SplitConfig
from sparktrain.preparation.clean import Demands, mark_broken_rules, rule_names
from sparktrain.preparation.split import SPLIT_COLUMN, add_split

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


def test_another_seed_gives_other_splits(spark: SparkSession) -> None:
    df = spark.range(500)
    assert splits_of(df, ["id"], CONFIG.model_copy(update={"seed": 1})) != splits_of(df, ["id"])


def test_nulls_count_for_a_row_s_identity(spark: SparkSession) -> None:
    values = [(None, "a"), ("a", None), (None, None), ("a", "a"), ("", None), (None, "")]
    df = spark.createDataFrame(values, "left string, right string")
    identities = [row["row_id"] for row in add_split(df, ["left", "right"], CONFIG).collect()]
    assert len(set(identities)) == len(values)


METHODS = {
    "hash": SplitConfig(),
    "random": SplitConfig(method="random"),
    "time": SplitConfig(method="time", column="time", validation_from="2013-02-01", test_from="2013-03-01"),
    "number": SplitConfig(method="time", column="number", test_from=0.5),
    "stratified": SplitConfig.model_validate(
        {"method": "stratified", "column": "colour", "fractions": {"red": {"validation": 0.5, "test": 0.3}}}
    ),
    "column": SplitConfig(method="column", column="part"),
}


def make_rows(spark: SparkSession, first: int, last: int) -> DataFrame:
    return spark.range(first, last).selectExpr(
        "id",
        "if(id % 9 = 0, null, timestamp_seconds(1356998400 + pmod(hash(id), 7776000))) as time",
        "case when id % 7 = 0 then null when id % 7 = 1 then double('NaN') else sin(id) end as number",
        "element_at(array('red', 'green', null), int(id % 3) + 1) as colour",
        "element_at(array('train', 'test', 'validation', null, 'Train'), int(id % 5) + 1) as part",
        "map('a', id) as tags",
    )


@pytest.mark.parametrize("method", METHODS)
def test_new_rows_move_no_old_row_whatever_the_method(spark: SparkSession, method: str, ansi: str) -> None:
    old = make_rows(spark, 0, 500)
    new = make_rows(spark, 500, 2000)
    before = splits_of(old.repartition(3), [], METHODS[method])
    after = splits_of(new.union(old), [], METHODS[method])
    assert {number: after[number] for number in before} == before
    assert len(set(before.values())) >= 2


def test_random_parts_rows_of_one_key_and_hash_does_not(spark: SparkSession) -> None:
    df = spark.range(300).selectExpr("id", "1 as key")
    assert len(set(splits_of(df, ["key"], METHODS["hash"]).values())) == 1
    by_row = splits_of(df, ["key"], METHODS["random"])
    assert set(by_row.values()) == {"train", "validation", "test"}
    assert splits_of(df, ["id"], METHODS["random"]) == by_row
    assert splits_of(df, ["key"], SplitConfig(method="random", seed=1)) != by_row


def test_a_rule_that_a_row_breaks_is_no_part_of_its_identity(spark: SparkSession) -> None:
    df = spark.range(50)
    marked = df.withColumn("_broken_rule", F.when(F.col("id") > 20, "some"))
    for method in ("hash", "random"):
        assert splits_of(marked, [], METHODS[method]) == splits_of(df, [], METHODS[method])


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Auckland"])
@pytest.mark.parametrize(
    "instants",
    ["timestamp_seconds(1356998400 + 86400 * id)", "to_timestamp_ntz(day)", "day"],
    ids=["timestamp", "timestamp_ntz", "date"],
)
def test_time_splits_at_its_boundaries_in_any_time_zone(
    spark: SparkSession, zone: str, instants: str
) -> None:
    before = spark.conf.get("spark.sql.session.timeZone")
    spark.conf.set("spark.sql.session.timeZone", zone)
    try:
        days = spark.range(90).selectExpr("id", "date_add(date'2013-01-01', int(id)) as day")
        df = days.selectExpr("id", f"{instants} as time")
        found = splits_of(df, ["id"], METHODS["time"])
    finally:
        spark.conf.set("spark.sql.session.timeZone", before or "UTC")
    assert [number for number, split in sorted(found.items()) if split == "validation"] == list(range(31, 59))
    assert {split for number, split in found.items() if number < 31} == {"train"}
    assert {split for number, split in found.items() if number >= 59} == {"test"}


def test_what_a_method_can_not_place_is_split_unknown(spark: SparkSession, ansi: str) -> None:
    df = make_rows(spark, 0, 630)
    expected = {"time": "time is null", "number": "number is null or isnan(number)", "column": "id % 5 > 2"}
    for method, unknown in expected.items():
        marked = add_split(mark_broken_rules(df, [], Demands(split=METHODS[method])), ["id"], METHODS[method])
        assert marked.where(f"({unknown}) <> (_broken_rule <=> 'split_unknown')").isEmpty()
        assert marked.where("(_split is null) <> (_broken_rule is not null)").isEmpty()
        assert rule_names(df, [], Demands(split=METHODS[method])) == ["split_unknown"]
    assert rule_names(df, [], Demands(split=METHODS["stratified"])) == []


def test_fractions_by_value_hold_for_their_rows_and_the_general_ones_for_others(spark: SparkSession) -> None:
    df = make_rows(spark, 0, 30_000)
    counted = add_split(df, ["id"], METHODS["stratified"]).groupBy("colour", SPLIT_COLUMN).count().collect()
    counts = {(row["colour"], row[SPLIT_COLUMN]): row["count"] for row in counted}
    for colour, validation, test in (("red", 0.5, 0.3), ("green", 0.1, 0.1), (None, 0.1, 0.1)):
        for split, fraction in (("validation", validation), ("test", test)):
            four_sigma = 4 * math.sqrt(10_000 * fraction * (1 - fraction))
            assert abs(counts[colour, split] - 10_000 * fraction) <= four_sigma


def test_maps_and_nested_columns_have_an_identity_too(spark: SparkSession) -> None:
    df = spark.sql("select id, map('a', id % 2) as m, array(struct(id % 2 as b)) as s from range(4)")
    same = df.select("m", "s")
    identities = [row["row_id"] for row in add_split(same, [], CONFIG).collect()]
    assert len(set(identities)) == 2
