"""The one look at the source: rows are shuffled once, spooled as they are, and everything is counted.

Each Spark partition leaves its kept rows in an Arrow file under the staging directory, in their final order,
and its quarantined rows in a Parquet file (see `spooling`). What a feature needs to be fitted comes back as
counts, so that features are applied afterwards, to the spooled rows, without a second look at the source.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from sparktrain.preparation.analysis import spark_settings
from sparktrain.preparation.counting import Numbers, merged_numbers
from sparktrain.preparation.rules import RULE_COLUMN
from sparktrain.preparation.split import ROW_ID_COLUMN, SPLIT_COLUMN, SPLITS
from sparktrain.preparation.spooling import (
    COUNTS_DDL,
    HASH_BITS,
    PLACE,
    QUARANTINE,
    ROW_ID,
    RULE,
    SOURCE,
    Spool,
    View,
    Wanted,
    survey_partition,
)
from sparktrain.preparation.staging import keep_only

_WHOLE = {  # to_json drops nulls and what a timestamp has beyond milliseconds, unless it is told
    "ignoreNullFields": "false",
    "timestampFormat": "yyyy-MM-dd'T'HH:mm:ss.SSSSSSXXX",
    "timestampNTZFormat": "yyyy-MM-dd'T'HH:mm:ss.SSSSSS",
}
_MAX_BATCH_ROWS, _MAX_BATCH_BYTES = 32_768, 64 << 20
_MEAN_VALUE_BYTES = 16


@dataclass(frozen=True)
class Values:
    """Values of a raw column.

    Attributes:
        counts: the most frequent ones with their rows, by falling count, ties by code points.
        distinct: how many different ones there were.
    """

    counts: tuple[tuple[str, int], ...] = ()
    distinct: int = 0


@dataclass(frozen=True)
class Survey:
    """What the look at the source found.

    Attributes:
        rows_in: rows of the source.
        quarantined: rows by the rule that they broke.
        split_rows: rows kept, by split.
        numbers: by raw column and view.
        values: by raw column.
        nulls, train_nulls: by raw column, in all splits and in the train split.
        spools: in the order of the Spark partitions.
        quarantine_files: names of the files with quarantined rows.
    """

    rows_in: int
    quarantined: dict[str, int]
    split_rows: dict[str, int]
    numbers: dict[tuple[str, View], Numbers]
    values: dict[str, Values]
    nulls: dict[str, int]
    train_nulls: dict[str, int]
    spools: tuple[Spool, ...]
    quarantine_files: tuple[str, ...] = ()

    @property
    def rows_kept(self) -> int:
        return sum(self.split_rows.values())


def survey(
    marked: DataFrame,
    source_columns: Sequence[str],
    wanted: Sequence[Wanted],
    staging: Path,
    *,
    num_parts: int,
    seed: int,
    row_bytes: int = 0,
) -> Survey:
    """Shuffle, spool and count the rows, in one Spark job.

    Args:
        marked: source rows with `row_id`, `_split` and `_broken_rule`.
        source_columns: what a quarantined row shows of itself.
        wanted: the raw columns to spool, in this order.
        staging: directory that all executors see.
        num_parts: Spark partitions of the shuffle.
        seed: of the shuffle.
        row_bytes: of vectors and images in a row, which make record batches smaller.
    """
    raw = [F.col(f"`{w.column}`").alias(f"_{number}") for number, w in enumerate(wanted)]
    broken = F.col(RULE_COLUMN).isNotNull()
    source = F.struct(*[F.col(f"`{name}`") for name in source_columns])
    whole = F.when(broken, F.to_json(source, _WHOLE))
    # By number, because mapInArrow takes the dot in a name for a field of a struct.
    rows = marked.select(
        F.col(ROW_ID_COLUMN).alias(ROW_ID),
        *raw,
        F.col(RULE_COLUMN).alias(RULE),
        whole.alias(SOURCE),
        place(raw, seed).alias(PLACE),
    )
    # The number is given, so that adaptive execution leaves the partitions alone.
    ordered = rows.repartition(num_parts, PLACE).sortWithinPartitions(PLACE)
    worker = partial(survey_partition, staging=str(staging), wanted=tuple(wanted))
    partials = ordered.mapInArrow(worker, COUNTS_DDL)
    with spark_settings(marked.sparkSession, _settings_for(row_bytes + _MEAN_VALUE_BYTES * len(wanted))):
        collected = _most_frequent(partials, wanted).collect()
    found = _assemble([row.asDict() for row in collected], wanted)
    keep_only(staging / QUARANTINE, found.quarantine_files)
    return found


def place(raw: Sequence[Column], seed: int) -> Column:
    """Where a row lies: by split, then by a hash of all that it holds; int64, not negative.

    All columns take part, so that many rows of one key do not crowd one part.
    """
    number = F.coalesce(
        *[
            F.when(F.col(RULE_COLUMN).isNull() & (F.col(SPLIT_COLUMN) == split), F.lit(code))
            for code, split in enumerate(SPLITS)
        ],
        F.lit(len(SPLITS)),
    ).cast("bigint")
    mixed = F.xxhash64(F.lit("order"), F.lit(seed), F.col(ROW_ID_COLUMN), *raw)
    return F.shiftleft(number, HASH_BITS).bitwiseOR(F.shiftrightunsigned(mixed, 64 - HASH_BITS))


def _settings_for(row_bytes: int) -> dict[str, str]:
    """What this one job needs.

    Record batches are of a size that is worth a call and fits into memory, however wide a row is. And Spark
    draws no conclusions from what equals what: for each alias of a column it would double all it knows of
    expressions that hold the column; a hash holds them all: forty columns take all the memory there is.
    """
    rows = max(16, min(_MAX_BATCH_ROWS, _MAX_BATCH_BYTES // max(row_bytes, 1)))
    return {
        "spark.sql.execution.arrow.maxRecordsPerBatch": str(rows),
        "spark.sql.constraintPropagation.enabled": "false",
    }


def _most_frequent(partials: DataFrame, wanted: Sequence[Wanted]) -> DataFrame:
    """Add the partial counts up, and leave on the executors the values that no vocabulary will hold."""
    merged = partials.groupBy("topic", "key").agg(
        F.sum("count").alias("count"), F.collect_list("payload").alias("payload")
    )
    limits = [w for w in wanted if w.max_values is not None]
    if not limits:
        return merged.withColumn("distinct", F.lit(0))
    most = max(w.max_values or 0 for w in limits)
    least = min(w.min_count for w in limits)
    of_topic = Window.partitionBy("topic")
    is_value = F.col("topic").startswith("value:")
    ranked = merged.withColumns(
        {
            "rank": F.row_number().over(of_topic.orderBy(F.desc("count"), "key")),
            "distinct": F.count(F.lit(1)).over(of_topic),
        }
    )
    # the first of each column says how many there were
    kept = ~is_value | (F.col("rank") == 1) | ((F.col("rank") <= most) & (F.col("count") >= least))
    return ranked.where(kept).drop("rank")


def _assemble(found: Sequence[Mapping[str, Any]], wanted: Sequence[Wanted]) -> Survey:
    by_topic: dict[str, list[Mapping[str, Any]]] = {}
    for row in found:
        by_topic.setdefault(row["topic"], []).append(row)

    def counts(topic: str) -> dict[str, int]:
        return {row["key"]: row["count"] for row in by_topic.get(topic, [])}

    def payloads(topic: str) -> dict[str, list[str]]:
        return {row["key"]: row["payload"] for row in by_topic.get(topic, [])}

    nulls, train_nulls = counts("nulls"), counts("train_nulls")
    texts = payloads("numbers")
    quarantined, split_rows = counts("rule"), counts("split")
    spools = [json.loads(text) for texts in payloads("spool").values() for text in texts]
    return Survey(
        rows_in=sum(quarantined.values()) + sum(split_rows.values()),
        quarantined=quarantined,
        split_rows=split_rows,
        numbers={
            (w.column, view): merged_numbers(texts.get(f"{number}:{i}", ()), view.bits)
            for number, w in enumerate(wanted)
            for i, view in enumerate(w.views)
        },
        values={
            w.column: _values(by_topic.get(f"value:{number}", []), w)
            for number, w in enumerate(wanted)
            if w.max_values is not None
        },
        nulls={w.column: nulls.get(str(number), 0) for number, w in enumerate(wanted)},
        train_nulls={w.column: train_nulls.get(str(number), 0) for number, w in enumerate(wanted)},
        spools=tuple(Spool(path, tuple(rows), tuple(batches)) for _, path, rows, batches in sorted(spools)),
        quarantine_files=tuple(sorted(counts("quarantine"))),
    )


def _values(rows: Sequence[Mapping[str, Any]], wanted: Wanted) -> Values:
    counted = sorted(((row["key"], row["count"]) for row in rows), key=lambda item: (-item[1], item[0]))
    frequent = [item for item in counted if item[1] >= wanted.min_count][: wanted.max_values]
    return Values(tuple(frequent), rows[0]["distinct"] if rows else 0)
