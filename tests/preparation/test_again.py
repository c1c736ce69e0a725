"""Earlier statistics applied to new rows: `prepare(df, fitted=dataset.features)`."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from sparktrain.config import PrepareConfig, SplitConfig
from sparktrain.dataset import Dataset
from sparktrain.dataset.statistics import Statistics
from sparktrain.errors import FeaturesInvalid, SchemaMismatch, ValuesRefused
from sparktrain.features import Categorical, Feature, Numeric, Target, Vector
from sparktrain.preparation import prepare
from sparktrain.preparation.spooling import QUARANTINE
from tests.preparation.conftest import Preparing

pytestmark = pytest.mark.spark

CONFIG = PrepareConfig(
    split=SplitConfig(validation=0.25, test=0.0), num_parts=2, max_quarantined_fraction=1.0
)
FEATURES: list[Feature] = [
    Numeric("x"),
    Numeric("strict", fill="fail", normalize="none"),
    Categorical("word"),
    Vector("place", shape=2),
]
TARGET = Target("kind", kind="multiclass")


def make_rows(spark: SparkSession, first: int, last: int, kinds: int, words: int) -> DataFrame:
    return spark.range(first, last, 1, 2).selectExpr(
        "id",
        "cast(id as double) as x",
        "cast(id as float) as strict",
        f"concat('word', id % {words}) as word",
        "array(id, 1) as place",
        f"concat('kind', id % {kinds}) as kind",
        "1 + id % 4 as w",
    )


@pytest.fixture(scope="module")
def first(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    df = make_rows(spark, 0, 200, kinds=3, words=5)
    root = tmp_path_factory.mktemp("first")
    return prepare(df, FEATURES, TARGET, CONFIG, root=root, key=["id"], weight="w")


@pytest.fixture
def again(first: Dataset, preparing: Preparing) -> Preparing:
    def run(df: DataFrame, *features: Feature, **options: object) -> Dataset:
        return preparing(df, features, (), CONFIG, rules=(), fitted=first.features, **options)

    return run


def test_new_rows_are_seen_as_the_old_ones_were(
    spark: SparkSession, first: Dataset, again: Preparing
) -> None:
    df = make_rows(spark, 1000, 1100, kinds=4, words=6)  # a fourth kind and a sixth word
    dataset = again(df)
    assert (dataset.path / "features.json").read_bytes() == (first.path / "features.json").read_bytes()
    assert dataset.fingerprint != first.fingerprint
    assert dataset.manifest.columns == first.manifest.columns
    assert dataset.manifest.quarantined == {"target_class_unknown": 25}
    rejected = spark.read.parquet(str(dataset.path / QUARANTINE)).collect()
    assert {row["rule"] for row in rejected} == {"target_class_unknown"}
    assert all('"kind":"kind3"' in row["row"] for row in rejected) and len(rejected) == 25

    raw = {row["x"]: row for row in df.collect()}
    (x, *_) = first.features.features
    for split in ("train", "validation"):
        rows = dataset.to_arrow(split).to_pylist()
        assert len(rows) == dataset.num_rows(split) > 10
        for row in rows:
            source = raw[row["strict"]]
            assert row["x"] == pytest.approx((source["x"] - x.offset) / x.scale, rel=1e-6)
            assert row["kind"] == int(source["kind"][-1])
            assert (row["word"] == 1) == (source["word"] == "word5")
            assert row["place"] == [source["id"], 1]
            assert row["w"] == pytest.approx(source["w"] / first.features.weight.scale, rel=1e-6)
    counted = Statistics.load(dataset.path)
    for split in ("train", "validation"):
        unknown = dataset.to_arrow(split)["word"].to_pylist().count(1)
        assert counted.codes[split].unknown == {"word": unknown} and unknown > 0
    dataset.verify()


def test_the_same_rows_again_are_the_same_dataset(
    spark: SparkSession, first: Dataset, again: Preparing
) -> None:
    assert again(make_rows(spark, 0, 200, kinds=3, words=5)).fingerprint == first.fingerprint


@pytest.mark.parametrize("given", ["features", "target", "weight"])
def test_fitted_and_declared_together_are_refused(
    spark: SparkSession, first: Dataset, preparing: Preparing, tmp_path: Path, given: str
) -> None:
    df = make_rows(spark, 0, 20, kinds=3, words=5)
    features = FEATURES if given == "features" else ()
    target = TARGET if given == "target" else ()
    weight = "w" if given == "weight" else None
    with pytest.raises(
        FeaturesInvalid, match="`fitted` says what features, target and weight are; leave these"
    ):
        preparing(df, features, target, CONFIG, rules=(), fitted=first.features, weight=weight)
    assert list(tmp_path.iterdir()) == []


def test_every_column_that_does_not_fit_is_listed_before_any_job(
    spark: SparkSession, again: Preparing, preparing: Preparing, first: Dataset, tmp_path: Path
) -> None:
    df = spark.sql(
        "select raise_error('a job ran') as x, 1.5D as word, array('a') as place, 7 as part, 'a' as kind,"
        " date'2020-01-01' as w"
    )
    config = CONFIG.model_copy(update={"split": SplitConfig(method="column", column="part")})
    with pytest.raises(SchemaMismatch) as caught:
        preparing(df, (), (), config, rules=(), fitted=first.features)
    told = str(caught.value)
    for line in [
        "missing column `strict`",
        "missing column `id`",
        "column `x` is void, expected double, as when the features were fitted",
        "column `word` is double, expected string, as when",
        "column `place` is array<string>, expected longs, as when",
        "column `w` is date, expected long, as when",
        "column `part` is int, expected text, one of train, validation, test",
        "the source has x, word, place, part, kind, w",
    ]:
        assert line in told
    assert list(tmp_path.iterdir()) == []


def test_a_narrower_type_and_extra_columns_are_no_fault(
    spark: SparkSession, first: Dataset, again: Preparing
) -> None:
    df = make_rows(spark, 0, 200, kinds=3, words=5).selectExpr("*", "'more' as extra")
    narrower = df.withColumn("x", df["x"].cast("int")).withColumn("w", df["w"].cast("tinyint"))
    dataset = again(narrower)
    for split in ("train", "validation"):  # in another order, which follows the raw values and their types
        found, known = (d.to_arrow(split).sort_by("row_id") for d in (dataset, first))
        assert found.equals(known) and len(found) > 10


def test_refused_values_come_as_words_and_leave_nothing(
    spark: SparkSession, again: Preparing, tmp_path: Path
) -> None:
    rows = make_rows(spark, 0, 100, kinds=3, words=5)
    df = rows.withColumn("strict", F.expr("if(id % 20 = 3, null, 1f)"))
    with pytest.raises(ValuesRefused, match=r"(?s)column `strict`: \d null.*fill=") as caught:
        again(df)
    assert set(caught.value.columns) == {"strict"}
    assert "Py4J" not in str(caught.value) and "Traceback" not in str(caught.value)
    assert list((tmp_path / "datasets" / "shop").iterdir()) == []


def test_rows_whose_array_has_another_size_are_quarantined_again(
    spark: SparkSession, again: Preparing
) -> None:
    rows = make_rows(spark, 0, 100, kinds=3, words=5)
    df = rows.withColumn("place", F.expr("if(id < 10, array(1), if(id < 20, null, array(1, 2)))"))
    dataset = again(df.withColumn("place", df["place"].cast("array<bigint>")))
    assert dataset.manifest.quarantined == {"place_wrong_size": 10}
    assert pa.types.is_fixed_size_list(dataset.to_arrow("train")["place"].type)
