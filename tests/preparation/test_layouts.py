"""The parts of a dataset: both layouts, equal shares, few rows or none, and who can read them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from sparktrain.config import PrepareConfig, SplitConfig
from sparktrain.dataset import Dataset
from sparktrain.dataset.digest import digest_of
from sparktrain.errors import EXIT_DATA, FeaturesInvalid, NoRowsLeft
from sparktrain.features import Categorical, Feature, Numeric, Passthrough, Target, Tokens, Vector
from sparktrain.preparation import Rule, prepare
from sparktrain.preparation.spooling import QUARANTINE
from tests.preparation.conftest import CONFIG, FEATURES, KEY, RULES, TARGET, Preparing

pytestmark = pytest.mark.spark

SHAPED: list[Feature] = [*FEATURES, Vector("place", shape=(2, 2)), Passthrough("id")]
TARGETS = [TARGET, Target("size_again", column="id_again", kind="regression")]
TRAIN_ONLY = SplitConfig(validation=0.0, test=0.0)
SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def shaped_rows(rows: DataFrame) -> DataFrame:
    return rows.selectExpr(
        "*", "array(id, id + 0.5D, null, -id) as place", "id as id_again", "1D + id % 3 as weight"
    )


@pytest.fixture(scope="module")
def layouts(shaped_rows: DataFrame, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    """The same rows in both layouts, side by side in one directory."""
    root = tmp_path_factory.mktemp("layouts")
    return {
        layout: prepare(
            shaped_rows,
            SHAPED,
            TARGETS,
            CONFIG.model_copy(update={"layout": layout}),
            name="shop",
            root=root,
            rules=RULES,
            key=KEY,
            weight="weight",
        )
        for layout in ("columns", "blocks")
    }


def digests(dataset: Dataset) -> list[tuple[str, str]]:
    """Of each part: as the writer took it, and as its values say."""
    manifest = dataset.manifest
    parts = [part for name in SPLITS for part in manifest.splits[name].parts]
    files = [pq.ParquetFile(dataset.path / part.path) for part in parts]
    found = [digest_of(file, manifest.columns, manifest.layout) for file in files]
    return [(part.digest, digest) for part, digest in zip(parts, found, strict=True)]


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_a_digest_is_of_the_values_whatever_the_layout_and_the_codec(
    shaped_rows: DataFrame, layouts: dict[str, Dataset], tmp_path: Path, compression: str
) -> None:
    given = layouts["columns"]
    assert len({digest for digest, _ in digests(given)}) > 3
    assert all(one == other for one, other in digests(given)) and digests(layouts["blocks"]) == digests(given)
    config = CONFIG.model_copy(update={"compression": compression})
    features = [
        *SHAPED,
        Passthrough("colour_text", column="colour"),
        Tokens("letters", column="colour", tokenizer="bytes", block_size=4),
    ]
    other = prepare(shaped_rows, features, TARGETS, config, root=tmp_path, rules=RULES, key=KEY)
    assert "string" in {column.dtype for column in other.manifest.columns}
    assert all(one == other for one, other in digests(other))


def test_layouts_are_different_datasets_of_equal_rows(
    layouts: dict[str, Dataset], spark: SparkSession
) -> None:
    columns, blocks = layouts["columns"], layouts["blocks"]
    assert columns.fingerprint != blocks.fingerprint and columns.path.parent == blocks.path.parent
    assert columns.path != blocks.path
    assert columns.manifest.logical_schema == blocks.manifest.logical_schema
    assert columns.manifest.schema != blocks.manifest.schema
    assert (columns.path / "features.json").read_bytes() == (blocks.path / "features.json").read_bytes()
    for split in SPLITS:
        assert columns.num_rows(split) > 20
        assert columns.to_arrow(split).equals(blocks.to_arrow(split))
        seen = [dataset.to_spark(spark, split).orderBy("id").collect() for dataset in layouts.values()]
        assert seen[0] == seen[1] and len(seen[0]) == columns.num_rows(split)
    for dataset in layouts.values():
        dataset.verify()


def test_layouts_stream_to_equal_batches(layouts: dict[str, Dataset]) -> None:
    streams = [d.stream("train", 48, num_lanes=4, tail="mask", seed=3) for d in layouts.values()]
    for _ in range(2):
        epochs = [list(stream) for stream in streams]
        assert len(epochs[0]) == len(epochs[1]) == streams[0].steps_per_epoch > 5
        for one, other in zip(*epochs, strict=True):
            assert one.keys() == other.keys()
            assert {n: (v.dtype, v.shape) for n, v in one.items()} == {
                n: (v.dtype, v.shape) for n, v in other.items()
            }
            assert all(torch.equal(one[name], other[name]) for name in one)
    assert one["place"].shape == (48, 2, 2) and one["id"].dtype == torch.int64


def test_anyone_reads_columns(layouts: dict[str, Dataset], spark: SparkSession) -> None:
    dataset = layouts["columns"]
    folder = dataset.path / "train"
    logical = dataset.to_arrow("train").to_pandas()
    names = [name for name in logical if name != "place"]
    arrow = ds.dataset(folder).to_table()
    assert arrow.schema == dataset.manifest.schema
    pandas = pd.read_parquet(folder)
    sparks = spark.read.parquet(str(folder)).toPandas()
    for found in (arrow.to_pandas(), pandas, sparks):
        found = found.set_index("row_id").loc[logical["row_id"]].reset_index()
        pd.testing.assert_frame_equal(found[names], logical[names])
        places = np.stack([np.frombuffer(bytes(value), "<f4") for value in found["place"]])
        assert np.array_equal(places, np.stack(logical["place"]))


def shares(dataset: Dataset) -> dict[str, list[int]]:
    return {name: [part.rows for part in split.parts] for name, split in dataset.manifest.splits.items()}


def skewed(spark: SparkSession, count: int) -> DataFrame:
    """Nine rows of ten have the key 0, the others one of their own."""
    return spark.range(0, count, 1, 3).selectExpr(
        "if(id % 10 = 0, id, 0) as id", "cast(id as double) as x", "id % 2 as bought"
    )


@pytest.mark.parametrize("layout", ["columns", "blocks"])
def test_parts_have_equal_shares_whatever_the_keys_are(
    spark: SparkSession, preparing: Preparing, layout: str
) -> None:
    config = PrepareConfig(num_parts=7, rows_per_row_group=50, layout=layout)
    dataset = preparing(skewed(spark, 3001), [Numeric("x", normalize="none")], config=config, rules=())
    sizes = shares(dataset)
    assert max(sizes, key=lambda split: sum(sizes[split])) in SPLITS and sum(map(sum, sizes.values())) == 3001
    assert max(map(sum, sizes.values())) > 2700, "the rows of one key lie in one split"
    for rows in sizes.values():
        assert len(rows) == 7 and max(rows) - min(rows) <= 1
    values = [x for split in SPLITS for x in dataset.to_arrow(split)["x"].to_pylist()]
    assert sorted(values) == list(range(3001))


def test_more_parts_than_rows(spark: SparkSession, preparing: Preparing) -> None:
    df = spark.range(5).selectExpr("id", "cast(id as double) as x", "id % 2 as bought")
    config = PrepareConfig(split=TRAIN_ONLY, num_parts=9)
    dataset = preparing(df, [Numeric("x", normalize="none")], config=config, rules=())
    assert shares(dataset) == {"train": [1] * 5, "validation": [], "test": []}
    assert sorted(dataset.to_arrow("train")["x"].to_pylist()) == [0, 1, 2, 3, 4]
    (batch,) = dataset.stream("train", 5, num_lanes=1)
    assert sorted(batch["x"].tolist()) == [0, 1, 2, 3, 4]
    dataset.verify()


@pytest.mark.parametrize("layout", ["columns", "blocks"])
def test_one_row_in_a_source_of_empty_partitions(
    spark: SparkSession, preparing: Preparing, layout: str
) -> None:
    df = spark.range(0, 60, 1, 6).selectExpr(
        "id", "cast(id as double) as x", "string(id) as c", "1 as bought"
    )
    config = PrepareConfig(split=TRAIN_ONLY, layout=layout)
    dataset = preparing(df.where("id = 33"), [Numeric("x"), Categorical("c")], config=config, rules=())
    assert shares(dataset) == {"train": [1], "validation": [], "test": []}
    assert dataset.to_arrow("train").drop_columns(["row_id"]).to_pylist() == [
        {"x": 0.0, "c": 2, "bought": 1.0}
    ]
    assert dataset.examples().to_pylist() == [{"x": 33.0, "c": "33"}]
    (batch,) = dataset.stream("train", 4, num_lanes=1, tail="mask")
    assert batch["row_weight"].tolist() == [1, 0, 0, 0]


def test_a_split_that_nobody_asked_for_is_empty_everywhere(spark: SparkSession, preparing: Preparing) -> None:
    df = skewed(spark, 500).withColumn("id", F.col("x").cast("long"))
    config = PrepareConfig(split=SplitConfig(validation=0.2, test=0.0), num_parts=2)
    dataset = preparing(df, [Numeric("x")], config=config, rules=())
    assert dataset.num_rows("test") == 0 < dataset.num_rows("validation")
    table = dataset.to_arrow("test")
    assert table.num_rows == 0 and table.schema == dataset.manifest.logical_schema
    assert dataset.to_spark(spark, "test").collect() == []
    assert not (dataset.path / "test").exists()


def test_no_row_at_all_is_refused_in_words(spark: SparkSession, preparing: Preparing, tmp_path: Path) -> None:
    df = spark.range(0).selectExpr("id", "cast(id as double) as x", "id % 2 as bought")
    with pytest.raises(
        NoRowsLeft, match=r"0 rows came in, .*no rule fired.* the source, which is empty"
    ) as caught:
        preparing(df, [Numeric("x")], rules=())
    assert caught.value.exit_code == EXIT_DATA
    assert list((tmp_path / "datasets" / "shop").iterdir()) == []


def test_all_rows_quarantined_are_kept_to_look_at(
    spark: SparkSession, preparing: Preparing, tmp_path: Path
) -> None:
    df = spark.range(30).selectExpr("id", "cast(id as double) as x", "if(id < 10, null, 1) as bought")
    with pytest.raises(NoRowsLeft) as caught:
        preparing(df, [Numeric("x")], rules=[Rule("negative", "x < 0")], config=CONFIG)
    (rejected,) = (tmp_path / "datasets" / "shop").iterdir()
    said = f"30 rows came in, quarantined by rule: `negative`: 30. .*Look at the rows in {rejected}"
    assert caught.match(said) and rejected.name.startswith("rejected-")
    found = spark.read.parquet(str(rejected))
    assert found.count() == 30 and {row["rule"] for row in found.collect()} == {"negative"}


@pytest.mark.parametrize("where", ["feature", "target", "weight"])
def test_names_of_blocks_are_refused_before_any_job(
    rows: DataFrame, preparing: Preparing, tmp_path: Path, where: str
) -> None:
    df = rows.withColumnRenamed("amount", "block_float32") if where == "weight" else rows
    features: list[Feature] = [Numeric("Block_float32" if where == "feature" else "x", column="size")]
    target = Target("block_float32" if where == "target" else "y", column="bought")
    weight = "block_float32" if where == "weight" else None
    run: Callable[[str], Dataset] = lambda layout: preparing(  # noqa: E731
        df, features, target, CONFIG.model_copy(update={"layout": layout}), weight=weight
    )
    with pytest.raises(
        FeaturesInvalid, match=r"names that the layout `blocks` uses itself: `[Bb]lock_float32`"
    ):
        run("blocks")
    assert list(tmp_path.iterdir()) == []
    assert run("columns").manifest.layout == "columns"


def test_quarantine_is_the_same_in_both_layouts(layouts: dict[str, Dataset], spark: SparkSession) -> None:
    found = [
        sorted(map(tuple, spark.read.parquet(str(dataset.path / QUARANTINE)).collect()))
        for dataset in layouts.values()
    ]
    assert found[0] == found[1] and len(found[0]) == sum(layouts["columns"].manifest.quarantined.values())
