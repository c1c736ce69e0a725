"""Fitting: the training rows' statistics, the same ones in any order."""

from __future__ import annotations

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from sklearn.preprocessing import StandardScaler

from sparktrain.config import PrepareConfig, SplitConfig
from sparktrain.dataset import Dataset
from sparktrain.errors import ValueTooLarge
from sparktrain.features import Categorical, FittedFeatures, Numeric
from sparktrain.preparation import Rule
from sparktrain.preparation.split import SPLIT_COLUMN, add_split
from tests.preparation.conftest import CONFIG, KEY, Preparing, make_rows

pytestmark = pytest.mark.spark

ALL_TRAIN = PrepareConfig(split=SplitConfig(validation=0.0, test=0.0), num_parts=2)


@pytest.fixture(scope="module")
def training_rows(rows: DataFrame) -> list[dict[str, object]]:
    """The rows that a fit may see, found by other means."""
    kept = add_split(rows.where("bought is not null and colour <> 'black' and size <> 5"), KEY, CONFIG.split)
    return [r.asDict() for r in kept.where(F.col(SPLIT_COLUMN) == "train").collect()]


def test_mean_and_deviation_are_those_of_the_finite_values_of_kept_training_rows(
    prepared: Dataset, training_rows: list[dict[str, object]]
) -> None:
    values = np.array([r["amount"] for r in training_rows], float)
    assert not np.isfinite(values).all()
    values = values[np.isfinite(values)]
    amount = prepared.features.numeric[0]
    scaler = StandardScaler().fit(values.reshape(-1, 1))
    assert amount.offset == pytest.approx(scaler.mean_[0], rel=1e-12)
    assert amount.scale == pytest.approx(scaler.scale_[0], rel=1e-12)
    assert (amount.offset, amount.scale) == pytest.approx((values.mean(), values.std()), rel=1e-12)
    assert amount.fill == amount.offset


def test_a_number_that_is_not_normalized_keeps_its_value(prepared: Dataset) -> None:
    size = prepared.features.numeric[1]
    assert (size.fill, size.offset, size.scale) == (-1.0, 0.0, 1.0)
    assert size.input_type == "long", "it serves as a category, too"


def test_a_vocabulary_is_ordered_by_falling_count_then_by_code_points(
    prepared: Dataset, training_rows: list[dict[str, object]]
) -> None:
    for feature in prepared.features.categorical:
        values = [str(r[feature.column]) for r in training_rows if r[feature.column] is not None]
        words = sorted(set(values), key=lambda word: (-values.count(word), word))
        assert feature.vocabulary == tuple(words[:3] if feature.name == "size_category" else words)
    assert "" in prepared.features.categorical[0].vocabulary


def test_rare_values_and_ties(spark: SparkSession, preparing: Preparing) -> None:
    words = ["b"] * 3 + ["a"] * 3 + ["B"] * 3 + ["é", "é", "😀", "😀", "\uffff", "\uffff"] + ["once"]
    df = spark.createDataFrame(
        [(n, word, n % 2) for n, word in enumerate(words)], "id int, w string, bought int"
    )
    two = Categorical("two", column="w", max_size=2)
    often = Categorical("often", column="w", min_count=2)
    features = preparing(df, [two, often], config=ALL_TRAIN, rules=()).features.categorical
    assert features[0].vocabulary == ("B", "a")
    assert features[1].vocabulary == ("B", "a", "b", "é", "\uffff", "😀")  # by code points, not by UTF-16


def test_columns_without_a_spread_or_without_a_value_are_fitted(
    spark: SparkSession, preparing: Preparing
) -> None:
    df = spark.range(20).selectExpr(
        "id",
        "0.1D as constant",
        "cast(null as double) as none",
        "cast(null as string) as silent",
        "id % 2 as bought",
    )
    features = [Numeric("constant"), Numeric("none"), Categorical("silent")]
    dataset = preparing(df, features, config=ALL_TRAIN, rules=())
    constant, none = dataset.features.numeric
    assert (constant.offset, constant.scale) == (0.1, 1.0)
    assert (none.fill, none.offset, none.scale) == (0.0, 0.0, 1.0)
    assert dataset.features.categorical[0].vocabulary == ()
    table = dataset.to_arrow("train")
    assert {name: set(table[name].to_pylist()) for name in ("constant", "none", "silent")} == {
        "constant": {0.0},
        "none": {0.0},
        "silent": {0},
    }


