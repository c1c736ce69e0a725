"""append: a new version of a dataset that shares the old parts, with the statistics of the old rows."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from sparktrain.config import PrepareConfig, SplitConfig
from sparktrain.dataset import Dataset, open_dataset
from sparktrain.dataset.card import Card
from sparktrain.dataset.statistics import Statistics
from sparktrain.errors import DatasetInvalid, NoRowsLeft, SchemaMismatch
from sparktrain.features import Tokens
from sparktrain.preparation import append, growth, prepare
from tests.preparation.conftest import RULES, Preparing, make_rows

pytestmark = pytest.mark.spark


@pytest.fixture(scope="module")
def old(prepared: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    home = tmp_path_factory.mktemp("growth") / "shop"
    shutil.copytree(prepared.path.parent, home)
    return open_dataset(home)


@pytest.fixture
def own(prepared: Dataset, tmp_path: Path) -> Dataset:
    """A copy of the old one for a single test."""
    return open_dataset(shutil.copytree(prepared.path.parent, tmp_path / "shop"))


@pytest.fixture(scope="module")
def more(spark: SparkSession) -> DataFrame:
    """Rows 600 to 899: a hundred of them are in the dataset already."""
    return make_rows(spark, 300, 600)


@pytest.fixture(scope="module")
def grown(old: Dataset, more: DataFrame) -> Dataset:
    before = {path: path.read_bytes() for path in old.path.rglob("*") if path.is_file()}
    dataset = append(old, more, rules=RULES)
    assert {path: path.read_bytes() for path in old.path.rglob("*") if path.is_file()} == before
    return dataset


def ids(dataset: Dataset) -> dict[int, str]:
    return {
        number: split
        for split in dataset.manifest.splits
        for number in dataset.to_arrow(split, ["row_id"])["row_id"].to_pylist()
    }


def test_rows_are_added_to_their_splits_and_the_old_ones_keep_theirs(old: Dataset, grown: Dataset) -> None:
    before, after = ids(old), ids(grown)
    assert before.items() <= after.items()
    assert len(after) > len(before) + 100
    assert grown.manifest.rows_kept == len(after) == sum(s.rows for s in grown.manifest.splits.values())


def test_counts_add_up_and_rows_that_were_there_are_told(old: Dataset, grown: Dataset) -> None:
    manifest = grown.manifest
    assert manifest.rows_in == old.manifest.rows_in + 300
    assert manifest.rows_in == manifest.rows_kept + sum(manifest.quarantined.values())
    # the hundred rows that came again, without those that break a rule anyway
    kept_before = make_rows_kept(600, 700)
    assert manifest.quarantined["already_there"] == kept_before


def make_rows_kept(first: int, stop: int) -> int:
    return sum(n % 13 != 0 and n % 10 != 0 and (n % 17 != 0 and n % 11 != 5) for n in range(first, stop))


def test_the_old_parts_are_shared_and_the_old_version_stays(old: Dataset, grown: Dataset) -> None:
    old.verify()
    grown.verify()
    assert grown.manifest.appended_to == old.fingerprint != grown.fingerprint
    assert open_dataset(old.path.parent) == grown
    for split, content in old.manifest.splits.items():
        assert grown.manifest.splits[split].parts[: len(content.parts)] == content.parts
        for part in content.parts:
            assert (grown.path / part.path).samefile(old.path / part.path)
    assert grown.features == old.features
    quarantined = sum(1 for _ in (grown.path / "quarantine").glob("*.parquet"))
    assert quarantined > sum(1 for _ in (old.path / "quarantine").glob("*.parquet"))


def test_the_same_rows_again_add_nothing(grown: Dataset, more: DataFrame) -> None:
    home = sorted(path.name for path in grown.path.parent.iterdir() if not path.name.startswith("rejected-"))
    with pytest.raises(NoRowsLeft, match="already_there"):
        append(grown, more, rules=RULES)
    assert home == sorted(p.name for p in grown.path.parent.iterdir() if not p.name.startswith("rejected-"))
    assert open_dataset(grown.path.parent) == grown


def test_without_a_key_rows_may_come_again(rows: DataFrame, more: DataFrame, preparing: Preparing) -> None:
    dataset = preparing(rows, key=())
    assert "already_there" not in append(dataset, more, rules=RULES).manifest.quarantined


def test_a_version_that_is_not_the_newest_does_not_grow(
    old: Dataset, grown: Dataset, more: DataFrame
) -> None:
    with pytest.raises(
        DatasetInvalid, match=f"not the newest version any more, which is {grown.fingerprint}"
    ):
        append(old, more, rules=RULES)


def test_another_append_meanwhile_is_not_lost(
    own: Dataset, spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parts = growth.write_parts

    def meanwhile(*arguments: Any) -> Any:
        monkeypatch.setattr(growth, "write_parts", write_parts)
        append(own, make_rows(spark, 50, 8000), rules=RULES)
        return write_parts(*arguments)

    monkeypatch.setattr(growth, "write_parts", meanwhile)
    with pytest.raises(DatasetInvalid, match="append to open_dataset"):
        append(own, make_rows(spark, 50, 9000), rules=RULES)
    newest = open_dataset(own.path.parent)
    assert newest.manifest.rows_in == own.manifest.rows_in + 50
    assert (
        append(newest, make_rows(spark, 50, 9000), rules=RULES).manifest.rows_in == own.manifest.rows_in + 100
    )


def test_a_key_of_another_type_is_refused(own: Dataset, more: DataFrame) -> None:
    with pytest.raises(SchemaMismatch, match="column `id` is string, expected bigint, as the key was"):
        append(own, more.withColumn("id", F.col("id").cast("string")), rules=RULES)


def test_packed_texts_do_not_grow(spark: SparkSession, tmp_path: Path) -> None:
    df = spark.range(60).selectExpr("id", "string(id) as text")
    feature = Tokens("text", tokenizer="bytes", block_size=8, pack=True)
    config = PrepareConfig(split=SplitConfig(validation=0.0, test=0.0))
    dataset = prepare(df, [feature], (), config, root=tmp_path, key="id")
    with pytest.raises(DatasetInvalid, match="packed texts"):
        append(dataset, df)


def test_little_drift_is_told_from_much(
    own: Dataset, more: DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    shifted = more.withColumn("amount", F.col("amount") + 500).withColumn("id", F.col("id") + 10_000)
    with caplog.at_level("WARNING", logger="sparktrain"):
        dataset = append(own, shifted, rules=RULES)
    card = Card.load(dataset.path)
    assert card is not None
    drift = {column.column: column for column in card.drift}
    assert drift["amount"].level == "large" and drift["amount"].psi > 1
    assert drift["size"].psi < 0.1
    assert "amount (PSI" in caplog.text and "size" not in caplog.text
    # the reference for the next rows is still what the features were fitted on
    assert Statistics.load(dataset.path).columns == Statistics.load(own.path).columns


def test_values_that_the_vocabulary_lacks_are_counted(own: Dataset, spark: SparkSession) -> None:
    strangers = make_rows(spark, 200, 5000).withColumn("colour", F.lit("mauve"))
    dataset = append(own, strangers, rules=RULES)
    unknown = {
        split: codes.unknown.get("colour", 0) for split, codes in Statistics.load(dataset.path).codes.items()
    }
    assert sum(unknown.values()) == dataset.manifest.rows_kept - own.manifest.rows_kept
    assert all(unknown.values())


def test_other_columns_are_refused_before_any_row_is_read(own: Dataset, more: DataFrame) -> None:
    wrong = more.drop("colour").withColumn("size", F.lit("large"))
    with pytest.raises(SchemaMismatch) as caught:
        append(own, wrong, rules=[])
    assert "missing column `colour`" in str(caught.value)
    assert "column `size` is string" in str(caught.value)


def test_a_damaged_dataset_does_not_grow(old: Dataset, more: DataFrame, tmp_path: Path) -> None:
    home = shutil.copytree(old.path, tmp_path / old.path.name)
    (home / old.manifest.splits["train"].parts[0].path).unlink()
    with pytest.raises(DatasetInvalid, match="is missing"):
        append(Dataset(home, old.manifest), more, rules=RULES)
    assert sorted(tmp_path.iterdir()) == [home]
