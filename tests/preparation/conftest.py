"""Rows to prepare, and a dataset that was prepared from them once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from sparktrain.config import PrepareConfig
from sparktrain.dataset import Dataset
from sparktrain.features import Categorical, Feature, Numeric, Target
from sparktrain.preparation import Rule, prepare

CONFIG = PrepareConfig(num_parts=2, rows_per_row_group=32, max_quarantined_fraction=1.0)
FEATURES: list[Feature] = [
    Numeric("amount"),
    Numeric("size", normalize="none", fill=-1.0),
    Categorical("colour"),
    Categorical("size_category", column="size", max_size=3),
]
TARGET = Target("bought")
RULES = [Rule("has_colour", "colour <> 'black'"), Rule("small", "100 / (size - 5) > -1000")]
KEY = ["id"]

Preparing = Callable[..., Dataset]


def make_rows(spark: SparkSession, count: int = 700, first: int = 0) -> DataFrame:
    """Rows with every kind of trouble; `id` decides all else.

    A seventh has no amount, some of those are NaN or infinite; one in ten is black, one in eleven of size 5,
    where `RULES` divide by zero; of one in thirteen nobody knows whether it was bought.
    """
    number = F.col("id")
    amount = (
        F.when(number % 21 == 0, F.lit(float("nan")))
        .when(number % 42 == 7, F.lit(float("inf")))
        .when(number % 7 == 0, None)
        .otherwise(F.sin(number) * 100)
    )
    colours = F.array(*[F.lit(name) for name in ("red", "green", "blue", "red", "")])
    return spark.range(first, first + count, 1, 3).select(
        "id",
        amount.alias("amount"),
        F.when(number % 17 == 0, None).otherwise(number % 11).cast("int").alias("size"),
        F.when(number % 10 == 0, "black")
        .otherwise(colours[F.pmod(F.xxhash64("id"), F.lit(5)).cast("int")])
        .alias("colour"),
        F.when(number % 13 == 0, None).otherwise(number % 2).cast("int").alias("bought"),
    )


@pytest.fixture
def preparing(tmp_path: Path) -> Preparing:
    """`prepare` with the features, rules and so on of this file, except for what is given."""

    def run(
        df: DataFrame,
        features: Sequence[Feature] = FEATURES,
        target: Target | Sequence[Target] = TARGET,
        config: PrepareConfig = CONFIG,
        *,
        root: Path = tmp_path,
        rules: Sequence[Rule] = RULES,
        key: Sequence[str] = KEY,
        **more: Any,
    ) -> Dataset:
        return prepare(df, features, target, config, name="shop", root=root, rules=rules, key=key, **more)

    return run


@pytest.fixture(scope="session")
def rows(spark: SparkSession) -> Iterator[DataFrame]:
    df = make_rows(spark).cache()
    yield df
    df.unpersist()


@pytest.fixture(scope="session")
def prepared(rows: DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A dataset for tests that only look at it."""
    root = tmp_path_factory.mktemp("prepared")
    return prepare(rows, FEATURES, TARGET, CONFIG, name="shop", root=root, rules=RULES, key=KEY)


@pytest.fixture(params=["true", "false"], ids=["ansi", "no_ansi"])
def ansi(spark: SparkSession, request: pytest.FixtureRequest) -> Iterator[str]:
    before = spark.conf.get("spark.sql.ansi.enabled")
    assert before is not None
    spark.conf.set("spark.sql.ansi.enabled", request.param)
    yield request.param
    assert spark.conf.get("spark.sql.ansi.enabled") == request.param, "preparation must set it back"
    spark.conf.set("spark.sql.ansi.enabled", before)
