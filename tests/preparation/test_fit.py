"""Fitting: the training rows' statistics, the same ones in any order."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from sklearn.preprocessing import StandardScaler

from sparktrain.config import PrepareConfig, SplitConfig
from sparktrain.dataset import Dataset
from sparktrain.errors import EXIT_DATA, ValuesRefused, ValueTooLarge
from sparktrain.features import (
    Boolean,
    Categorical,
    Feature,
    FittedCategorical,
    FittedFeatures,
    FittedNumeric,
    Numeric,
    Passthrough,
    Vector,
)
from sparktrain.preparation import Rule, spooling, survey
from sparktrain.preparation.counting import ValueCounter
from sparktrain.preparation.split import SPLIT_COLUMN, add_split
from sparktrain.preparation.spooling import Wanted
from tests.preparation.conftest import CONFIG, KEY, Preparing, make_rows

pytestmark = pytest.mark.spark

ALL_TRAIN = PrepareConfig(split=SplitConfig(validation=0.0, test=0.0), num_parts=2)
SHORT = ALL_TRAIN.model_copy(update={"rows_per_row_group": 32, "max_quarantined_fraction": 1.0})
BY_COLUMN = PrepareConfig(
    split=SplitConfig(method="column", column="part", validation=None, test=None, seed=None),
    num_parts=1,
    max_quarantined_fraction=1.0,
)


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
    amount = prepared.features.features[0]
    assert isinstance(amount, FittedNumeric)
    scaler = StandardScaler().fit(values.reshape(-1, 1))
    assert amount.offset == pytest.approx(scaler.mean_[0], rel=1e-12)
    assert amount.scale == pytest.approx(scaler.scale_[0], rel=1e-12)
    assert (amount.offset, amount.scale) == pytest.approx((values.mean(), values.std()), rel=1e-12)
    assert amount.fill == amount.offset


def test_a_number_that_is_not_normalized_keeps_its_value(prepared: Dataset) -> None:
    size = prepared.features.features[1]
    assert isinstance(size, FittedNumeric)
    assert (size.fill, size.offset, size.scale) == (-1.0, 0.0, 1.0)
    assert size.input_type == "long", "it serves as a category, too"


def test_a_vocabulary_is_ordered_by_falling_count_then_by_code_points(
    prepared: Dataset, training_rows: list[dict[str, object]]
) -> None:
    for feature in prepared.features.features[2:]:
        assert isinstance(feature, FittedCategorical)
        values = [str(r[feature.column]) for r in training_rows if r[feature.column] is not None]
        words = sorted(set(values), key=lambda word: (-values.count(word), word))
        assert feature.vocabulary == tuple(words[:3] if feature.name == "size_category" else words)
    assert "" in prepared.features.features[2].vocabulary


def test_rare_values_and_ties(spark: SparkSession, preparing: Preparing) -> None:
    words = ["b"] * 3 + ["a"] * 3 + ["B"] * 3 + ["é", "é", "😀", "😀", "\uffff", "\uffff"] + ["once"]
    df = spark.createDataFrame(
        [(n, word, n % 2) for n, word in enumerate(words)], "id int, w string, bought int"
    )
    two = Categorical("two", column="w", max_size=2)
    often = Categorical("often", column="w", min_count=2)
    features = preparing(df, [two, often], config=ALL_TRAIN, rules=()).features.features
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
    constant, none, silent = dataset.features.features
    assert (constant.offset, constant.scale) == (0.1, 1.0)
    assert (none.fill, none.offset, none.scale) == (0.0, 0.0, 1.0)
    assert silent.vocabulary == ()
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
    for feature in fitted.features:
        values = np.array([float(r[feature.column]) for r in collected])
        assert feature.offset == pytest.approx(values.mean(), rel=1e-12)
        if feature.name != "large":  # there numpy loses the digits that we keep
            assert feature.scale == pytest.approx(values.std(), rel=1e-12)


@pytest.fixture(scope="module")
def twenty(spark: SparkSession) -> Iterator[DataFrame]:
    """`x` is 0 to 19, `large` and the others have one value more that some feature can't take."""
    special = {
        "large": "1e39",
        "huge": "-1e151",
        "unknown": "null",
        "nan": "'NaN'",
        "infinite": "'-Infinity'",
    }
    columns = [f"if(id = 3, cast({value} as double), id) as {name}" for name, value in special.items()]
    both = "cast(if(id % 2 = 0, 1.7e308D, -1.7e308D) as double) as wide"
    parts = "if(id = 3, 'test', if(id = 4, 'validation', 'train')) as part"
    df = spark.range(20).selectExpr(
        "id", "cast(id as double) as x", *columns, both, parts, "id % 2 as bought"
    )
    yield df.coalesce(2).cache()
    df.unpersist()


