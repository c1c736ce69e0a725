"""Which split a row belongs to, and its place in the global shuffle: pure hashes of its key.

So a row's split and identity never change when other rows come or go.
"""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from sparktrain.config import SplitConfig

SPLITS = ("train", "validation", "test")
SPLIT_COLUMN = "_split"
ROW_ID_COLUMN = "row_id"
ORDER_COLUMN = "_order"
_BUCKETS = 1_000_000


def row_id(key: Sequence[str]) -> Column:
    """The row's identity: xxhash64 of its key columns, int64.

    xxhash64 skips nulls, so that (null, "a") and ("a", null) would collide: each column's null flag is hashed
    too.
    """
    columns = [F.col(f"`{name}`") for name in key]
    flags = [column.isNull() for column in columns]
    return F.xxhash64(*columns, *flags)


def add_split(df: DataFrame, key: Sequence[str], config: SplitConfig) -> DataFrame:
    """Add `row_id` and `_split`; `key` empty: the whole row is the key."""
    bucket = F.pmod(F.xxhash64(F.lit("split"), F.lit(config.seed), F.col(ROW_ID_COLUMN)), F.lit(_BUCKETS))
    test = round(config.test * _BUCKETS)
    validation = test + round(config.validation * _BUCKETS)
    split = F.when(bucket < test, "test").when(bucket < validation, "validation").otherwise("train")
    return df.withColumn(ROW_ID_COLUMN, row_id(key or df.columns)).withColumn(SPLIT_COLUMN, split)


def add_order(df: DataFrame, seed: int) -> DataFrame:
    """Add `_order`: a keyed hash that sorts rows into the global shuffle."""
    return df.withColumn(ORDER_COLUMN, F.xxhash64(F.lit("order"), F.lit(seed), F.col(ROW_ID_COLUMN)))
