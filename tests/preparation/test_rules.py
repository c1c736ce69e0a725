"""Rules in all the forms they can have: short ways, functions, Columns, one row of each key."""

from __future__ import annotations

import datetime
import random
from collections.abc import Callable, Sequence
from decimal import Decimal

import pyspark
import pytest
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from sparktrain.errors import RulesInvalid
from sparktrain.preparation import Rule
from sparktrain.preparation.clean import Demands, mark_broken_rules, rule_names
from sparktrain.preparation.rules import RULE_COLUMN
from sparktrain.splitting import SplitConfig

pytestmark = pytest.mark.spark

INFINITY = float("inf")


def broken(df: DataFrame, *rules: Rule) -> dict[int, str]:
    """Rule by id of the rows that break one."""
    marked = mark_broken_rules(df, rules, Demands()).where(f"{RULE_COLUMN} is not null")
    return {row["id"]: row[RULE_COLUMN] for row in marked.collect()}


@pytest.mark.parametrize(
    ("values", "low", "high", "wrong"),
    [
        ("0, 1, 5, 10, 11, null", 1, 10, [0, 4, 5]),
        ("0D, 1D, double('nan'), double('inf'), -double('inf'), null", 0, INFINITY, [2, 4, 5]),
        ("float(0), float('nan'), float(1e30)", -INFINITY, 1e20, [1, 2]),
        ("1.25, 1.35, null", Decimal("1.3"), 2, [0, 2]),
        ("date'2013-01-01', date'2014-01-01'", datetime.date(2013, 6, 1), datetime.date(2015, 1, 1), [0]),
        ("'a', 'b', 'c', null", "b", "bz", [0, 2, 3]),
    ],
)
def test_between_keeps_its_bounds_and_no_null(
    spark: SparkSession, values: str, low: object, high: object, wrong: list[int], ansi: str
) -> None:
    df = spark.sql(f"select posexplode(array({values})) as (id, `the value`)")
    rule = Rule.between("the value", low, high)
    assert rule.name == f"the value_between_{low}_and_{high}"
    assert broken(df, rule) == dict.fromkeys(wrong, rule.name)


def test_not_null_and_one_of(spark: SparkSession, ansi: str) -> None:
    df = spark.sql(
        "select id, if(id = 1, null, id) as a, if(id = 2, null, double('nan')) as b,"
        " element_at(array('x', 'y', null), int(id % 3) + 1) as c from range(6)"
    )
    assert broken(df, Rule.not_null("a", "b")) == {1: "a_and_b_not_null", 2: "a_and_b_not_null"}
    assert broken(df, Rule.one_of("c", ["x"], name="is_x")) == dict.fromkeys([1, 2, 4, 5], "is_x")
    assert broken(df, Rule.one_of("c", ("x", None))) == dict.fromkeys([1, 4], "c_one_of")
    assert broken(df, Rule.one_of("a", range(4))) == dict.fromkeys([1, 4, 5], "a_one_of")


FORMS: dict[str, Callable[[str], str | Column | Callable[[DataFrame], Column]]] = {
    "text": lambda text: text,
    "column": lambda text: F.expr(text),
    "function": lambda text: lambda df: F.expr(text),
}


@pytest.mark.parametrize("form", FORMS)
def test_what_can_not_be_computed_breaks_the_rule_in_every_form(
    spark: SparkSession, form: str, ansi: str
) -> None:
    df = spark.sql(
        "select id, if(id = 3, 'three', string(id)) as word, if(id = 4, 2147483647, int(id)) as number,"
        " decimal(id) as exact from range(8)"
    )
    if form == "column" and ansi == "true" and pyspark.__version__ < "4":
        pytest.skip("Spark 3.5 gives a Column the mode of the moment when it is made")
    make = FORMS[form]
    rules = [
        Rule("divides", make("60 / (id - 2) > -1000")),
        Rule("is_number", make("cast(word as int) >= 0")),
        Rule("adds", make("number + 1 > 0")),
        Rule("fits", make("cast(if(id = 5, 1e10, 1) as tinyint) = 1")),
        Rule("exact", make("exact % (exact - 6) >= 0 and element_at(array(1, 2), int(id % 2) + 1) > 0")),
    ]
    assert broken(df, *rules) == {2: "divides", 3: "is_number", 4: "adds", 5: "fits", 6: "exact"}


def test_operators_of_a_function_s_columns_are_made_without_ansi(spark: SparkSession, ansi: str) -> None:
    df = spark.range(5).withColumn("word", F.when(F.col("id") < 4, F.col("id").cast("string")).otherwise("x"))
    rules = [
        Rule("divides", lambda df: F.lit(6) / (df["id"] - 2) > -1000),
        Rule("is_number", lambda df: df["word"].cast("int") >= 0),
    ]
    assert broken(df, *rules) == {2: "divides", 4: "is_number"}


