"""Cleaning: every row is kept or quarantined under one rule, and bad rules are refused in words."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pyspark.sql import DataFrame, SparkSession

from sparktrain.config import PrepareConfig, SplitConfig
from sparktrain.dataset import Dataset
from sparktrain.errors import EXIT_DATA, NoRowsLeft, RulesInvalid, TooManyQuarantined
from sparktrain.features import Numeric
from sparktrain.preparation import Rule
from sparktrain.preparation.clean import Demands, mark_broken_rules
from sparktrain.preparation.rules import RULE_COLUMN
from tests.preparation.conftest import RULES, TARGET, Preparing

pytestmark = pytest.mark.spark

LENIENT = PrepareConfig(
    split=SplitConfig(validation=0.0, test=0.0), num_parts=1, max_quarantined_fraction=1.0
)


def quarantine(directory: Path) -> list[tuple[str, dict[str, object]]]:
    """Rule and source row of each quarantined row."""
    rows = pq.read_table(directory).to_pylist()
    return [(row["rule"], json.loads(row["row"])) for row in rows]


def test_rows_in_are_rows_kept_and_rows_quarantined(rows: DataFrame, prepared: Dataset) -> None:
    manifest = prepared.manifest
    assert manifest.rows_in == 700 == rows.count()
    assert manifest.rows_in == manifest.rows_kept + sum(manifest.quarantined.values())
    assert manifest.rows_kept == sum(prepared.num_rows(split) for split in manifest.splits)
    assert list(manifest.quarantined) == ["has_colour", "small", "target_missing"]
    assert all(manifest.quarantined.values())


def test_the_quarantine_holds_the_source_row_and_the_first_rule_that_it_broke(
    rows: DataFrame, prepared: Dataset
) -> None:
    found = quarantine(prepared.path / "quarantine")
    counts = {name: sum(rule == name for rule, _ in found) for name in prepared.manifest.quarantined}
    assert counts == prepared.manifest.quarantined
    source = {r["id"]: r for r in rows.collect()}
    for rule, row in found:
        original = source[row["id"]]
        assert (row.get("colour"), row.get("size")) == (original["colour"], original["size"])
        if original["colour"] == "black":
            assert rule == "has_colour"  # comes first
        elif original["size"] is None or original["size"] == 5:
            assert rule == "small"
        else:
            assert (rule, original["bought"]) == ("target_missing", None)


def test_what_a_rule_can_not_compute_quarantines_the_row_in_either_mode(
    spark: SparkSession, preparing: Preparing, ansi: str
) -> None:
    df = spark.sql(
        "select id, id % 2 as bought, cast(id as double) as x, if(id = 3, 'three', string(id)) as word,"
        " if(id = 4, 2147483647, int(id)) as number from range(20)"
    )
    rules = [
        Rule("divides", "60 / (id - 2) > -1000"),
        Rule("is_number", "cast(word as int) >= 0"),
        Rule("compares", "word < 1000"),
        Rule("adds", "number + 1 > 0"),
        Rule("known", "if(id = 5, null, true)"),
        Rule("not_six", "id <> 6"),
    ]
    dataset = preparing(df, [Numeric("x")], config=LENIENT, rules=rules)
    # the int overflows where it is added, so it wraps to a negative number without ANSI's error
    assert dataset.manifest.quarantined == {"divides": 1, "is_number": 1, "adds": 1, "known": 1, "not_six": 1}
    broken = {row["id"]: rule for rule, row in quarantine(dataset.path / "quarantine")}
    assert broken == {2: "divides", 3: "is_number", 4: "adds", 5: "known", 6: "not_six"}


@pytest.mark.parametrize("ansi", ["false"], indirect=True)
def test_both_modes_give_the_same_dataset(
    rows: DataFrame, prepared: Dataset, preparing: Preparing, ansi: str
) -> None:
    dataset = preparing(rows)  # `prepared` was made in ANSI mode
    assert dataset.fingerprint == prepared.fingerprint
    assert dataset.manifest.quarantined == prepared.manifest.quarantined


@pytest.mark.parametrize(
    ("expression", "broken"),
    [
        ("if(id = 3, null, id % 2)", {3: "target_missing"}),
        ("if(id = 3, 2, id % 2)", {3: "target_not_binary"}),
        (
            "if(id = 3, double('NaN'), if(id = 4, 0.5D, id % 2))",
            {3: "target_missing", 4: "target_not_binary"},
        ),
        ("if(id = 3, null, id % 2 = 0)", {3: "target_missing"}),
        ("cast(if(id = 3, 0.1, id % 2) as decimal(3, 1))", {3: "target_not_binary"}),
    ],
)
def test_a_row_without_a_target_of_zero_or_one_is_quarantined(
    spark: SparkSession, expression: str, broken: dict[int, str]
) -> None:
    df = spark.range(20).selectExpr("id", f"{expression} as bought")
    marked = mark_broken_rules(df, [], Demands([TARGET])).where(f"{RULE_COLUMN} is not null").collect()
    assert {row["id"]: row[RULE_COLUMN] for row in marked} == broken


def test_bad_rules_are_named_all_at_once_without_spark_s_stack(
    rows: DataFrame, preparing: Preparing, capfd: pytest.CaptureFixture[str], ansi: str
) -> None:
    rules = [
        Rule("fine", "size > 0"),
        Rule("unknown_column", "sise > 0"),
        Rule("no_sql", "size >< 0"),
        Rule("no_condition", "size + 1"),
        Rule("aggregate", "count(*) > 1"),
        Rule("unknown_function", "larger(size, 0)"),
    ]
    with pytest.raises(RulesInvalid) as caught:
        preparing(rows, rules=rules)
    text = str(caught.value)
    assert "`fine`" not in text
    for rule in rules[1:]:
        assert text.count(f"`{rule.name}` ({rule.keep}): ") == 1
    assert "gives int, a rule must be true or false" in text
    assert "PARSE_SYNTAX_ERROR" in text
    assert "Columns there are: id, amount, size, colour, bought" in text
    assert "at org.apache" not in text
    assert len(text.splitlines()) == 2 + len(rules[1:])
    assert caught.value.exit_code == EXIT_DATA
    assert capfd.readouterr() == ("", "")
    assert logging.root.manager.disable == logging.NOTSET, "our own logs go on"


def test_no_row_left_names_the_rules_and_where_to_look(
    rows: DataFrame, preparing: Preparing, tmp_path: Path
) -> None:
    with pytest.raises(NoRowsLeft, match=r"700 rows came in.*`has_colour`: 70, `never`: 630") as caught:
        preparing(rows, rules=[RULES[0], Rule("never", "id < 0")])
    (rejected,) = (tmp_path / "datasets" / "shop").iterdir()
    assert str(rejected) in str(caught.value)
    assert len(quarantine(rejected)) == 700
    assert caught.value.exit_code == EXIT_DATA


def test_an_empty_source_is_no_row_left(rows: DataFrame, preparing: Preparing, tmp_path: Path) -> None:
    with pytest.raises(NoRowsLeft, match=r"0 rows came in.*no rule fired.*the source, which is empty"):
        preparing(rows.where("false"))
    assert list((tmp_path / "datasets" / "shop").iterdir()) == []


def test_more_quarantined_rows_than_allowed_are_an_error_with_the_rows_to_look_at(
    rows: DataFrame, preparing: Preparing, tmp_path: Path
) -> None:
    strict = LENIENT.model_copy(update={"max_quarantined_fraction": 0.0999})
    with pytest.raises(
        TooManyQuarantined, match=r"70 of 700 rows \(10\.00%\).*`has_colour`: 70.*9\.99%"
    ) as caught:
        preparing(rows.fillna({"bought": 0}), config=strict, rules=RULES[:1])
    (rejected,) = (tmp_path / "datasets" / "shop").iterdir()
    assert str(rejected) in str(caught.value)
    assert {rule for rule, _ in quarantine(rejected)} == {"has_colour"}


def test_exactly_the_allowed_fraction_may_be_quarantined(spark: SparkSession, preparing: Preparing) -> None:
    df = spark.range(20).selectExpr("id", "cast(id as double) as x", "if(id < 2, null, id % 2) as bought")
    config = LENIENT.model_copy(update={"max_quarantined_fraction": 0.1})
    dataset = preparing(df, [Numeric("x")], config=config, rules=())
    assert (dataset.manifest.rows_kept, dataset.manifest.quarantined) == (18, {"target_missing": 2})
    assert set(dataset.to_arrow("train")["bought"].to_pylist()) == {0.0, 1.0}
    with pytest.raises(TooManyQuarantined):
        preparing(df.limit(19), [Numeric("x")], config=config, rules=())
