"""Reading files of text without losing a row, and Parquet that others wrote.

Text that can't be parsed is kept, marked, and quarantined by `clean`.
"""

from __future__ import annotations

import csv
import glob
import io
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.errors import AnalysisException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField, StructType

from sparktrain.errors import ColumnsReordered, SchemaMismatch, SourceMissing, SourceUnreadable, first_line
from sparktrain.features import MALFORMED_COLUMN
from sparktrain.preparation.analysis import quoted, spark_settings


def read_csv(
    spark: SparkSession,
    path: str | Path,
    schema: str,
    null_value: str = "NA",
    *,
    multiline: bool = False,
    optional: Collection[str] = (),
) -> DataFrame:
    """Read CSV files with a header into typed columns plus `_malformed_row`.

    A row with too few or too many fields, or with a field that is not of its column's type, has its text in
    `_malformed_row` (null otherwise); `prepare` quarantines it under the rule `malformed`. A quote within
    quotes is written twice, as in RFC 4180.

    Args:
        path: a file, a directory or a glob; a name that ends with .gz or .bz2 is unpacked.
        schema: DDL of every column, in the header's order, such as "year int, carrier string". A column
            without a name is called as Spark does: `_c0` if it is the first, as pandas writes its index.
        null_value: how the files write a missing value.
        multiline: a row may span lines within quotes. Each file is read by one Spark task then, and a quote
            that is never closed takes the rest of its file into one malformed row.
        optional: columns of `schema` that all files together may lack, such as the target in rows to be
            scored; the result lacks them, too.

    Raises:
        SourceMissing: no file there.
        SchemaMismatch, ColumnsReordered: a file's header differs from `schema`.
        SourceUnreadable: a file's header has a name twice, and `schema` has Spark's names for it.
    """
    declared = _declared(spark, schema)
    headers = {file: _header(file, declared.fieldNames(), null_value) for file in _files(path)}
    absent = [name for name in optional if not any(name in header for header in headers.values())]
    declared = StructType([field for field in declared.fields if field.name not in absent])
    for file, header in headers.items():
        _check_header(file, header, declared.fieldNames())
    read = (
        spark.read.schema(StructType([*declared.fields, StructField(MALFORMED_COLUMN, StringType())]))
        .option("header", True)
        .option("nullValue", null_value)
        .option("mode", "PERMISSIVE")
        .option("columnNameOfCorruptRecord", MALFORMED_COLUMN)
        .option("escape", '"')  # Spark's own is the backslash, which tears `"a ""b"", c"` apart
        .option("columnPruning", False)
        .option("multiLine", multiline)
        .csv(str(path))
    )
    return read.withColumn(MALFORMED_COLUMN, _needing_all_fields(read, declared.fieldNames()))


def read_json(spark: SparkSession, path: str | Path, schema: str) -> DataFrame:
    """Read JSON lines (an object each) into typed columns plus `_malformed_row`.

    A line that is not just one object, or has a value that is not of its column's type, has its text in
    `_malformed_row` (null otherwise); `prepare` quarantines it under the rule `malformed`. A key that is not
    there is null, one that `schema` does not name is left out; empty lines are no rows.

    Args:
        path: a file, a directory or a glob; a name that ends with .gz or .bz2 is unpacked.
        schema: DDL of the columns, such as "year int, carrier string".

    Raises:
        SourceMissing: no file there.
    """
    declared = _declared(spark, schema)
    _files(path, "JSON")
    marked = StructType([*declared.fields, StructField(MALFORMED_COLUMN, StringType())])
    line = F.regexp_replace("value", "^\ufeff", "")  # a file may start with a byte order mark
    lines = spark.read.text(str(path)).select(line.alias("line")).where(F.trim("line") != "")
    options = {"mode": "PERMISSIVE", "columnNameOfCorruptRecord": MALFORMED_COLUMN}
    read = lines.select("line", F.from_json("line", marked, options).alias("row"))
    # Spark's parser ends with the first object, and would lose the next ones of a line in silence.
    packed = F.concat(F.lit("["), F.col("line"), F.lit("]"))
    objects = F.size(F.from_json(packed, "array<struct<_: int>>"))
    is_object = F.ltrim("line").startswith("{") & (objects == 1) & F.col("row").isNotNull()
    is_sound = is_object & F.col(f"row.{MALFORMED_COLUMN}").isNull()
    text = F.when(~F.coalesce(is_sound, F.lit(False)), F.col("line"))
    columns = [F.col("row").getField(name).alias(name) for name in declared.fieldNames()]
    return read.select(*columns, text.alias(MALFORMED_COLUMN))