def test_of_the_rows_of_a_key_the_latest_stays(spark: SparkSession, ansi: str) -> None:
    values = [
        (0, "a", 1),
        (1, "a", 3),
        (2, "a", None),
        (3, "b", None),
        (4, "c", 1),
        (5, None, 1),
        (6, None, 2),
    ]
    df = spark.createDataFrame(values, "id int, key string, time int")
    rule = Rule.unique("key", latest="time")
    assert broken(df, rule) == dict.fromkeys([0, 2, 5], "unique_key")
    # a row that breaks another rule takes no part: its copies stay, and it is quarantined under that rule
    early = Rule("early", "coalesce(time, 0) < 3")
    assert broken(df, rule, early) == {**dict.fromkeys([2, 5], "unique_key"), 1: "early"}
    assert rule_names(df, [rule, early], Demands()) == ["early", "unique_key"]


def test_rows_that_can_not_be_split_have_no_copies(spark: SparkSession) -> None:
    df = spark.createDataFrame([(0, "train", 1), (1, None, 2)], "id int, part string, time int")
    split = SplitConfig(method="column", column="part")
    rules = [Rule.unique("nothing", latest="time")]
    df = df.withColumn("nothing", F.lit(None).cast("int"))
    marked = mark_broken_rules(df, rules, Demands(split=split))
    assert {row["id"]: row[RULE_COLUMN] for row in marked.collect()} == {0: None, 1: "split_unknown"}


def test_which_copy_stays_does_not_depend_on_the_rows_order(spark: SparkSession) -> None:
    rng = random.Random(5)
    values = [
        (k, rng.choice([None, 1]), rng.choice(["x", None]), {"a": rng.randint(0, 9)}) for k in [1, 2] * 20
    ]
    kept = []
    for _ in range(3):
        rng.shuffle(values)
        df = spark.createDataFrame(values, "key int, time int, text string, tags map<string, int>")
        rules = [Rule.unique("key", latest="time")]
        marked = mark_broken_rules(df.repartition(rng.randint(1, 5)), rules, Demands())
        kept.append(sorted(map(str, marked.where(f"{RULE_COLUMN} is null").collect())))
    assert len(kept[0]) == 2
    assert kept[0] == kept[1] == kept[2]


def test_each_unique_rule_looks_at_what_the_earlier_ones_left(spark: SparkSession) -> None:
    df = spark.createDataFrame([(0, 1, 1), (1, 1, 2), (2, 2, 1)], "id int, left int, right int")
    rules = [Rule.unique("left"), Rule.unique("right")]
    assert broken(df, *rules) == {1: "unique_left", 2: "unique_right"}


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Rule.between("a", 2, 1), "no value lies between 2 and 1"),
        (lambda: Rule.between("a", float("nan"), 1), "no value lies between nan and 1"),
        (lambda: Rule.between("a", None, 1), "no value lies between None and 1"),
        (lambda: Rule.between("a", "x", 1), "no value lies between 'x' and 1"),
        (lambda: Rule.one_of("a", []), "give at least one"),
        (lambda: Rule.one_of("a", "abc"), "'abc' is no list of values"),
        (lambda: Rule.not_null(), "no column is named"),
        (lambda: Rule.unique(), "no column is named"),
    ],
)
def test_a_rule_that_nothing_can_meet_is_refused_where_it_is_declared(
    make: Callable[[], Rule], told: str
) -> None:
    with pytest.raises(RulesInvalid, match=told):
        make()


def refused(df: DataFrame, rules: Sequence[Rule]) -> str:
    with pytest.raises(RulesInvalid) as caught:
        mark_broken_rules(df, rules, Demands())
    return str(caught.value)


def test_names_that_clash_are_told_beside_faults(
    spark: SparkSession, capfd: pytest.CaptureFixture[str]
) -> None:
    df = spark.range(3).withColumn("tags", F.create_map(F.lit("a"), "id"))
    told = refused(
        df,
        [
            Rule("twice", "id > 0"),
            Rule("twice", "id > 1"),
            Rule("target_missing", "id > 0"),
            Rule("uncastable_id", "id > 0"),
            Rule("", "id > 0"),
            Rule("number", 5),  # type: ignore[arg-type]
            Rule("no_column", lambda df: True),  # type: ignore[arg-type,return-value]
            Rule("sum", F.sum("id") > 0),
            Rule.unique("id", latest="tags"),
            Rule.unique("ids"),
            Rule.between("ids", 0, 1),
        ],
    )
    assert "`twice`: 2 rules have this name" in told
    assert "`target_missing`: preparation gives this name" in told
    assert "`uncastable_id`: preparation gives this name" in told
    assert "a rule has an empty name" in told
    assert "`number` (5): give SQL text, a Column, or a function" in told
    assert "`no_column`" in told and "`sum`" in told
    assert "`unique_id`" in told and "`unique_ids`" in told and "`ids_between_0_and_1`" in told
    assert len(told.splitlines()) == 2 + 10
    assert capfd.readouterr() == ("", "")
