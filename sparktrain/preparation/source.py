"""Reading files of text without losing a row.

What can't be parsed is kept, marked, and quarantined by `clean`.
"""

from __future__ import annotations

import csv
import glob
import io
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField, StructType

from sparktrain.errors import ColumnsReordered, SchemaMismatch, SourceMissing

MALFORMED_COLUMN = "_malformed_row"


def read_csv(spark: SparkSession, path: str | Path, schema: str, null_value: str = "NA") -> DataFrame:
    """Read CSV files with a header into typed columns plus `_malformed_row`.

    A row with too few or too many fields, or with a field that is not of its column's type, has its text in
    `_malformed_row` (null otherwise); `prepare` quarantines it under the rule `malformed`. A quote within
    quotes is written twice, as in RFC 4180; a row is one line.

    Args:
        path: a file, a directory or a glob.
        schema: DDL of every column, in the header's order, such as "year int, carrier string".
        null_value: how the files write a missing value.

    Raises:
        SourceMissing: no file there.
        SchemaMismatch, ColumnsReordered: a file's header differs from `schema`.
    """
    declared = StructType.fromDDL(schema)
    assert isinstance(declared, StructType)
    for file in _files(path):
        _check_header(file, declared.fieldNames())
    read = (
        spark.read.schema(StructType([*declared.fields, StructField(MALFORMED_COLUMN, StringType())]))
        .option("header", True)
        .option("nullValue", null_value)
        .option("mode", "PERMISSIVE")
        .option("columnNameOfCorruptRecord", MALFORMED_COLUMN)
        .option("escape", '"')  # Spark's own is the backslash, which tears `"a ""b"", c"` apart
        .option("columnPruning", False)
        .csv(str(path))
    )
    return read.withColumn(MALFORMED_COLUMN, _needing_all_fields(read, declared.fieldNames()))


def _needing_all_fields(read: DataFrame, names: Sequence[str]) -> Column:
    """The text of a malformed row, in an expression that every column is part of.

    Spark parses only the fields that a query needs, so that it would call the same row malformed in one query
    and sound in another.
    """
    fields = F.xxhash64(*[F.col(f"`{name}`") for name in names]).cast("string")
    return F.concat(read[MALFORMED_COLUMN], F.substring(fields, 1, 0))


def _files(path: str | Path) -> list[str]:
    found = []
    for match in sorted(glob.glob(str(path))):
        inside = sorted(Path(match).iterdir()) if Path(match).is_dir() else [Path(match)]
        found += [str(p) for p in inside if p.is_file() and p.name[0] not in "._"]
    if not found:
        raise SourceMissing(str(path))
    return found


def _check_header(file: str, expected: Sequence[str]) -> None:
    with (
        pa.input_stream(file, compression="detect") as raw,
        io.TextIOWrapper(
            raw, encoding="utf-8-sig", errors="replace", newline=""
        ) as text,  # as Spark reads it
    ):
        header = next(csv.reader(text), [])
    missing = [name for name in expected if name not in header]
    unexpected = [name for name in header if name not in expected]
    if missing or unexpected:
        raise SchemaMismatch(file, missing=missing, unexpected=unexpected)
    if list(expected) != header:
        raise ColumnsReordered(file, header, expected)