def read_parquet(spark: SparkSession, path: str | Path) -> DataFrame:
    """Read Parquet files as Spark does, and timestamps of nanoseconds, which pandas writes and Spark refuses.

    These become Spark's, of microseconds. Files may lie in folders such as `year=2013/`, or in a store.

    Args:
        path: a file, a directory or a glob; anything that Spark reads.

    Raises:
        SourceMissing: no file there, where it is a local path.
        SourceUnreadable: what is there is no Parquet, or can't be read as a table.
    """
    found = [Path(match) for match in sorted(glob.glob(str(path)))]
    files = [file for place in found for file in visible_files(place)]
    if not files and "://" not in str(path):
        raise SourceMissing(str(path), "Parquet")
    nanoseconds = _nanoseconds(files[0]) if files else {}
    # Spark gives numbers then; all else it reads as before.
    with spark_settings(spark, {"spark.sql.legacy.parquet.nanosAsLong": "true" if nanoseconds else "false"}):
        try:
            frame = spark.read.parquet(str(path))
            return frame.withColumns({n: _microseconds(n, zoned) for n, zoned in nanoseconds.items()})
        except AnalysisException as error:
            way_out = "rename or cast the columns where the file is written"
            raise SourceUnreadable(str(path), first_line(error), way_out) from None


def visible_files(place: Path) -> list[Path]:
    """The files that Spark reads of a file or a folder, those of its folders too."""
    inside = sorted(place.rglob("*")) if place.is_dir() else [place]
    return [path for path in inside if path.is_file() and path.name[0] not in "._"]


def _nanoseconds(file: Path) -> dict[str, bool]:
    """The columns with timestamps of nanoseconds, and whether they are of a time zone."""
    try:
        schema = pq.read_schema(file)
    except (OSError, pa.ArrowException) as error:
        way_out = "give Parquet files; read_csv and read_json read the others"
        said = first_line(error).rstrip(".")[:120] or "empty"
        raise SourceUnreadable(str(file), f"it is no Parquet ({said})", way_out) from None
    return {
        field.name: field.type.tz is not None
        for field in schema
        if pa.types.is_timestamp(field.type) and field.type.unit == "ns"
    }


def _microseconds(name: str, is_zoned: bool) -> Column:
    moment = F.expr(f"timestamp_micros(`{name}` div 1000)")
    return moment if is_zoned else moment.cast("timestamp_ntz")


def _declared(spark: SparkSession, schema: str) -> StructType:
    return spark.createDataFrame([], schema).schema  # Spark 3.5 has no StructType.fromDDL


def _needing_all_fields(read: DataFrame, names: Sequence[str]) -> Column:
    """The text of a malformed row, in an expression that every column is part of.

    Spark parses only the fields that a query needs, so that it would call the same row malformed in one query
    and sound in another.
    """
    fields = F.xxhash64(*[F.col(quoted(name)) for name in names]).cast("string")
    return F.concat(read[MALFORMED_COLUMN], F.substring(fields, 1, 0))


def _files(path: str | Path, kind: str = "CSV") -> list[str]:
    found = []
    for match in sorted(glob.glob(str(path))):
        inside = sorted(Path(match).iterdir()) if Path(match).is_dir() else [Path(match)]
        found += [str(p) for p in inside if p.is_file() and p.name[0] not in "._"]
    if not found:
        raise SourceMissing(str(path), kind)
    return found


@contextmanager
def opened_csv(file: str | Path) -> Iterator[io.TextIOWrapper]:
    """Open a CSV file, packed or not, as the text that Spark reads."""
    with (
        pa.input_stream(str(file), compression="detect") as raw,
        io.TextIOWrapper(raw, encoding="utf-8-sig", errors="replace", newline="") as text,
    ):
        yield text


def _header(file: str, declared: Sequence[str], null_value: str) -> list[str]:
    """The names of a file's columns, as Spark calls them."""
    with opened_csv(file) as text:
        given = next(csv.reader(text), [])
    nameless = {"", null_value} - set(declared)
    return [f"_c{number}" if name in nameless else name for number, name in enumerate(given)]


def _check_header(file: str, header: list[str], expected: Sequence[str]) -> None:
    missing = [name for name in expected if name not in header]
    counts = Counter(name.lower() for name in header)
    doubled = {f"{name}{number}": name for number, name in enumerate(header) if counts[name.lower()] > 1}
    if missing and set(missing) <= doubled.keys():
        names = ", ".join(f"`{name}`" for name in dict.fromkeys(doubled.values()))
        way_out = "rename one of each where the file is written"
        raise SourceUnreadable(file, f"its header has more than one {names}", way_out)
    unexpected = [name for name in header if name not in expected]
    if missing or unexpected:
        raise SchemaMismatch(file, missing=missing, unexpected=unexpected)
    if list(expected) != header:
        raise ColumnsReordered(file, header, expected)
