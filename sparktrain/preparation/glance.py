"""A glance at raw rows nobody has declared anything about: what each column holds, in one aggregate pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, DataType

from sparktrain.preparation.analysis import spark_settings
from sparktrain.preparation.check import input_type

_SKETCH_BITS = 14  # up to some two thousand values are counted exactly, more within one per cent
_COLUMNS_PER_PASS = 100  # Spark's time to plan a query grows faster than its number of columns
_TIMES = ("timestamp", "date")
_NUMBERS = ("long", "double")


@dataclass(frozen=True)
class Seen:
    """What was seen of a column, in the rows that have a target.

    Attributes:
        type: Spark's, "bigint" say.
        kind: how features read it ("long", "double", "string", "boolean", "timestamp", "date", "binary",
            "longs", "doubles"); None: as nothing that they know.
        rows: rows that have a target.
        count: of these, rows that have a value.
        distinct: different values, within one per cent; 0 where they can't be counted.
        pairs: different pairs of a value and the target's.
        same: rows whose value is the target's.
        low, high: of numbers, finite ones; of times, seconds since 1970; of arrays, sizes.
        largest: of arrays of numbers, the largest number of any, without its sign.
        mean, deviation: of finite numbers, or of booleans as 0 and 1.
        whole: of numbers: all are whole.
        mean_length: of texts, in characters.
        numeric_texts, time_texts: texts that are a number, or a timestamp.
        whole_texts, padded_texts: texts that are a whole number; numbers with zeros in front, as codes have.
        has_hours: of timestamps: not all of them are midnights in UTC.
        correlation: with the target, where both are numbers.
        separates: numbers of one class of a 0/1 target are all below those of the other.
    """

    column: str
    type: str
    kind: str | None
    rows: int
    count: int
    distinct: int = 0
    pairs: int = 0
    same: int = 0
    low: float | None = None
    high: float | None = None
    largest: float | None = None
    mean: float | None = None
    deviation: float | None = None
    whole: bool = False
    mean_length: float = 0.0
    numeric_texts: int = 0
    time_texts: int = 0
    whole_texts: int = 0
    padded_texts: int = 0
    has_hours: bool = False
    correlation: float | None = None
    separates: bool = False

    @property
    def nulls(self) -> int:
        return self.rows - self.count

    @property
    def nulls_fraction(self) -> float:
        return self.nulls / self.rows if self.rows else 0.0


@dataclass(frozen=True)
class Glance:
    """The columns that were looked at, by name in their order, the target's among them.

    Attributes:
        rows: all of them, also those without a target.
    """

    rows: int
    columns: Mapping[str, Seen]


def glance(df: DataFrame, target: str, columns: Sequence[str]) -> Glance:
    """Look at `columns` of the rows that have a target: one aggregate pass over `df` for each 100 of them."""
    types = {field.name: field.dataType for field in df.schema.fields}
    others = [name for name in dict.fromkeys(columns) if name != target]
    rows = 0
    seen: dict[str, Seen] = {}
    for first in range(0, max(len(others), 1), _COLUMNS_PER_PASS):
        rows, found = _pass(df, types, [target, *others[first : first + _COLUMNS_PER_PASS]])
        seen |= found
    return Glance(rows, {name: seen[name] for name in types if name in seen})


def _pass(df: DataFrame, types: Mapping[str, DataType], names: Sequence[str]) -> tuple[int, dict[str, Seen]]:
    """The number of all rows, and what was seen of the columns; the first one is the target."""
    target = types[names[0]]
    given = F.col(f"`{names[0]}`")
    present = given.isNotNull()
    if input_type(target) == "double":
        present = present & ~F.isnan(given.cast("double"))
    # by number, because names may hold anything
    shown = df.select(*[F.when(present, F.col(f"`{name}`")).alias(f"_{i}") for i, name in enumerate(names)])
    asked = [
        F.struct(*[column.alias(key) for key, column in _asked(i, types[name], target).items()])
        for i, name in enumerate(names)
    ]
    counted = shown.agg(F.count(F.lit(1)).alias("rows"), *[a.alias(f"_{i}") for i, a in enumerate(asked)])
    # Spark would otherwise double all that it knows for each alias of a column, as in the survey.
    with spark_settings(df.sparkSession, {"spark.sql.constraintPropagation.enabled": "false"}):
        (row,) = counted.collect()
    rows = row["_0"]["count"]
    found = [row[f"_{i}"].asDict() for i in range(len(names))]
    return row["rows"], {n: _seen(n, types[n], rows, facts) for n, facts in zip(names, found, strict=True)}


def _asked(number: int, given: DataType, target: DataType) -> dict[str, Column]:
    """The aggregates of a column, which is called `_<number>`; the target is `_0`."""
    kind, of_target, name = input_type(given), input_type(target), f"_{number}"
    column = F.col(name)
    asked = {"count": F.count(column)}
    if kind in (*_NUMBERS, "string", "boolean", *_TIMES):
        asked["distinct"] = _distinct(F.when(column.isNotNull(), F.xxhash64(name)))
        asked["pairs"] = _distinct(F.when(column.isNotNull(), F.xxhash64(name, "_0")))
        if kind == of_target or {kind, of_target} <= set(_NUMBERS):
            asked["same"] = F.count(F.when(column == F.col("_0"), 1))
    if kind in _NUMBERS:
        asked |= _of_numbers(column.cast("double"), of_target)
    elif kind == "string":
        asked["mean_length"] = F.avg(F.length(column))
        for key, read_as in (("numeric_texts", "double"), ("time_texts", "timestamp")):
            asked[key] = F.count(F.expr(f"try_cast(trim({name}) AS {read_as})"))
        for key, pattern in (
            ("whole_texts", r"^\s*[+-]?\d{1,18}\s*$"),
            ("padded_texts", r"^\s*[+-]?0\d+\s*$"),
        ):
            asked[key] = F.count(F.when(column.rlike(pattern), 1))
    elif kind == "boolean":
        asked["mean"] = F.avg(column.cast("int"))
    elif kind in _TIMES:
        seconds = F.unix_timestamp(column.cast("timestamp")).cast("double")
        asked |= {"low": F.min(seconds), "high": F.max(seconds)}
        asked["has_hours"] = F.count(F.when(seconds % 86400 != 0, 1))
    elif isinstance(given, ArrayType):
        size = F.when(column.isNotNull(), F.size(column))  # -1 of a null, where ANSI mode is off
        asked |= {"low": F.min(size), "high": F.max(size)}
        if kind in ("doubles", "longs"):
            numbers = F.filter(column, lambda x: F.abs(x.cast("double")) < F.lit(float("inf")))
            asked["largest"] = F.max(F.array_max(F.transform(numbers, lambda x: F.abs(x.cast("double")))))
    return asked


def _distinct(hashed: Column) -> Column:
    # approx_count_distinct, as exact as this, would need thousands of columns in the aggregate's buffer.
    return F.hll_sketch_estimate(F.hll_sketch_agg(hashed, _SKETCH_BITS))


def _of_numbers(number: Column, of_target: str | None) -> dict[str, Column]:
    finite = F.when(F.abs(number) < F.lit(float("inf")), number)  # NaN is above infinity
    asked = {
        "low": F.min(finite),
        "high": F.max(finite),
        "mean": F.avg(finite),
        "deviation": F.stddev_pop(finite),
        "fractions": F.count(F.when(finite != F.floor(finite), 1)),
    }
    if of_target not in ("boolean", *_NUMBERS):
        return asked
    target = F.col("_0").cast("double")
    asked["correlation"] = F.corr(finite, target)
    for value in (0, 1):
        of_class = F.when(target == value, finite)
        asked |= {f"low_{value}": F.min(of_class), f"high_{value}": F.max(of_class)}
    return asked


def _seen(name: str, given: DataType, rows: int, facts: dict[str, float | None]) -> Seen:
    def number(key: str) -> int:
        return int(facts.get(key) or 0)

    ends = [facts.get(key) for key in ("high_0", "low_1", "high_1", "low_0")]
    separates = None not in ends and (ends[0] < ends[1] or ends[2] < ends[3])  # type: ignore[operator]
    return Seen(
        column=name,
        type=given.simpleString(),
        kind=input_type(given),
        rows=rows,
        count=number("count"),
        distinct=min(number("distinct"), number("count")),
        pairs=number("pairs"),
        same=number("same"),
        low=facts.get("low"),
        high=facts.get("high"),
        largest=facts.get("largest"),
        mean=facts.get("mean"),
        deviation=facts.get("deviation"),
        whole="fractions" in facts and not facts["fractions"],
        mean_length=facts.get("mean_length") or 0.0,
        numeric_texts=number("numeric_texts"),
        time_texts=number("time_texts"),
        whole_texts=number("whole_texts"),
        padded_texts=number("padded_texts"),
        has_hours=bool(facts.get("has_hours")),
        correlation=facts.get("correlation"),
        separates=separates,
    )