def test_numbers_of_every_type_are_fitted(spark: SparkSession, preparing: Preparing) -> None:
    df = spark.range(40).selectExpr(
        "id",
        "id + shiftleft(1L, 60) as large",
        "cast(id as tinyint) as tiny",
        "cast(id / 7 as decimal(20, 9)) as exact",
        "cast(id / 7 as float) as coarse",
        "id % 2 as bought",
    )
    names = ["large", "tiny", "exact", "coarse"]
    fitted = preparing(df, [Numeric(name) for name in names], config=ALL_TRAIN, rules=()).features
    collected = df.collect()
    for feature in fitted.numeric:
        values = np.array([float(r[feature.column]) for r in collected])
        assert feature.offset == pytest.approx(values.mean(), rel=1e-12)
        if feature.name != "large":  # there numpy loses the digits that we keep
            assert feature.scale == pytest.approx(values.std(), rel=1e-12)


@pytest.mark.parametrize(
    ("expression", "feature"),
    [
        ("if(id = 3, 1e200, id)", Numeric("x")),
        ("if(id = 3, -1e151, id)", Numeric("x")),
        ("if(id = 3, 1e39, id)", Numeric("x", normalize="none")),
        ("cast(null as double)", Numeric("x", normalize="none", fill=1e39)),
    ],
)
def test_a_value_that_would_be_written_as_an_infinity_is_refused(
    spark: SparkSession, preparing: Preparing, expression: str, feature: Numeric
) -> None:
    df = spark.range(20).selectExpr("id", f"cast({expression} as double) as x", "id % 2 as bought")
    with pytest.raises(
        ValueTooLarge, match=r"`x` holds ±1e\+.* within ±1e\+150.* Quarantine such rows by a rule"
    ):
        preparing(df, [feature], config=ALL_TRAIN, rules=())


def test_a_value_too_large_is_found_in_every_split_and_a_rule_helps(
    spark: SparkSession, preparing: Preparing
) -> None:
    in_test = add_split(spark.range(400), KEY, CONFIG.split).where(F.col(SPLIT_COLUMN) == "test").first()
    assert in_test is not None
    outlier = f"if(id = {in_test['id']}, 1e200, id)"
    df = spark.range(400).selectExpr("id", f"cast({outlier} as double) as x", "id % 2 as bought")
    with pytest.raises(ValueTooLarge, match="`x` holds"):
        preparing(df, [Numeric("x")], rules=())
    dataset = preparing(df, [Numeric("x")], rules=[Rule("sane", "abs(x) < 1e9")])
    assert dataset.manifest.quarantined == {"sane": 1}


def test_the_same_rows_in_another_order_and_partitioning_give_the_same_bytes(
    spark: SparkSession,
    rows: DataFrame,
    prepared: Dataset,
    preparing: Preparing,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    halves = make_rows(spark, 300, 400).unionByName(make_rows(spark, 400))
    for df in (halves.repartition(7, F.rand(1)), halves.orderBy(F.desc("id")).coalesce(1)):
        dataset = preparing(df, root=tmp_path_factory.mktemp("order"))
        assert dataset.fingerprint == prepared.fingerprint
        assert (dataset.path / "features.json").read_bytes() == (prepared.path / "features.json").read_bytes()
        assert (dataset.path / "examples.parquet").read_bytes() == (
            prepared.path / "examples.parquet"
        ).read_bytes()
        for split in ("train", "validation", "test"):
            assert dataset.to_arrow(split).equals(prepared.to_arrow(split))
        assert dataset.manifest.quarantined == prepared.manifest.quarantined
    assert FittedFeatures.from_json((prepared.path / "features.json").read_bytes()) == prepared.features


def test_rows_of_one_key_come_out_in_one_order(
    spark: SparkSession, preparing: Preparing, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # Equal keys, and numbers that sort as equals but have other bits.
    values = [(1, x, n % 2) for n in range(3) for x in (0.0, -0.0, 1.0, -1e-300, 2.0, float("nan"), None)]
    fingerprints = set()
    for order in (values, values[::-1]):
        df = spark.createDataFrame(order, "id int, x double, bought int")
        features = [Numeric("x", normalize="none", fill=0.0)]
        root = tmp_path_factory.mktemp("ties")
        fingerprints.add(preparing(df, features, config=ALL_TRAIN, rules=(), root=root).fingerprint)
    assert len(fingerprints) == 1