@pytest.mark.parametrize(
    "feature",
    [
        Numeric("huge"),
        Numeric("wide", normalize="minmax"),  # whose range leaves float64
        Numeric("wide", normalize="robust"),
        Numeric("large", normalize="none"),
        Numeric("unknown", normalize="none", fill=1e39),
        Numeric("nan", normalize="none", nan=1e39),
        Numeric("infinite", normalize="none", clip=(-1e39, None), infinity="clip"),
    ],
    ids=lambda feature: f"{feature.name}-{feature.normalize}",
)
def test_a_value_that_would_be_written_as_an_infinity_is_refused(
    twenty: DataFrame, tmp_path: Path, preparing: Preparing, feature: Numeric
) -> None:
    with pytest.raises(
        ValueTooLarge,
        match=rf"`{feature.name}` holds ±.*e\+.* within ±1e\+150.* Quarantine such rows by a rule",
    ):
        preparing(twenty, [feature], config=ALL_TRAIN, rules=())
    assert list((tmp_path / "datasets" / "shop").iterdir()) == []


def test_a_large_value_is_taken_by_a_logarithm_or_a_clip(twenty: DataFrame, preparing: Preparing) -> None:
    features = [
        Numeric("log", column="large", normalize="log1p"),
        Numeric("clipped", column="large", normalize="none", clip=(None, 100.0)),
    ]
    table = preparing(twenty, features, config=ALL_TRAIN, rules=()).to_arrow("train")
    assert max(table["log"].to_pylist()) == pytest.approx(np.log1p(1e39))
    assert max(table["clipped"].to_pylist()) == 100.0


REFUSED = [
    (Numeric("unknown", fill="fail"), "1 null"),
    (Boolean("flag", column="maybe", fill="fail"), "1 null"),
    (Passthrough("kept", column="unknown"), "1 null"),
    (Numeric("nan", nan="fail"), "1 NaN"),
    (Numeric("filled", column="nan", fill="fail"), "1 NaN"),
    (Numeric("infinite", infinity="fail"), "1 infinities"),
    (Vector("v", column="vector", shape=2, fill="fail"), "1 null"),
]


@pytest.mark.parametrize(("feature", "what"), REFUSED, ids=[feature.name for feature, _ in REFUSED])
def test_what_a_feature_refuses_is_named_and_counted_in_any_split(
    twenty: DataFrame, tmp_path: Path, preparing: Preparing, feature: Feature, what: str
) -> None:
    df = twenty.selectExpr(
        "*", "if(id = 3, null, id > 4) as maybe", "if(id = 3, null, array(x, x)) as vector"
    )
    with pytest.raises(ValuesRefused) as caught:
        preparing(df, [Numeric("x"), feature], config=BY_COLUMN, rules=())
    assert set(caught.value.columns) == {feature.source}
    assert caught.value.columns[feature.source].startswith(what)
    assert caught.value.exit_code == EXIT_DATA
    assert list((tmp_path / "datasets" / "shop").iterdir()) == []
    dataset = preparing(df, [Numeric("x"), feature], config=BY_COLUMN, rules=[Rule("sound", "id <> 3")])
    assert dataset.manifest.rows_kept == 19


def test_all_that_is_refused_is_told_at_once(twenty: DataFrame, preparing: Preparing) -> None:
    features = [
        Numeric("unknown", fill="fail"),
        Numeric("nan", nan="fail"),
        Numeric("infinite", infinity="fail"),
    ]
    with pytest.raises(ValuesRefused) as caught:
        preparing(twenty, features, config=ALL_TRAIN, rules=())
    assert set(caught.value.columns) == {"unknown", "nan", "infinite"}


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


def content_of(dataset: Dataset) -> dict[str, object]:
    """All bytes of a dataset that its rows decide, whatever its files are called."""
    parts = [part for split in dataset.manifest.splits.values() for part in split.parts]
    content: dict[str, object] = {
        name: (dataset.path / name).read_bytes()
        for name in ("features.json", "statistics.json", "examples.parquet")
    }
    content |= {part.path.rsplit("-", 1)[0]: (dataset.path / part.path).read_bytes() for part in parts}
    rejected = sorted((dataset.path / "quarantine").glob("*.parquet"))
    content["quarantine"] = [pq.read_table(file).to_pylist() for file in rejected]
    return content | {"fingerprint": dataset.fingerprint, "quarantined": dataset.manifest.quarantined}


def test_the_same_rows_in_another_order_and_partitioning_give_the_same_bytes(
    spark: SparkSession, prepared: Dataset, preparing: Preparing, tmp_path_factory: pytest.TempPathFactory
) -> None:
    expected = content_of(prepared)
    halves = make_rows(spark, 300, 400).unionByName(make_rows(spark, 400))
    for df in (halves.repartition(7, F.rand(1)), halves.orderBy(F.desc("id")).coalesce(1)):
        assert content_of(preparing(df, root=tmp_path_factory.mktemp("order"))) == expected
    assert FittedFeatures.from_json((prepared.path / "features.json").read_bytes()) == prepared.features


