"""Faults of the source: each row is kept or quarantined with a reason, the same in ANSI mode and without."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyspark.sql import DataFrame, SparkSession

from sparktrain.errors import FeaturesInvalid, SchemaMismatch
from sparktrain.features import Numeric, Target
from sparktrain.preparation import Rule, cast_columns, read_csv, read_json
from sparktrain.preparation.check import check_columns
from sparktrain.preparation.clean import Demands, mark_broken_rules, rule_names
from sparktrain.preparation.rules import RULE_COLUMN
from sparktrain.splitting import SplitConfig

pytestmark = pytest.mark.spark


def marked_counts(marked: DataFrame) -> dict[str | None, int]:
    """Rows by the rule that they break; None: kept."""
    return {row[RULE_COLUMN]: row["count"] for row in marked.groupBy(RULE_COLUMN).count().collect()}


HUGE = "1,2,99999999999999999999"
KINDS = ["1,2,3", "1,0,3", "2147483647,1,3", "1,x,3", "1,2", "1,2,3,4", "NA,1,3", HUGE, '"', "{}"]
LINES = st.lists(st.sampled_from(KINDS), min_size=1, max_size=30)


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(LINES)
def test_rows_of_any_csv_add_up_in_both_modes(spark: SparkSession, tmp_path: Path, lines: list[str]) -> None:
    (tmp_path / "rows.csv").write_text("a,b,c\n" + "\n".join(lines) + "\n")
    rules = [Rule("adds", "a + 1 > 0"), Rule("divides", "a / b > 0"), Rule("small", "cast(c as tinyint) = c")]
    target = Target("amount", column="c", kind="regression")
    found = []
    before = spark.conf.get("spark.sql.ansi.enabled")
    try:
        for ansi in ("true", "false"):
            spark.conf.set("spark.sql.ansi.enabled", ansi)
            df = cast_columns(read_csv(spark, tmp_path / "rows.csv", "a int, b int, c string"), {"c": "int"})
            found.append(marked_counts(mark_broken_rules(df, rules, Demands([target]))))
            names = rule_names(df, rules, Demands([target]))
    finally:
        spark.conf.set("spark.sql.ansi.enabled", before or "false")
    assert found[0] == found[1]
    assert sum(found[0].values()) == len(lines)
    assert set(found[0]) <= {None, *names}
    assert found[0].get(None, 0) == lines.count("1,2,3")
    assert found[0].get("uncastable_c", 0) == lines.count(HUGE)
    assert found[0].get("adds", 0) == lines.count("2147483647,1,3") + lines.count("NA,1,3")
    assert found[0].get("divides", 0) == lines.count("1,0,3")


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_every_fault_of_a_file_has_its_own_reason(
    spark: SparkSession, tmp_path: Path, kind: str, ansi: str
) -> None:
    rows = [
        ("1", "10"),
        ("2", "0"),
        ("3", "2147483647"),
        ("x", "10"),
        ("5", "10"),
        ("1e999", "10"),
        ("7", "z"),
    ]
    if kind == "csv":
        text = "amount,count\n" + "".join(f"{amount},{count}\n" for amount, count in rows)
    else:
        text = "".join(f'{{"amount": "{a}", "count": {c}}}\n' for a, c in rows)
    (tmp_path / f"rows.{kind}").write_text(text)
    read = (read_csv if kind == "csv" else read_json)(
        spark, tmp_path / f"rows.{kind}", "amount string, count int"
    )
    df = cast_columns(read, {"amount": "double"})
    rules = [
        Rule("divides", "10 / count > 0"),
        Rule("adds", "count + 1 > 0"),
        Rule.one_of("amount", [1.0, 2, 3]),
    ]
    marked = mark_broken_rules(df, rules, Demands())
    assert marked_counts(marked) == {
        None: 1,
        "malformed": 1,
        "uncastable_amount": 2,
        "divides": 1,
        "adds": 1,
        "amount_one_of": 1,
    }


@pytest.mark.parametrize(
    ("target", "values", "broken"),
    [
        (
            Target("y"),
            "null, double('nan'), 0, 1, 2",
            ["target_missing", "target_missing", "", "", "target_not_binary"],
        ),
        (Target("t", column="y"), "true, null", ["", "target_missing"]),
        (
            Target("y", kind="regression"),
            "1.5, double('inf'), -double('inf'), 1e39, double('nan'), null, -3e38",
            ["", *["target_not_finite"] * 3, "target_missing", "target_missing", ""],
        ),
        (Target("y", kind="regression"), "1, 2147483647", ["", ""]),
        (
            Target("y", kind="multiclass"),
            "'a', 'NaN', 'c', null",
            ["", "target_class_unknown", "target_class_unknown", "target_missing"],
        ),
        (Target("y", kind="multiclass"), "1, 5", ["", "target_class_unknown"]),
        (Target("y", kind="multiclass"), "true, false", ["", "target_class_unknown"]),
    ],
)
def test_a_row_whose_target_is_not_allowed_is_quarantined(
    spark: SparkSession, target: Target, values: str, broken: list[str], ansi: str
) -> None:
    df = spark.sql(f"select posexplode(array({values})) as (id, y)")
    demands = Demands([target], classes={"y": ["a", "b", "1", "true"], "z": ["c"]})
    marked = mark_broken_rules(df, [], demands)
    assert [row[RULE_COLUMN] or "" for row in marked.orderBy("id").collect()] == broken
    if target.kind == "multiclass":  # no class is known before the first fit
        assert set(marked_counts(mark_broken_rules(df, [], Demands([target])))) <= {None, "target_missing"}


def test_every_target_and_the_weight_must_be_allowed(spark: SparkSession, ansi: str) -> None:
    df = spark.sql(
        "select * from values (0, 1, 1.5D, 1D), (1, null, 1.5D, 1D), (2, 1, null, 1D), (3, 7, 1.5D, 1D),"
        " (4, 1, double('inf'), 1D), (5, 1, 0D, null), (6, 1, 0D, double('nan')), (7, 1, 0D, double('inf')),"
        " (8, 1, 0D, -1D), (9, 1, 0D, 0D) as t(id, late, delay, w)"
    )
    targets = [Target("late"), Target("minutes", column="delay", kind="regression")]
    demands = Demands(targets, "w")
    marked = mark_broken_rules(df, [], demands).orderBy("id").collect()
    assert [row[RULE_COLUMN] for row in marked] == [
        None,
        *["target_missing"] * 2,
        "target_not_binary",
        "target_not_finite",
        *["weight_invalid"] * 4,
        None,
    ]
    names = ["target_missing", "target_not_binary", "target_not_finite", "weight_invalid"]
    assert rule_names(df, [], demands) == names


def test_columns_of_targets_weight_and_split_are_checked_before_any_row_is_read(spark: SparkSession) -> None:
    df = spark.sql("select 1.0 as x, 'a' as text, 1.5D as number, date'2013-01-01' as day, 1 as count")
    features = [Numeric("x")]
    by_time = SplitConfig(method="time", column="day", test_from="2013-01-01")
    found = check_columns(df, features, [Target("count")], [], weight="number", split=by_time)
    assert found == {"x": "double", "count": "long", "number": "double"}
    with pytest.raises(SchemaMismatch) as caught:
        check_columns(
            df,
            features,
            [Target("text"), Target("kind", column="number", kind="multiclass"), Target("gone")],
            ["id"],
            weight="day",
            split=SplitConfig(method="time", column="count", test_from="2013-01-01"),
        )
    told = str(caught.value)
    assert "missing column `gone`" in told and "missing column `id`" in told
    assert "`text` is string, expected a number or a boolean" in told
    assert "`number` is double, expected classes as text, integers or booleans" in told
    assert "`day` is date, expected a number, the row's weight" in told
    assert "`count` is int, expected a timestamp or a date" in told
    for split, expected in (
        (SplitConfig(method="time", column="day", test_from=3), "`day` is date, expected a number"),
        (SplitConfig(method="column", column="count"), "`count` is int, expected text, one of train"),
        (SplitConfig(method="column", column="part"), "missing column `part`"),
    ):
        with pytest.raises(SchemaMismatch, match=expected):
            check_columns(df, features, [Target("count")], [], split=split)


def test_targets_that_clash_are_refused(spark: SparkSession) -> None:
    df = spark.sql("select 1.0 as x, 1 as y")
    with pytest.raises(FeaturesInvalid) as caught:
        check_columns(
            df, [Numeric("x"), Numeric("z", column="y")], [Target("x"), Target("y")], [], weight="y"
        )
    told = str(caught.value)
    assert "declared twice: `x`" in told
    assert "`z` is made of the target `y`" in told
    assert "the weight `y` is the target's column" in told
    with pytest.raises(FeaturesInvalid, match="there is no target"):
        check_columns(df, [Numeric("x")], [], [])
    with pytest.raises(FeaturesInvalid, match="names that sparktrain uses itself: `_uncastable`"):
        check_columns(df, [Numeric("_uncastable", column="x")], [Target("y")], [])
