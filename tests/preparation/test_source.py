"""Reading CSV, JSON and Parquet: no row is lost, and a file that does not fit is named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import DataFrame, Row, SparkSession

from sparktrain.config import PrepareConfig, SplitConfig
from sparktrain.errors import EXIT_DATA, ColumnsReordered, SchemaMismatch, SourceMissing, SourceUnreadable
from sparktrain.features import Categorical, Numeric
from sparktrain.preparation import Rule, read_csv, read_json, read_parquet
from sparktrain.preparation.clean import Demands, mark_broken_rules
from sparktrain.preparation.rules import RULE_COLUMN
from tests.preparation.conftest import Preparing

pytestmark = pytest.mark.spark

DDL = "id int, amount double, colour string, bought int"
HEADER = "id,amount,colour,bought\n"
LENIENT = PrepareConfig(
    split=SplitConfig(validation=0.0, test=0.0), num_parts=1, max_quarantined_fraction=1.0
)

SOUND = [
    "1,1.5,red,1",
    "2,NA,NA,0",
    "3,,,1",
    '4,4.0,"a ""quoted"" word, with a comma",0',
    "5,5e0,back\\slash,1",
    "6,NaN,日本,0",
]
MALFORMED = [
    "7,7.0,red",  # too few fields
    "8,8.0,red,1,more",  # too many
    "nine,9.0,red,1",  # wrong types
    "10,ten,red,1",
    "11,11.0,red,yes",
    "12,12.0,red,99999999999",  # no int
    "13,13.0,red,0.5",
    "justtext",
]


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    file = tmp_path / "shop.csv"
    file.write_text(HEADER + "\n".join([*SOUND, *MALFORMED]) + "\n", encoding="utf-8")
    return file


def test_sound_rows_are_read_as_they_were_written(spark: SparkSession, shop: Path, ansi: str) -> None:
    read = (
        read_csv(spark, shop, DDL)
        .where("_malformed_row is null")
        .drop("_malformed_row")
        .orderBy("id")
        .collect()
    )
    assert [row["id"] for row in read] == [1, 2, 3, 4, 5, 6]
    assert read[0] == Row(id=1, amount=1.5, colour="red", bought=1)
    assert read[1] == Row(id=2, amount=None, colour=None, bought=0)
    assert read[2] == Row(id=3, amount=None, colour=None, bought=1)
    assert read[3]["colour"] == 'a "quoted" word, with a comma'
    assert read[4]["colour"] == "back\\slash"
    assert str(read[5]["amount"]) == "nan"


@pytest.mark.parametrize("columns", [["_malformed_row"], ["_malformed_row", "colour"], ["*"]])
def test_a_malformed_row_is_one_whatever_a_query_selects(
    spark: SparkSession, shop: Path, columns: list[str]
) -> None:
    marked = read_csv(spark, shop, DDL).select(*columns).collect()
    assert [row["_malformed_row"] for row in marked if row["_malformed_row"] is not None] == MALFORMED


def test_malformed_rows_are_quarantined_with_their_text(
    spark: SparkSession, shop: Path, preparing: Preparing, ansi: str
) -> None:
    df = read_csv(spark, shop, DDL)
    features = [Numeric("amount"), Categorical("colour")]
    # The rule would quarantine the malformed rows too, but their fields mean nothing.
    dataset = preparing(df, features, config=LENIENT, rules=[Rule("low", "id < 6")])
    assert dataset.manifest.quarantined == {"malformed": len(MALFORMED), "low": 1}
    assert dataset.manifest.rows_in == len(SOUND) + len(MALFORMED)
    assert dataset.manifest.rows_kept == len(SOUND) - 1
    kept = pq.read_table(dataset.path / "quarantine").to_pylist()
    texts = [json.loads(row["row"])["_malformed_row"] for row in kept if row["rule"] == "malformed"]
    assert sorted(texts) == sorted(MALFORMED)


def test_another_text_may_stand_for_a_missing_value(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "shop.csv").write_text(HEADER + "1,-,NA,1\n")
    (row,) = read_csv(spark, tmp_path / "shop.csv", DDL, null_value="-").collect()
    assert (row["amount"], row["colour"], row["_malformed_row"]) == (None, "NA", None)


def test_a_directory_or_a_glob_of_files_is_one_source(spark: SparkSession, tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "first.csv").write_text("\ufeff" + HEADER + "1,1.0,red,1\n\n", encoding="utf-8")
    with gzip.open(folder / "second.csv.gz", "wt") as packed:
        packed.write(HEADER + "2,2.0,red,0\n")
    (folder / "_SUCCESS").write_text("")
    (folder / ".hidden.csv").write_text("no header")
    for path in (folder, str(folder), f"{folder}/*.csv*", f"{tmp_path}/sh*"):
        read = read_csv(spark, path, DDL).collect()
        assert sorted((row["id"], row["_malformed_row"]) for row in read) == [(1, None), (2, None)]


def test_a_header_without_a_column_is_refused_with_the_name_of_the_file(
    spark: SparkSession, tmp_path: Path
) -> None:
    (tmp_path / "a.csv").write_text(HEADER + "1,1.0,red,1\n")
    (tmp_path / "b.csv").write_text("id,amount,color,bought,extra\n1,1.0,red,1,2\n")
    with pytest.raises(SchemaMismatch) as caught:
        read_csv(spark, tmp_path, DDL)
    text = str(caught.value)
    assert str(tmp_path / "b.csv") in text
    assert "missing column `colour` (there is `color`)" in text
    assert "unexpected column `extra`" in text
    assert caught.value.exit_code == EXIT_DATA


@pytest.mark.parametrize(
    ("header", "word"),
    [
        (b"", "missing column `id`"),
        (b"1,1.0,red,1\n", "missing column `id`"),
        (HEADER.encode("utf-16"), "missing column `id`"),
        ("id,amount,colour,b\xf6ught\n".encode("latin-1"), "missing column `bought`"),
    ],
)
def test_a_file_without_the_header_is_refused(
    spark: SparkSession, tmp_path: Path, header: bytes, word: str
) -> None:
    (tmp_path / "shop.csv").write_bytes(header)
    with pytest.raises(SchemaMismatch, match=word):
        read_csv(spark, tmp_path / "shop.csv", DDL)


def test_columns_without_a_name_are_called_as_spark_does(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "shop.csv").write_text(',a,NA,""\n0,x,1,5\n1,y,2,6\n')
    read = read_csv(spark, tmp_path / "shop.csv", "_c0 int, a string, _c2 int, _c3 int")
    assert read.collect() == [Row(0, "x", 1, 5, None), Row(1, "y", 2, 6, None)]
    named = read_csv(spark, tmp_path / "shop.csv", "_c0 int, a string, NA int, _c3 int").collect()
    assert named[0]["NA"] == 1, "a schema may have that name"


def test_columns_in_another_order_are_refused_with_both_orders(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "shop.csv").write_text("id,colour,amount,bought\n")
    with pytest.raises(
        ColumnsReordered, match=r"order id, colour, amount, bought.*says id, amount, colour, bought"
    ):
        read_csv(spark, tmp_path / "shop.csv", DDL)


def test_no_such_file_is_said_before_spark_looks(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "_ignored.csv").write_text(HEADER)
    for name in ("nothing.csv", "*.csv.gz", "empty", "_ignored.csv"):
        with pytest.raises(
            SourceMissing, match=r"There is no file at .*Give a CSV file, a directory"
        ) as caught:
            read_csv(spark, tmp_path / name, DDL)
        assert str(tmp_path / name) in str(caught.value)


MULTILINE = [
    '1,1.5,"two\nlines",1',
    '2,2.5,"a ""quote""\n\nand three lines, with a comma",0',
    "3,NA,NA,1",
    '4,four,"no\nnumber",1',  # malformed
    '5,5.0,"too\nmany",1,more',  # malformed
    "6,6.0",  # malformed
    '7,7.0,"sound again",0',
]


@pytest.mark.parametrize("name", ["shop.csv", "shop.csv.gz"])
def test_rows_that_span_lines_within_quotes(
    spark: SparkSession, tmp_path: Path, name: str, ansi: str
) -> None:
    write_text(tmp_path / name, "\ufeff" + HEADER + "\n".join(MULTILINE) + "\n\n")
    read = read_csv(spark, tmp_path / name, DDL, multiline=True)
    sound = {row["id"]: row["colour"] for row in read.where("_malformed_row is null").collect()}
    assert sound == {
        1: "two\nlines",
        2: 'a "quote"\n\nand three lines, with a comma',
        3: None,
        7: "sound again",
    }
    for columns in (["_malformed_row"], ["_malformed_row", "colour"], ["*"]):
        texts = [row["_malformed_row"] for row in read.select(*columns).collect()]
        assert [text for text in texts if text is not None] == MULTILINE[3:6]
    assert marked_counts(read) == {None: 4, "malformed": 3}


def test_a_quote_that_is_never_closed_costs_the_rest_of_its_file_alone(
    spark: SparkSession, tmp_path: Path
) -> None:
    write_text(tmp_path / "a.csv", HEADER + '1,1.0,red,1\n2,2.0,"open,1\n3,3.0,red,1\n')
    write_text(tmp_path / "b.csv", HEADER + "4,4.0,red,1\n")
    assert marked_counts(read_csv(spark, tmp_path, DDL, multiline=True)) == {None: 2, "malformed": 1}


JSON_SOUND = [
    '{"id": 1, "amount": 1.5, "colour": "red", "bought": 1}',
    ' {"id": 2, "amount": null, "colour": "日本\\n", "bought": 0, "extra": {"deep": [1]}} ',
    '{"id": 3}',
    '{"bought": 1, "colour": "a } in { text", "amount": 4, "id": 4}',
    '{"id": 5, "amount": NaN}',
    "{}",
]
JSON_MALFORMED = [
    '{"id": "six"}',
    '{"id": 7, "amount": "much"}',
    '{"id": 8, "amount": 1.0',
    '{"id": 99999999999}',
    '{"id": 10.5}',
    '{"id": 11} {"id": 12}',
    '{"id": 13}{"id": 14}',
    '{"id": 15}, {"id": 16}',
    '{"id": 17} and more',
    '[{"id": 18}, {"id": 19}]',
    "[]",
    "null",
    '"text"',
    "20",
    "plain",
    '{"id": 21, "amount": {"deep": 1}}',
]


@pytest.mark.parametrize("name", ["shop.json", "shop.jsonl.gz"])
def test_json_lines_are_read_or_kept_as_malformed(
    spark: SparkSession, tmp_path: Path, name: str, ansi: str
) -> None:
    write_text(tmp_path / name, "\ufeff" + "\n".join([*JSON_SOUND, "", "  ", *JSON_MALFORMED]) + "\n")
    read = read_json(spark, tmp_path / name, DDL)
    assert read.columns == ["id", "amount", "colour", "bought", "_malformed_row"]
    sound = read.where("_malformed_row is null").drop("_malformed_row").collect()
    assert sound[0] == Row(id=1, amount=1.5, colour="red", bought=1)
    assert sound[1] == Row(id=2, amount=None, colour="日本\n", bought=0)
    assert sound[2] == Row(id=3, amount=None, colour=None, bought=None)
    assert sound[3] == Row(id=4, amount=4.0, colour="a } in { text", bought=1)
    assert str(sound[4]["amount"]) == "nan"
    assert sound[5] == Row(id=None, amount=None, colour=None, bought=None)
    for columns in (["_malformed_row"], ["_malformed_row", "colour"], ["*"]):
        texts = [row["_malformed_row"] for row in read.select(*columns).collect()]
        assert [text for text in texts if text is not None] == JSON_MALFORMED
    assert marked_counts(read) == {None: len(JSON_SOUND), "malformed": len(JSON_MALFORMED)}


def test_a_directory_of_json_is_one_source_and_none_is_told(spark: SparkSession, tmp_path: Path) -> None:
    write_text(tmp_path / "a.json", '{"id": 1}\r\n{"id": 2}\r\n')
    write_text(tmp_path / "b.json.gz", '{"id": 3}')
    assert sorted(row["id"] for row in read_json(spark, tmp_path, DDL).collect()) == [1, 2, 3]
    with pytest.raises(SourceMissing, match=r"no file at .*nothing\.json.*Give a JSON file"):
        read_json(spark, tmp_path / "nothing.json", DDL)


def write_text(file: Path, text: str) -> None:
    content = text.encode()
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)


def marked_counts(df: DataFrame) -> dict[str | None, int]:
    """Rows by the rule that they break; None: kept."""
    counted = mark_broken_rules(df, [], Demands()).groupBy(RULE_COLUMN).count().collect()
    return {row[RULE_COLUMN]: row["count"] for row in counted}


# --- Parquet ----------------------------------------------------------------------------------------------


def test_timestamps_of_nanoseconds_are_read_as_microseconds(spark: SparkSession, tmp_path: Path) -> None:
    moments = [1_700_000_000_123_456_789, None]
    columns = {
        "zoned": pa.array(moments, pa.timestamp("ns", tz="UTC")),
        "local time": pa.array(moments, pa.timestamp("ns")),
        "number": pa.array([1, 2]),
    }
    folder = tmp_path / "rows" / "year=2023"
    folder.mkdir(parents=True)
    pq.write_table(pa.table(columns), folder / "part.parquet")
    before = spark.conf.get("spark.sql.legacy.parquet.nanosAsLong")
    df = read_parquet(spark, tmp_path / "rows")
    assert spark.conf.get("spark.sql.legacy.parquet.nanosAsLong") == before
    assert dict(df.dtypes)["zoned"] == "timestamp" and dict(df.dtypes)["local time"] == "timestamp_ntz"
    first, second = df.selectExpr("unix_micros(zoned)", "CAST(`local time` AS STRING)", "year").collect()
    assert tuple(first) == (1_700_000_000_123_456, "2023-11-14 22:13:20.123456", 2023)
    assert tuple(second) == (None, None, 2023)


def test_what_is_no_parquet_is_told(spark: SparkSession, tmp_path: Path) -> None:
    with pytest.raises(SourceMissing, match="Parquet"):
        read_parquet(spark, tmp_path / "nowhere")
    (tmp_path / "x.parquet").write_text("a,b\n1,2\n")
    with pytest.raises(SourceUnreadable, match="it is no Parquet"):
        read_parquet(spark, tmp_path / "x.parquet")