def test_rows_of_one_key_and_copies_of_rows_come_out_in_one_order(
    spark: SparkSession, preparing: Preparing, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # Numbers that sort and hash as equals but have other bits, nulls that a hash leaves out, and copies.
    numbers = (0.0, -0.0, 1.0, -1e-300, 2.0, float("nan"), None)
    values = [
        (id, x, [x, 0.0], y, word, (id + n) % 2)
        for id in (1, 2)
        for n in range(3)
        for x in numbers
        for y, word in ((None, "a"), (5, None), (5, "a"))
    ]
    values += [(3, -0.0, [-0.0], None, "a", 1), (3, 0.0, [0.0], None, "a", 1)] * 40
    schema = "id int, x double, v array<double>, y int, word string, bought int"
    features: list[Feature] = [
        Numeric("x", normalize="minmax", infinity="clip"),
        Passthrough("x_on", column="x", fill=0.0),
        Vector("v", shape=2, dtype="float64"),
        Numeric("y", normalize="robust", fill="median"),
        Categorical("word"),
    ]
    rules = [Rule("long_enough", "size(v) = 2")]
    contents = []
    for seed, partitions in ((0, 1), (1, 1), (2, 5)):
        shuffled = random.Random(seed).sample(values, len(values))
        df = spark.createDataFrame(shuffled, schema).repartition(partitions)
        root = tmp_path_factory.mktemp("ties")
        contents.append(content_of(preparing(df, features, config=SHORT, rules=rules, root=root)))
    assert contents[0] == contents[1] == contents[2]
    assert contents[0]["quarantined"] == {"long_enough": 80}


@pytest.mark.slow
def test_columns_add_no_spark_job(
    spark: SparkSession, preparing: Preparing, tmp_path_factory: pytest.TempPathFactory
) -> None:
    jobs, seconds = {}, {}
    df = spark.range(200)
    for columns in (5, 500):
        wide = df.selectExpr(
            "id", "id % 2 as bought",
            *(f"if(id % 7 = 0, null, id * {n} % 97 / 4) as x{n}" for n in range(columns - 2)),
            "concat('w', id % 9) as w0", "id % 5 as w1",
        )  # fmt: skip
        features = [Numeric(f"x{n}", fill="median") for n in range(columns - 2)]
        features += [Categorical("w0"), Categorical("w1")]
        group = f"{columns} columns"
        spark.sparkContext.setJobGroup(group, group)
        started = time.perf_counter()
        try:
            # by the whole row: a hash of all columns, which Spark must not reason about
            preparing(wide, features, config=SHORT, rules=(), key=(), root=tmp_path_factory.mktemp("wide"))
        finally:
            seconds[columns] = time.perf_counter() - started
            spark.sparkContext.setLocalProperty("spark.jobGroup.id", None)
        jobs[columns] = len(spark.sparkContext.statusTracker().getJobIdsForGroup(group))
    assert 2 <= jobs[5] == jobs[500] <= 6
    assert seconds[500] < 60, seconds


def test_the_driver_collects_no_more_values_than_a_vocabulary_holds(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [Wanted("word", "string", max_values=10, min_count=2)]
    monkeypatch.setattr(spooling, "ValueCounter", partial(ValueCounter, max_distinct=100))
    sent: list[dict[str, object]] = []
    for partition in range(3):  # each has far more values than it may hold
        desk = spooling._Desk(tmp_path, partition, wanted)
        for batch in range(6):
            words = [f"{number % (97 + 40 * batch)}" for number in range(partition, 400, 2)]
            count = len(words)
            columns = [range(count), words, [None] * count, [None] * count, range(count)]
            desk.take(
                pa.table(
                    dict(
                        zip(("_row_id", "_0", "_rule", "_source", "_place"), map(list, columns), strict=True)
                    )
                )
            )
            came = [row for table in desk.overflow() for row in table.to_pylist()]
            assert batch == 0 or came, "memory is full"
            sent += came
        sent += [row for table in desk.close() for row in table.to_pylist()]
    partials = spark.createDataFrame([tuple(row.values()) for row in sent], spooling.COUNTS_DDL)
    collected = [row.asDict() for row in survey._most_frequent(partials, wanted).collect()]
    assert sum(row["topic"] == "value:0" for row in collected) == 10
    counts: Counter[str] = Counter()
    for row in sent:
        if row["topic"] == "value:0":
            counts[str(row["key"])] += int(str(row["count"]))
    found = survey._assemble(collected, wanted).values["word"]
    assert found.counts == tuple(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:10])
    assert found.distinct == len(counts) > 250
