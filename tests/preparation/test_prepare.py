"""Preparing: a whole dataset in the promised layout, or none; and every refusal in words."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from sparktrain.config import PrepareConfig, SplitConfig
from sparktrain.dataset import Dataset, open_dataset
from sparktrain.errors import (
    EXIT_CONFIG,
    EXIT_DATA,
    DatasetInvalid,
    FeaturesInvalid,
    SchemaMismatch,
    SplitEmpty,
    StorageUnwritable,
)
from sparktrain.features import Categorical, Feature, Numeric, Target
from sparktrain.preparation import Rule
from sparktrain.preparation import build as module
from sparktrain.preparation.split import row_id
from sparktrain.preparation.spooling import QUARANTINE
from tests.fixtures.arrow import needs_page_checksums
from tests.preparation.conftest import CONFIG, FEATURES, KEY, Preparing

pytestmark = pytest.mark.spark


def parts(dataset: Dataset) -> list[tuple[Path, Any]]:
    return [(dataset.path / p.path, p) for split in dataset.manifest.splits.values() for p in split.parts]


def test_a_dataset_lies_under_its_name_and_fingerprint(prepared: Dataset) -> None:
    assert prepared.path.name == prepared.fingerprint
    assert prepared.path.parent.name == "shop" == prepared.manifest.name
    assert open_dataset(prepared.path.parent) == prepared
    assert sorted(p.name for p in prepared.path.iterdir()) == [
        "card.html", "card.json", "examples.parquet", "features.json", "manifest.json", "quarantine",
        "statistics.json", "test", "train", "validation",
    ]  # fmt: skip
    on_disk = {p for split in prepared.manifest.splits for p in (prepared.path / split).iterdir()}
    assert on_disk == {path for path, _ in parts(prepared)}
    assert prepared.manifest.prepare == CONFIG.model_dump(mode="json")
    prepared.verify()


def test_row_groups_are_full_but_the_last_of_each_part(prepared: Dataset) -> None:
    for path, part in parts(prepared):
        *full, last = part.row_groups
        assert full == [CONFIG.rows_per_row_group] * len(full)
        assert 0 < last <= CONFIG.rows_per_row_group
        metadata = pq.ParquetFile(path).metadata
        assert (
            tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)) == part.row_groups
        )
        assert path.stat().st_size == part.size_bytes
    assert len(prepared.manifest.splits["train"].parts) == CONFIG.num_parts
    assert any(len(part.row_groups) > 2 for _, part in parts(prepared))


def test_every_column_is_required_and_of_its_declared_type(prepared: Dataset) -> None:
    expected = [
        ("row_id", "int64"), ("amount", "float32"), ("size", "float32"), ("colour", "int32"),
        ("size_category", "int32"), ("bought", "float32"),
    ]  # fmt: skip
    assert [(column.name, column.dtype) for column in prepared.manifest.columns] == expected
    for path, _ in parts(prepared):
        schema = pq.ParquetFile(path).schema
        assert [(f.name, str(f.type)) for f in schema.to_arrow_schema()] == [
            (name, dtype.replace("float32", "float")) for name, dtype in expected
        ]
        assert {schema.column(i).max_definition_level for i in range(len(schema))} == {0}


@needs_page_checksums
def test_a_flipped_bit_in_a_page_is_found_by_its_checksum(
    rows: DataFrame, prepared: Dataset, preparing: Preparing
) -> None:
    # Uncompressed, so that nothing but the checksum can notice.
    dataset = preparing(rows, config=CONFIG.model_copy(update={"compression": "none"}))
    assert dataset.fingerprint != prepared.fingerprint, "else another codec would be passed over"
    part = dataset.manifest.splits["train"].parts[0]
    path = dataset.path / part.path
    column = pq.ParquetFile(path).metadata.row_group(1).column(1)
    end = column.data_page_offset + column.total_compressed_size
    content = bytearray(path.read_bytes())
    content[end - 1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DatasetInvalid, match=rf"{part.path}, row group 1 can't be read .*CRC"):
        dataset.to_arrow("train")


def test_another_codec_can_be_read_back(spark: SparkSession, preparing: Preparing) -> None:
    config = PrepareConfig(split=SplitConfig(validation=0.0, test=0.0), compression="zstd", num_parts=1)
    df = spark.range(50).selectExpr("id", "cast(id as double) as x", "id % 2 as bought")
    dataset = preparing(df, [Numeric("x")], config=config, rules=())
    ((path, _),) = parts(dataset)
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).compression == "ZSTD"
    assert dataset.num_rows("train") == dataset.to_arrow("train").num_rows == 50


def test_rows_are_shuffled_and_each_is_there_once(rows: DataFrame, prepared: Dataset) -> None:
    kept = rows.where("bought is not null and colour <> 'black' and size <> 5")
    numbers = {r[0]: r[1] for r in kept.select(row_id(KEY), "id").collect()}
    found = [
        number
        for split in ("train", "validation", "test")
        for number in prepared.to_arrow(split)["row_id"].to_pylist()
    ]
    assert sorted(found) == sorted(numbers)
    train = [numbers[number] for number in prepared.to_arrow("train")["row_id"].to_pylist()]
    steps = sum(later > earlier for earlier, later in pairwise(train))
    assert abs(steps / len(train) - 0.5) < 0.1


def test_a_prepared_dataset_streams(prepared: Dataset) -> None:
    stream = prepared.stream("train", 64, num_lanes=4, tail="mask")
    batches = list(stream)
    assert len(batches) == prepared.steps_per_epoch("train", 64, tail="mask")
    real = [
        int(number)
        for b in batches
        for number, weight in zip(b["row_id"], b["row_weight"], strict=True)
        if weight
    ]
    assert sorted(real) == sorted(prepared.to_arrow("train")["row_id"].to_pylist())
    assert {str(batches[0][name].dtype) for name in ("amount", "bought")} == {"torch.float32"}
    assert str(batches[0]["colour"].dtype) == "torch.int32"


def test_examples_are_raw_rows_that_the_features_can_read(rows: DataFrame, prepared: Dataset) -> None:
    examples = prepared.examples()
    assert examples.num_rows == module.NUM_EXAMPLES
    assert set(prepared.features.transform(examples)) == {f.name for f in FEATURES}


def test_examples_hold_numbers_as_they_came(spark: SparkSession, preparing: Preparing) -> None:
    df = spark.range(40).selectExpr(
        "id", "cast(if(id % 2 = 0, 'NaN', '-Infinity') as double) as x", "id % 2 as bought"
    )
    dataset = preparing(
        df, [Numeric("x")], config=PrepareConfig(split=SplitConfig(validation=0, test=0)), rules=()
    )
    examples = dataset.examples()["x"].to_pylist()
    assert len(examples) == module.NUM_EXAMPLES and {str(value) for value in examples} <= {"nan", "-inf"}


def test_without_a_key_the_whole_row_is_one(spark: SparkSession, preparing: Preparing) -> None:
    df = spark.sql(
        "select t.x, u.bought from values (1.0D), (2.0D), (null) as t(x), values (0), (1), (1) as u(bought)"
    )
    config = PrepareConfig(split=SplitConfig(validation=0.0, test=0.0), num_parts=1)
    table = preparing(df, [Numeric("x")], config=config, rules=(), key=()).to_arrow("train")
    assert table.num_rows == 9
    assert len(set(table["row_id"].to_pylist())) == 6


@pytest.fixture
def own(prepared: Dataset, tmp_path: Path) -> Dataset:
    """A copy of the prepared dataset where `preparing` writes."""
    home = tmp_path / "datasets" / "shop"
    shutil.copytree(prepared.path.parent, home)
    return open_dataset(home)


def test_the_same_content_again_is_the_same_directory(
    rows: DataFrame, own: Dataset, preparing: Preparing
) -> None:
    written = {path: path.stat().st_mtime_ns for path in own.path.rglob("*") if path.is_file()}
    assert preparing(rows) == own
    assert {path: path.stat().st_mtime_ns for path in own.path.rglob("*") if path.is_file()} == written
    assert sorted(p.name for p in own.path.parent.iterdir()) == sorted([own.fingerprint, "latest.json"])


def test_a_damaged_dataset_is_replaced_as_its_error_promises(
    rows: DataFrame, own: Dataset, preparing: Preparing
) -> None:
    parts(own)[0][0].unlink()
    with pytest.raises(DatasetInvalid, match="Way out: prepare it again"):
        own.verify()
    again = preparing(rows)
    assert again.path == own.path
    again.verify()


def test_other_content_is_another_dataset_and_the_newest_is_found(
    rows: DataFrame, own: Dataset, preparing: Preparing
) -> None:
    other = preparing(rows, config=CONFIG.model_copy(update={"seed": 1}))
    assert other.fingerprint != own.fingerprint
    assert open_dataset(own.path.parent) == other
    own.verify()


def fail(error: BaseException) -> Callable[..., Any]:
    def raising(*args: object, **options: object) -> Any:
        raise error

    return raising


@pytest.mark.parametrize(
    "place",
    [
        "survey",
        "fit_features",
        "write_parts",
        "_write_examples",
        "write_card",
        "write_description",
        "publish",
    ],
)
def test_a_failure_at_any_point_leaves_what_was_there_before(
    rows: DataFrame, own: Dataset, preparing: Preparing, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = own.path.parent
    error = KeyboardInterrupt() if place == "write_parts" else OSError("No space left on device")
    monkeypatch.setattr(module, place, fail(error))
    with pytest.raises(type(error)):
        preparing(rows, config=CONFIG.model_copy(update={"seed": 1}))
    assert sorted(p.name for p in home.iterdir()) == sorted([own.fingerprint, "latest.json"])
    assert open_dataset(home) == own


@pytest.mark.parametrize("place", ["survey", "write_parts"])
def test_a_failure_in_a_worker_leaves_nothing(
    rows: DataFrame, tmp_path: Path, preparing: Preparing, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    home = tmp_path / "datasets" / "shop"
    original = getattr(module, place)

    def onto_a_file(*args: Any, **options: Any) -> Any:
        (staging,) = home.iterdir()
        (staging / {"survey": "spool", "write_parts": "train"}[place]).write_text("in the way")
        return original(*args, **options)

    monkeypatch.setattr(module, place, onto_a_file)
    with pytest.raises(PySparkException, match="FileExistsError"):
        preparing(rows)
    assert list(home.iterdir()) == []


def test_files_of_failed_tries_are_not_part_of_the_dataset(
    rows: DataFrame, prepared: Dataset, tmp_path: Path, preparing: Preparing, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "datasets" / "shop"
    litter = {"survey": QUARANTINE, "write_parts": "validation"}

    def littering(original: Callable[..., Any], folder: str) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            (staging,) = home.iterdir()
            (staging / folder).mkdir()
            (staging / folder / "part-00000-dead0000.parquet").write_bytes(b"PAR1 of a try that was stopped")
            return original(*args, **options)

        return run

    for place, folder in litter.items():
        monkeypatch.setattr(module, place, littering(getattr(module, place), folder))
    dataset = preparing(rows)
    assert dataset.fingerprint == prepared.fingerprint
    assert not list(dataset.path.rglob("*dead0000*"))
    quarantined = rows.sparkSession.read.parquet(str(dataset.path / QUARANTINE))
    assert quarantined.count() == sum(dataset.manifest.quarantined.values()) > 0


def draw(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        x = np.random.default_rng().random(batch.num_rows)
        yield pa.RecordBatch.from_arrays([batch["id"], pa.array(x)], names=["id", "x"])


@pytest.mark.parametrize("limited", [False, True], ids=["rand", "limit"])
def test_a_source_that_is_another_at_every_look_gives_a_consistent_dataset(
    spark: SparkSession, preparing: Preparing, limited: bool
) -> None:
    # Spark's own rand() draws its seed once for a DataFrame; after a shuffle its rows still change.
    df = spark.range(0, 2000, 1, 4).mapInArrow(draw, "id long, x double").selectExpr("*", "x > 0.5 as bought")
    if limited:
        df = df.limit(1000)
    assert df.agg({"x": "sum"}).first() != df.agg({"x": "sum"}).first(), "two looks do see other rows"
    dataset = preparing(
        df, [Numeric("x"), Numeric("raw", column="x", normalize="none")], rules=[Rule("low", "x < 0.8")]
    )
    manifest = dataset.manifest
    quarantined = spark.read.parquet(str(dataset.path / QUARANTINE)).select(
        F.get_json_object("row", "$.x").cast("double").alias("x")
    )
    assert manifest.rows_in == (1000 if limited else 2000)
    assert manifest.quarantined == {"low": quarantined.where("x >= 0.8").count()}
    assert manifest.rows_in == manifest.rows_kept + quarantined.count()
    tables = {split: dataset.to_arrow(split).to_pandas() for split in manifest.splits}
    assert sum(len(table) for table in tables.values()) == manifest.rows_kept
    for table in tables.values():
        assert (table["bought"] == (table["raw"] > 0.5)).all() and (table["raw"] < 0.8).all()
    (x, _) = dataset.features.features
    raw = tables["train"]["raw"].astype("float64")
    assert (x.offset, x.scale) == pytest.approx((raw.mean(), raw.std(ddof=0)), rel=1e-5)
    dataset.verify()


def test_a_dataset_holds_what_its_features_make_of_the_raw_rows(rows: DataFrame, prepared: Dataset) -> None:
    raw = {r["row_id"]: r.asDict() for r in rows.select("*", row_id(KEY).alias("row_id")).collect()}
    assert len(raw) == rows.count()
    schema = pa.schema([("amount", pa.float64()), ("size", pa.int32()), ("colour", pa.string())])
    for split in ("train", "validation", "test"):
        table = prepared.to_arrow(split)
        source = [raw[number] for number in table["row_id"].to_pylist()]
        expected = prepared.features.transform(pa.Table.from_pylist(source, schema))
        assert {name: table[name].to_numpy().tobytes() for name in expected} == {
            name: values.tobytes() for name, values in expected.items()
        }
        assert table["bought"].to_pylist() == [r["bought"] for r in source]


@pytest.mark.parametrize("root", ["file", "file/below", "/proc/sparktrain"])
def test_a_root_that_can_not_be_written_is_refused_first(
    rows: DataFrame, tmp_path: Path, preparing: Preparing, root: str
) -> None:
    (tmp_path / "file").write_text("no directory")
    with pytest.raises(StorageUnwritable, match=r"storage\.root") as caught:
        preparing(rows, root=tmp_path / root)
    assert str(tmp_path / root) in str(caught.value)
    assert caught.value.exit_code == EXIT_CONFIG


def test_missing_and_retyped_columns_are_listed_all_at_once(
    spark: SparkSession, preparing: Preparing
) -> None:
    df = spark.sql(
        "select 1L as id, 'far' as amount, 1.5D as colour, 'yes' as bought, true as flag, array(1) as list"
    )
    features: list[Feature] = [
        Numeric("amount"), Numeric("flag"), Categorical("colour"), Categorical("list"), Numeric("sise"),
        Categorical("model"),
    ]  # fmt: skip
    with pytest.raises(SchemaMismatch) as caught:
        preparing(df, features, key=["id", "day"], rules=())
    text = str(caught.value)
    for line in [
        "missing column `sise`",
        "missing column `model`",
        "missing column `day`",
        "column `amount` is string, expected a number",
        "column `flag` is boolean, expected a number",
        "column `colour` is double, expected text, an integer or a boolean",
        "column `list` is array<int>, expected text, an integer or a boolean",
        "column `bought` is string, expected a number or a boolean",
        "the source has id, amount, colour, bought, flag, list",
    ]:
        assert line in text
    assert len(text.splitlines()) == 10
    assert caught.value.exit_code == EXIT_DATA


@pytest.mark.parametrize(
    ("features", "problem"),
    [
        ([], "there is none"),
        ([Numeric("amount"), Categorical("amount")], "declared twice: `amount`"),
        ([Numeric("amount"), Numeric("Amount", column="size")], "declared twice: `amount`, `Amount`"),
        ([Numeric("bought")], "declared twice: `bought`"),
        ([Numeric("again", column="bought")], "`again` is made of the target `bought`"),
        ([Numeric("row_id", column="size")], "names that sparktrain uses itself: `row_id`"),
        ([Numeric("_split", column="size")], "names that sparktrain uses itself: `_split`"),
        ([Numeric("row_weight", column="size")], "names that sparktrain uses itself: `row_weight`"),
    ],
)
def test_features_that_clash_are_refused(
    rows: DataFrame, tmp_path: Path, preparing: Preparing, features: list[Feature], problem: str
) -> None:
    with pytest.raises(FeaturesInvalid) as caught:
        preparing(rows, features)
    assert problem in str(caught.value)
    assert "Declare each column once" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        (["*", "1 as COLOUR"], "the source has these columns twice: `colour`, `COLOUR`"),
        (["*", "1 as row_id"], "names that preparation adds itself: `row_id`"),
        (["*", "1 as _split"], "names that preparation adds itself: `_split`"),
    ],
)
def test_a_source_whose_names_clash_is_refused(
    rows: DataFrame, preparing: Preparing, columns: list[str], problem: str
) -> None:
    with pytest.raises(FeaturesInvalid, match=problem):
        preparing(rows.selectExpr(*columns))


def test_every_name_that_spark_can_quote_is_a_name(spark: SparkSession, preparing: Preparing) -> None:
    df = spark.range(40).selectExpr(
        "id", "cast(id as double) as `a.b c`", "string(id % 3) as `ä-1`", "id % 2 as `t.0`"
    )
    config = PrepareConfig(split=SplitConfig(validation=0.0, test=0.0), num_parts=1)
    features: list[Feature] = [Numeric("a.b c"), Categorical("ä-1")]
    dataset = preparing(df, features, Target("t.0"), config=config, rules=())
    assert dataset.to_arrow("train").column_names == ["row_id", "a.b c", "ä-1", "t.0"]


def test_so_few_rows_that_a_split_is_empty_are_an_error(
    spark: SparkSession, tmp_path: Path, preparing: Preparing
) -> None:
    df = spark.range(3).selectExpr("id", "cast(id as double) as x", "id % 2 as bought")
    with pytest.raises(
        SplitEmpty, match=r"3 rows are too few: no row fell into the split .*prepare\.split"
    ) as caught:
        preparing(df, [Numeric("x")], rules=())
    assert caught.value.exit_code == EXIT_DATA
    assert list((tmp_path / "datasets" / "shop").iterdir()) == []
