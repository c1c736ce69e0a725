"""Where the rows of a new pipeline come from: a Parquet, CSV or JSON file, a folder of them, or a table."""

from __future__ import annotations

import csv
import glob
import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, DataType, StructType

from sparktrain.errors import SourceMissing, SourceUnreadable, first_line
from sparktrain.features import MALFORMED_COLUMN, UNCASTABLE_COLUMN
from sparktrain.preparation.analysis import quoted
from sparktrain.preparation.source import opened_csv, read_csv, read_json, read_parquet, visible_files

SourceKind = Literal["parquet", "csv", "json", "table"]

_SUFFIXES: dict[str, SourceKind] = {".csv": "csv", ".json": "json", ".jsonl": "json", ".ndjson": "json"}
_PACKED = (".gz", ".bz2")
_TABLE = re.compile(r"[\w-]+(\.[\w-]+){0,2}")


@dataclass(frozen=True)
class Source:
    """A source as `sparktrain init` was given it.

    Attributes:
        place: absolute path of a file or folder, or a glob of them; a URI; a table's name.
        multiline: a CSV file in which a row spans lines was seen.
    """

    kind: SourceKind
    place: str
    multiline: bool = False

    @classmethod
    def of(cls, given: str) -> Source:
        """Tell what a text names; looks at files, starts nothing.

        Raises:
            SourceMissing: no such file, and no table could have this name.
            SourceUnreadable: a folder without files, a file that is no Parquet.
        """
        if "://" in given:
            return cls(_kind_of(given), given)
        path = Path(given).expanduser()
        places = [path] if path.exists() else [Path(match) for match in sorted(glob.glob(str(path)))]
        if not places:
            if _TABLE.fullmatch(given) and path.suffix not in (".parquet", *_SUFFIXES):
                return cls("table", given)
            raise SourceMissing(given, "Parquet, CSV or JSON")
        files = [f for place in places for f in ([place] if place.is_file() else visible_files(place))]
        if not files:
            way_out = "give a folder that holds Parquet, CSV or JSON files"
            raise SourceUnreadable(given, "the folder holds no file", way_out)
        kind, place = _kind_of(files[0].name), str(path.resolve())
        if kind == "parquet":
            _check_parquet(files[0])
        return cls(kind, place, kind == "csv" and any(map(_spans_lines, files[:_FILES_LOOKED_AT])))

    def read(self, spark: SparkSession) -> tuple[DataFrame, str | None]:
        """Read the rows; returns the schema as DDL, too, where it was inferred and is to be written down.

        Raises:
            SourceUnreadable: Spark can't read it; JSON that is not one object a line; there is no such table.
        """
        try:
            if self.kind == "parquet":
                return read_parquet(spark, self.place), None
            if self.kind == "table":
                return spark.table(self.place), None
            reader = spark.read.option("header", True).option("inferSchema", True)
            reader = reader.option("nullValue", "NA").option("escape", '"')
            is_csv = self.kind == "csv"
            reader = reader.option("multiLine", self.multiline)
            inferred = reader.csv(self.place) if is_csv else spark.read.json(self.place)
            fields = [f for f in inferred.schema.fields if is_csv or f.name != _UNREADABLE_LINES]
            if not is_csv:
                _check_lines(spark, self.place, bool(fields))
            ddl = ", ".join(f"{quoted(f.name)} {_ddl_type(f.dataType)}" for f in fields)
            if not fields:
                raise SourceUnreadable(self.place, "no column was found", "give files that hold rows")
            if is_csv:
                _check_separator(self.place, [field.name for field in fields])
                return read_csv(spark, self.place, ddl, multiline=self.multiline), ddl
            return read_json(spark, self.place, ddl), ddl
        except AnalysisException as error:
            way_out = _NO_TABLE if self.kind == "table" else "correct the file, or give a Parquet file"
            raise SourceUnreadable(self.place, first_line(error), way_out) from None


_FILES_LOOKED_AT, _LINES_LOOKED_AT = 4, 100_000
_UNREADABLE_LINES = "_corrupt_record"  # as Spark calls what it can't read while it infers
_NO_TABLE = "give a file; or a table that this Spark knows, as one of a platform or of spark-submit does"
HIDDEN_COLUMNS = (MALFORMED_COLUMN, UNCASTABLE_COLUMN)


def _spans_lines(file: Path) -> bool:
    """Whether a row near the start of a CSV file has a line break within quotes, and is whole with it."""
    try:
        with opened_csv(file) as text:
            rows = csv.reader(itertools.islice(text, _LINES_LOOKED_AT), strict=True)
            width = len(next(rows, []))
            line = rows.line_num
            for row in rows:
                if rows.line_num > line + 1 and len(row) == width:
                    return True
                line = rows.line_num
    except (OSError, csv.Error):  # Spark will say what is wrong; or a quote that is never closed
        pass
    return False


def _check_separator(place: str, names: Sequence[str]) -> None:
    """Refuse what is separated by something else: all would be one column."""
    found = [mark for mark in ";\t|" if len(names) == 1 and mark in names[0]]
    if found:
        problem = f"its header is one column, {names[0]!r}, separated by {found[0]!r}"
        way_out = f"write it with commas: pandas.read_csv(..., sep={found[0]!r}).to_csv(..., index=False)"
        raise SourceUnreadable(place, problem, way_out)


def _check_lines(spark: SparkSession, place: str, has_columns: bool) -> None:
    """Refuse JSON that is one array or is indented: each line of it would be a malformed row."""
    first = spark.read.text(place).where(F.trim("value") != "").head()
    if first is None:
        return
    is_array = str(first["value"]).removeprefix("\ufeff").lstrip().startswith("[")
    if is_array or not has_columns:
        problem = "it is one array" if is_array else "no line of it is an object with a value"
        way_out = "give one object a line, as pandas' to_json(…, orient='records', lines=True) does"
        raise SourceUnreadable(place, problem, way_out)


def _ddl_type(given: DataType) -> str:
    """A type as DDL, whatever the names in it; simpleString quotes none, and cuts long ones short."""
    if isinstance(given, StructType):
        inner = (f"{quoted(field.name)}: {_ddl_type(field.dataType)}" for field in given.fields)
        return f"struct<{', '.join(inner)}>"
    if isinstance(given, ArrayType):
        return f"array<{_ddl_type(given.elementType)}>"
    return given.simpleString()


def _kind_of(name: str) -> SourceKind:
    path = Path(name)
    while path.suffix in _PACKED:
        path = path.with_suffix("")
    return _SUFFIXES.get(path.suffix.lower(), "parquet")


def _check_parquet(file: Path) -> None:
    """Refuse what is no Parquet, or has columns that Spark can't tell apart, before Spark is started."""
    way_out = "give Parquet, CSV (.csv) or JSON lines (.json)"
    if not file.stat().st_size:
        raise SourceUnreadable(str(file), "the file is empty", way_out)
    try:
        names = pq.read_schema(file).names
    except (OSError, pa.ArrowException):
        raise SourceUnreadable(str(file), "it is no Parquet file", way_out) from None
    counts = Counter(name.lower() for name in names)
    if doubled := [name for name in names if counts[name.lower()] > 1]:
        way_out = "rename one of each where the file is written"
        problem = f"Spark can't tell the columns {', '.join(doubled)} apart"
        raise SourceUnreadable(str(file), problem, way_out)
