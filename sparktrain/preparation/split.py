"""Which split a row belongs to, and its place in the global shuffle: pure functions of the row.

So a row's split and identity never change when other rows come or go.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ArrayType,
    DataType,
    DoubleType,
    FloatType,
    StructField,
    StructType,
    TimestampType,
)

from sparktrain.preparation.rules import RULE_COLUMN
from sparktrain.splitting import SplitConfig, instant

SPLITS = ("train", "validation", "test")
SPLIT_COLUMN = "_split"
ROW_ID_COLUMN = "row_id"
IS_THERE_COLUMN = "_is_there"  # whether a dataset that grows has the row
ADDED_COLUMNS = (ROW_ID_COLUMN, RULE_COLUMN, SPLIT_COLUMN, IS_THERE_COLUMN)
_BUCKETS = 1_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def row_id(key: Sequence[str]) -> Column:
    """The row's identity: xxhash64 of its key columns, int64.

    xxhash64 skips nulls, so that (null, "a") and ("a", null) would collide: each column's null flag is hashed
    too.
    """
    return _hash([F.col(f"`{name}`") for name in key])


def whole_row_id(df: DataFrame) -> Column:
    """The same of all columns but those that preparation adds."""
    return _hash([comparable(field) for field in df.schema.fields if field.name not in ADDED_COLUMNS])


def _hash(columns: Sequence[Column]) -> Column:
    flags = [column.isNull() for column in columns]
    return F.xxhash64(*columns, *flags)


def comparable(field: StructField) -> Column:
    """The column, or its JSON where Spark can neither sort nor hash the type (maps, variants)."""
    column = F.col(f"`{field.name}`")
    if _is_comparable(field.dataType):
        return column
    return F.when(column.isNotNull(), F.to_json(F.struct(column.alias("value"))))


def _is_comparable(kind: DataType) -> bool:
    if isinstance(kind, ArrayType):
        return _is_comparable(kind.elementType)
    if isinstance(kind, StructType):
        return all(_is_comparable(field.dataType) for field in kind.fields)
    return kind.typeName() not in ("map", "variant", "interval")


def add_split(df: DataFrame, key: Sequence[str], config: SplitConfig) -> DataFrame:
    """Add `row_id` and `_split` (null: the method can't place the row); `key` empty: the whole row is it."""
    identified = df.withColumn(ROW_ID_COLUMN, row_id(key) if key else whole_row_id(df))
    return identified.withColumn(SPLIT_COLUMN, _split(df, config))


def split_is_known(df: DataFrame, config: SplitConfig) -> Column | None:
    """Whether the method can place the row; None: it can place every row."""
    return _split(df, config).isNotNull() if config.method in ("time", "column") else None


def _split(df: DataFrame, config: SplitConfig) -> Column:
    if config.method == "time":
        return _by_time(df, config)
    if config.method == "column":
        column = F.col(f"`{config.column}`")
        return F.when(column.isin(*SPLITS), column)
    hashed = whole_row_id(df) if config.method == "random" else F.col(ROW_ID_COLUMN)
    bucket = F.pmod(F.xxhash64(F.lit("split"), F.lit(config.seed), hashed), F.lit(_BUCKETS))
    split = _by_fraction(bucket, config.validation or 0.0, config.test or 0.0)
    for value, fractions in config.fractions.items():
        has_value = F.col(f"`{config.column}`").cast("string") == value
        own = _by_fraction(bucket, fractions.validation, fractions.test)
        split = F.when(has_value, own).otherwise(split)
    return split


def _by_fraction(bucket: Column, validation: float, test: float) -> Column:
    first = round(test * _BUCKETS)
    second = first + round(validation * _BUCKETS)
    return F.when(bucket < first, "test").when(bucket < second, "validation").otherwise("train")


def _by_time(df: DataFrame, config: SplitConfig) -> Column:
    kind = df.schema[str(config.column)].dataType
    column = F.col(f"`{config.column}`")
    known = column.isNotNull()
    if isinstance(kind, (FloatType, DoubleType)):
        known = known & ~F.isnan(column)
    split: Column = F.lit("train")
    for name, start in (("validation", config.validation_from), ("test", config.test_from)):
        if start is not None:
            split = F.when(_is_from(column, kind, instant(start)), name).otherwise(split)
    return F.when(known, split)


def _is_from(column: Column, kind: DataType, start: int | float | datetime) -> Column:
    """Whether the column's value is not before `start`, whatever the session's time zone is."""
    if not isinstance(start, datetime):
        return column >= F.lit(start)
    if isinstance(kind, TimestampType):
        return column >= F.timestamp_micros(F.lit((start - _EPOCH) // timedelta(microseconds=1)))
    wall_clock = start.astimezone(UTC).replace(tzinfo=None).isoformat(sep=" ")
    return column.cast("timestamp_ntz") >= F.lit(wall_clock).cast("timestamp_ntz")
