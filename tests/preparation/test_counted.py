"""Faults of rows and parts, end to end: kept as declared or quarantined, always counted, damage named."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from pyspark.sql import DataFrame, SparkSession

from pipelines.flight_delays.model import Task
from sparktrain.config import Config, PrepareConfig, SplitConfig
from sparktrain.dataset import Dataset, open_dataset
from sparktrain.dataset.card import CARD_FILE, CARD_PAGE
from sparktrain.dataset.card_html import percent
from sparktrain.dataset.statistics import Statistics
from sparktrain.errors import DatasetInvalid, TooManyQuarantined, ValuesRefused
from sparktrain.features import Categorical, Feature, Numeric, Target
from sparktrain.gang.supervise import check_training
from sparktrain.preparation import Rule, cast_columns, prepare, read_csv, read_json
from sparktrain.preparation.split import row_id
from sparktrain.preparation.spooling import QUARANTINE
from tests.preparation.conftest import KEY, Preparing

pytestmark = pytest.mark.spark

SPLITS = ("train", "validation", "test")
CONFIG = PrepareConfig(split=SplitConfig(method="column", column="part"), num_parts=2)
COUNTED: list[Feature] = [
    Numeric("x", null_flag=True),
    Numeric("clipped", column="x", normalize="none", fill=-5.0, nan=-7.0, infinity="clip"),
    Categorical("word", max_size=2),
]


@pytest.fixture(scope="module")
def holed(spark: SparkSession) -> DataFrame:
    """300 rows, 100 a split; of `x` one in 10 is null, one in 20 NaN, one in 20 infinite."""
    return spark.range(0, 300, 1, 3).selectExpr(
        "id",
        "element_at(array('train', 'validation', 'test'), cast(id div 100 as int) + 1) as part",
        "case when id % 10 = 0 then null when id % 20 = 3 then double('nan') when id % 40 = 7 then "
        "double('inf') when id % 40 = 27 then -double('inf') else cast(id % 100 as double) end as x",
        # `a` and `b` are the most frequent in training; `c` is no longer known, `z` never was
        "case when id % 25 = 1 then null when id < 100 then element_at(array('a', 'a', 'b', 'b', 'c'), "
        "cast(id % 5 as int) + 1) when id % 4 = 0 then 'z' else 'a' end as word",
        "id % 2 as bought",
    )


@pytest.fixture(scope="module")
def counted(holed: DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("counted")
    return prepare(holed, COUNTED, Target("bought"), CONFIG, root=root, key=KEY)


def test_nulls_nans_and_infinities_become_what_was_declared(counted: Dataset, holed: DataFrame) -> None:
    raw = {row["row_id"]: row for row in with_row_id(holed)}
    (x, _, _) = counted.features.features
    finite = [
        row["x"]
        for row in holed.where("part = 'train'").collect()
        if row["x"] is not None and abs(row["x"]) < 1e9
    ]
    for split in SPLITS:
        for row in counted.to_arrow(split).to_pylist():
            value = raw[row["row_id"]]["x"]
            missing = value is None or value != value or abs(value) == float("inf")
            assert row["x_is_null"] == float(missing)
            assert row["x"] == pytest.approx(0.0 if missing else (value - x.offset) / x.scale, abs=1e-6)
            expected = (
                -5.0
                if value is None
                else -7.0
                if value != value
                else min(max(value, min(finite)), max(finite))
            )
            assert row["clipped"] == expected
            word = raw[row["row_id"]]["word"]
            assert row["word"] == (0 if word is None else {"b": 2, "a": 3}.get(word, 1))


def with_row_id(df: DataFrame) -> list[dict[str, object]]:
    return [row.asDict() for row in df.select("*", row_id(KEY).alias("row_id")).collect()]


def test_they_are_counted_in_statistics_and_on_the_card(counted: Dataset, holed: DataFrame) -> None:
    statistics = Statistics.load(counted.path)
    (x,) = [column for column in statistics.columns if column.column == "x"]
    assert (x.rows, x.nulls, x.nans, x.infinities) == (100, 10, 5, 5)
    words = {part: Counter() for part in SPLITS}
    for row in holed.collect():
        words[row["part"]][row["word"]] += 1
    for split in SPLITS:
        codes = statistics.codes[split]
        unknown = sum(count for word, count in words[split].items() if word not in (None, "a", "b"))
        assert codes.rows == 100 and codes.unknown == {"word": unknown} and unknown > 10
        assert codes.nulls == {"x": 10, "clipped": 10, "word": words[split][None]}
    card = json.loads((counted.path / CARD_FILE).read_bytes())
    (shown,) = [column for column in card["columns"] if column["column"] == "x"]
    assert (shown["null_rate"], shown["nan_rate"], shown["infinity_rate"]) == (0.1, 0.05, 0.05)
    (of_word,) = [c for column in card["columns"] for c in column["features"] if c["name"] == "word"]
    assert of_word["unknown_rate"] == {s: statistics.codes[s].unknown["word"] / 100 for s in SPLITS}
    assert of_word["null_rate"] == {s: words[s][None] / 100 for s in SPLITS}
    page = (counted.path / CARD_PAGE).read_text()
    assert f"{percent(0.05)} NaN" in page and f"{percent(0.05)} infinite" in page


def test_what_a_feature_refuses_is_listed_with_its_numbers(
    holed: DataFrame, preparing: Preparing, tmp_path: Path
) -> None:
    df = holed.selectExpr("*", "x as again")
    features: list[Feature] = [
        Numeric("x", fill="fail", nan="fail", infinity="fail"),
        Numeric("again", nan=0.0, infinity="fail"),
    ]
    with pytest.raises(ValuesRefused) as caught:
        preparing(df, features, config=CONFIG, rules=())
    assert caught.value.columns == {"x": "30 nulls, 15 NaN, 15 infinities", "again": "15 infinities"}
    assert list((tmp_path / "datasets" / "shop").iterdir()) == []


# --- malformed rows, overflow, division by zero ------------------------------------------------------

FAULTY = ["60,1", "61,1,1,1", "x,1,1", "63,0,oops", "2147483647,1,1", "65,1,NA", '"66', f"67,7,{'9' * 20}"]
LINES = [*[f"{number},{number % 7},{number}" for number in range(60)], *FAULTY]
RULES = [Rule("adds", "id + 1 > 0"), Rule("divides", "70 / (b - 3) is not null")]
EXPECTED = {"malformed": 4, "uncastable_c": 2, "adds": 1, "divides": 9}


def read_lines(spark: SparkSession, folder: Path, kind: str) -> DataFrame:
    if kind == "csv":
        (folder / "rows.csv").write_text("id,b,c\n" + "\n".join(LINES) + "\n")
        df = read_csv(spark, folder / "rows.csv", "id int, b int, c string")
    else:
        sound = [line.split(",") for line in LINES if line.count(",") == 2 and not line.startswith("x")]
        broken = ['{"id": 60, "b"', '{"id": 61}{"id": 61}', '{"id": "x", "b": 1, "c": "1"}', "66"]
        rows = [json.dumps({"id": int(a), "b": int(b), "c": None if c == "NA" else c}) for a, b, c in sound]
        (folder / "rows.json").write_text("\n".join([*rows, *broken]) + "\n")
        df = read_json(spark, folder / "rows.json", "id int, b int, c string")
    return cast_columns(df, {"c": "int"}).selectExpr("*", "id % 2 as bought")


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_every_line_is_kept_or_quarantined_with_its_reason_in_both_modes(
    spark: SparkSession, tmp_path: Path, preparing: Preparing, kind: str
) -> None:
    before = spark.conf.get("spark.sql.ansi.enabled")
    features: list[Feature] = [Numeric("b"), Numeric("c")]
    config = PrepareConfig(
        split=SplitConfig(validation=0.0, test=0.0), num_parts=2, max_quarantined_fraction=0.25
    )
    found = []
    try:
        for ansi in ("true", "false"):
            spark.conf.set("spark.sql.ansi.enabled", ansi)
            df = read_lines(spark, tmp_path, kind)
            found.append(preparing(df, features, config=config, rules=RULES, root=tmp_path / ansi))
        with pytest.raises(TooManyQuarantined, match=r"prepare.max_quarantined_fraction allows 20.00%"):
            preparing(
                df, features, config=config.model_copy(update={"max_quarantined_fraction": 0.2}), rules=RULES
            )
    finally:
        spark.conf.set("spark.sql.ansi.enabled", before or "false")
    assert found[0].fingerprint == found[1].fingerprint
    for dataset in found:
        manifest = dataset.manifest
        assert manifest.quarantined == EXPECTED
        assert manifest.rows_in == len(LINES) == manifest.rows_kept + sum(EXPECTED.values())
        rejected = spark.read.parquet(str(dataset.path / QUARANTINE)).collect()
        assert Counter(row["rule"] for row in rejected) == EXPECTED
        sources = {row["rule"]: json.loads(row["row"]) for row in rejected}
        assert sources["adds"]["id"] == 2147483647
        uncastable = {
            json.loads(r["row"])["_uncastable"]["c"] for r in rejected if r["rule"] == "uncastable_c"
        }
        assert uncastable == {"oops", "9" * 20}
        malformed = [json.loads(r["row"])["_malformed_row"] for r in rejected if r["rule"] == "malformed"]
        assert len(set(malformed)) == 4 and all(malformed)


# --- damaged parts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["empty", "half", "last byte", "footer"])
def test_a_damaged_part_is_named_before_a_launch(counted: Dataset, damage: str) -> None:
    part = counted.manifest.splits["validation"].parts[1].path
    path = counted.path / part
    sound = path.read_bytes()
    length = {"empty": 0, "half": len(sound) // 2, "last byte": len(sound) - 1, "footer": len(sound)}[damage]
    content = sound[:length] if damage != "footer" else sound[:-8] + bytes(8)
    config = Config.model_validate(
        {"pipeline": "flight_delays", "train": {"global_batch_size": 16, "num_lanes": 4}}
    )
    try:
        path.write_bytes(content)
        for act in (open_dataset(counted.path).verify, lambda: check_training(counted, Task(), config)):
            with pytest.raises(DatasetInvalid, match=rf"{part} (has|can't be opened)"):
                act()
    finally:
        path.write_bytes(sound)
    open_dataset(counted.path).verify()
