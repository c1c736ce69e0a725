"""What prepare writes is what `FittedFeatures.transform` makes of the raw rows without Spark, to the bit."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from pyspark.sql import DataFrame, SparkSession

from sparktrain.config import PrepareConfig, SplitConfig
from sparktrain.dataset import Dataset
from sparktrain.features import (
    Boolean,
    Categorical,
    Feature,
    FittedFeatures,
    Image,
    Numeric,
    Passthrough,
    Target,
    Timestamp,
    Tokens,
    Vector,
)
from sparktrain.preparation import prepare
from sparktrain.preparation.split import SPLITS, row_id
from tests.preparation.conftest import KEY

pytestmark = pytest.mark.spark

NAN, INFINITY = float("nan"), float("inf")
CLOCK = {"parts": ("minute", "hour", "day", "day_of_week", "day_of_year", "month")}
YEAR = {"parts": ("year", "hour"), "cyclic": False}
COLUMNS: dict[str, pa.DataType] = {
    "x": pa.float64(),
    "f": pa.float32(),
    "n": pa.int64(),
    "i": pa.int32(),
    "d": pa.decimal128(20, 5),
    "tame": pa.float64(),
    "whole": pa.int16(),
    "b": pa.bool_(),
    "s": pa.string(),
    "t": pa.timestamp("us", tz="UTC"),
    "wall": pa.timestamp("us"),
    "day": pa.date32(),
    "doubles": pa.list_(pa.float64()),
    "longs": pa.list_(pa.int64()),
    "packed": pa.binary(),
    "image": pa.binary(),
    "ids": pa.list_(pa.int32()),
}
SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("split", pa.string()),
        *COLUMNS.items(),
        ("late", pa.bool_()),
        ("delay", pa.float64()),
    ]
)
FEATURES: list[Feature] = [
    Passthrough("id"),
    Numeric("x_standard", column="x"),
    Numeric("x_minmax", column="x", normalize="minmax", clip=(-5, 5), nan=7, infinity="clip", null_flag=True),
    Numeric("x_log", column="x", normalize="log1p", fill="median", null_flag=True),
    Numeric("x_plain", column="x", normalize="none", fill=3.5, infinity="clip", nan=-0.5),
    Numeric("x_below", column="x", clip=(None, 10.0), fill="median"),
    Numeric("f_standard", column="f", fill="median"),
    Numeric("f_minmax", column="f", normalize="minmax", clip=(-1e6, None)),
    Numeric("n_standard", column="n", null_flag=True),
    Numeric("i_minmax", column="i", normalize="minmax", fill=0.1),
    Numeric("d_standard", column="d", fill="median"),
    Numeric("d_plain", column="d", normalize="none", fill=-1.0),
    Numeric("tame_robust", column="tame", normalize="robust"),
    Numeric("whole_robust", column="whole", normalize="robust", fill="median", null_flag=True),
    Numeric("whole_log", column="whole", normalize="log1p", clip=(-0.5, 100)),
    Categorical("s_code", column="s", max_size=3),
    Categorical("s_hash", column="s", encoding="hash", num_buckets=7),
    Categorical("i_code", column="i", min_count=2),
    Categorical("n_hash", column="n", encoding="hash"),
    Categorical("b_code", column="b"),
    Categorical("b_hash", column="b", encoding="hash", num_buckets=2),
    Boolean("b_one", column="b", fill=True, null_flag=True),
    Boolean("b_zero", column="b"),
    Timestamp("t_circle", column="t", time_zone="Europe/Berlin", **CLOCK),
    Timestamp("t_year", column="t", time_zone="America/New_York", null_flag=True, **YEAR),
    Timestamp("t_utc", column="t"),
    Timestamp("wall_circle", column="wall", time_zone="Asia/Kolkata", null_flag=True, **CLOCK),
    Timestamp("wall_year", column="wall", **YEAR),
    Timestamp("day_year", column="day", time_zone="Asia/Kolkata", null_flag=True, **YEAR),
    Vector("v", column="doubles", shape=3),
    Vector("v64", column="doubles", shape=(3, 1), dtype="float64"),
    Vector("whole_v", column="longs", shape=(2,), dtype="int64"),
    Vector("packed_v", column="packed", shape=(1, 3)),
    Vector("packed_bytes", column="packed", shape=12, dtype="uint8"),
    Image("pixels", column="image", shape=(2, 3, 3)),
    Tokens("letters", column="s", block_size=3, tokenizer="letter_numbers:numbers"),
    Tokens("text_bytes", column="s", block_size=5, tokenizer="bytes", pad_id=-1),
    Tokens("given_ids", column="ids", block_size=3),
    Passthrough("x_on", column="x", fill=0.25),
    Passthrough("n_on", column="n", fill=-1),
    Passthrough("b_on", column="b", fill=True),
    Passthrough("s_on", column="s", fill="no text"),
    Passthrough("t_on", column="t", fill=0),
    Passthrough("wall_on", column="wall", fill=-7),
    Passthrough("day_on", column="day", fill=1),
]
TARGETS = [Target("late"), Target("delay", kind="regression")]
# pandas has one missing value for null and NaN, and large integers become floats beside a missing one.
LOST_BY_PANDAS = ("x_minmax", "x_plain", "x_on", "n_standard", "n_hash", "n_on", "whole_v")


def png(fill: int) -> bytes:
    buffer = io.BytesIO()
    Pillow.fromarray(np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * fill).save(buffer, "PNG")
    return buffer.getvalue()


def floats(*values: float) -> bytes:
    return np.array(values, "<f4").tobytes()


SUMMER = datetime(2013, 7, 1, 12, 30, 59, 999_999, tzinfo=UTC)
EDGES: list[tuple[Any, ...]] = [
    (None,) * len(COLUMNS),
    (
        NAN, NAN, 2**63 - 1, 2**31 - 1, Decimal("999999999999999.99999"), NAN, -1, True, "", SUMMER,
        SUMMER.replace(tzinfo=None), date(2013, 3, 31), [NAN, INFINITY, None], [2**63 - 1, None],
        floats(NAN, -INFINITY, -0.0), bytes(range(18)), [2**31 - 1, 0, 1, 2],
    ),
    (
        INFINITY, -INFINITY, -(2**63), -(2**31), Decimal("-0.00001"), -INFINITY, 0, False, "null",
        datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), datetime(1900, 1, 1), date(1899, 12, 31),
        [-0.0, 5e-324, 1e30], [-(2**63), 0], floats(1, 2, 3), png(7), [],
    ),
    (
        -INFINITY, INFINITY, 2**53 + 1, 0, Decimal(0), 0.0, 3, None, "\0",
        datetime(2013, 3, 31, 0, 59, 59, tzinfo=UTC), datetime(2013, 3, 31, 2, 30), date(2012, 2, 29),
        [0.1, 0.2, 0.3], [1, 2], floats(0.1, -0.1, 1e-45), bytes(18), [-5],
    ),
    (
        -0.0, -0.0, 0, -1, Decimal("0.1"), -0.0, 3, True, "日本😀", datetime(2013, 3, 31, 1, 0, tzinfo=UTC),
        datetime(2013, 10, 27, 2, 30), date(1970, 1, 1), None, None, None, None, [1, 2, 3],
    ),
    (
        5e-324, 1e-45, 1, 1, Decimal(1), 0.125, 4, True, "a", datetime(2013, 10, 27, 0, 30, tzinfo=UTC),
        datetime(1970, 1, 1), date(2037, 12, 31), [1e-300, -1e30, 2.5], [0, 0], floats(9, 9, 9), png(1), [7],
    ),
    (
        1e30, 1e30, 2, 2, Decimal(3), -3.0, 32767, False, "a", datetime(2037, 6, 1, tzinfo=UTC),
        datetime(2037, 6, 1, 5, 6, 7, 8), date(2013, 7, 1), [1, 2, 3], [3, 4], floats(0, 0, 0), png(2), [1],
    ),
    (
        -1e30, -1e30, 3, 3, Decimal("0.30000"), 8.0, -32768, False, "A", datetime(1901, 1, 1, tzinfo=UTC),
        datetime(2000, 2, 29, 23, 59, 59, 999_999), date(2000, 2, 29), [0.0, 0.0, 1.0], [5, 6],
        floats(-1, -1, -1), png(3), [2, 2],
    ),
]  # fmt: skip

wide = st.floats(-1e30, 1e30) | st.sampled_from([NAN, INFINITY, -INFINITY])
text = st.sampled_from(["a", "A", "é", "e\u0301", "\n", "\\", "`", "\u2028"]) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=8
)  # Spark's text is UTF-8, which has no lone surrogates
moments = st.datetimes(datetime(1905, 1, 1), datetime(2037, 12, 31))
inner = st.none() | st.floats(-1e30, 1e30) | st.sampled_from([NAN, INFINITY, -0.0])
row = st.tuples(
    *(
        st.none() | strategy
        for strategy in (
            wide,
            st.floats(-(2.0**99), 2.0**99, width=32) | st.sampled_from([NAN, INFINITY]),
            st.integers(-(2**63), 2**63 - 1),
            st.integers(-(2**31), 2**31 - 1) | st.integers(-2, 3),
            st.decimals(-(10**14), 10**14, places=5),
            st.integers(-8000, 8000).map(lambda number: number / 8),
            st.integers(-(2**15), 2**15 - 1),
            st.booleans(),
            text,
            moments.map(lambda moment: moment.replace(tzinfo=UTC)),
            moments,
            st.dates(date(1905, 1, 1), date(2037, 12, 31)),
            st.lists(inner, min_size=3, max_size=3),
            st.lists(st.none() | st.integers(-(2**53), 2**53), min_size=2, max_size=2),
            st.binary(min_size=12, max_size=12),
            st.binary(min_size=18, max_size=18) | st.integers(0, 13).map(png),
            st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5),
        )
    )
)
WITHOUT_SHRINKING = (Phase.explicit, Phase.reuse, Phase.generate)  # every example is two Spark jobs
many_rows = st.lists(st.tuples(st.sampled_from(SPLITS), row), min_size=3, max_size=80)


def table_of(drawn: list[tuple[str, tuple[Any, ...]]]) -> pa.Table:
    """EDGES are training rows; `id` counts rows."""
    rows = [("train", edge) for edge in EDGES] + [(split, EDGES[4]) for split in SPLITS] + drawn
    columns = [
        list(range(len(rows))),
        [split for split, _ in rows],
        *([values[i] for _, values in rows] for i in range(len(COLUMNS))),
        [number % 3 == 0 for number in range(len(rows))],
        [number / 7 - 2 for number in range(len(rows))],
    ]
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)


@dataclass
class House:
    """One way for Spark to be, and where to write."""

    spark: SparkSession
    layout: Any
    directory: Path

    def prepare(self, table: pa.Table) -> Dataset:
        pq.write_table(table, self.directory / "raw.parquet", row_group_size=31)
        config = PrepareConfig(
            split=SplitConfig(method="column", column="split", validation=None, test=None, seed=None),
            num_parts=2,
            rows_per_row_group=16,
            layout=self.layout,
        )
        raw = self.spark.read.parquet(str(self.directory / "raw.parquet"))
        return prepare(raw, FEATURES, TARGETS, config, root=self.directory, key=["id"])


@pytest.fixture(
    scope="module",
    params=[
        ("true", "America/St_Johns", "columns"),
        ("false", "Asia/Kolkata", "blocks"),
    ],
    ids=["ansi", "no_ansi"],
)
def house(
    spark: SparkSession, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[House]:
    directory = tmp_path_factory.mktemp("apply")
    code = "def numbers(text):\n    return [ord(letter) for letter in text]\n"
    (directory / "letter_numbers.py").write_text(code)
    spark.sparkContext.addPyFile(str(directory / "letter_numbers.py"))
    ansi, zone, layout = request.param
    wanted = {"spark.sql.ansi.enabled": ansi, "spark.sql.session.timeZone": zone}
    before = {name: spark.conf.get(name) for name in wanted}
    for name, value in wanted.items():
        spark.conf.set(name, value)
    yield House(spark, layout, directory)
    for name, value in before.items():
        spark.conf.set(name, value or "")


def assert_same(dataset: Dataset, features: FittedFeatures, raw: pa.Table) -> None:
    """Hold what is stored of `features` against what they make of `raw`, whose `id` is the row's number."""
    expected = features.transform(raw) | features.transform_targets(raw)
    seen = []
    for split in SPLITS:
        stored = dataset.to_arrow(split)
        places = stored["id"].to_numpy()
        assert set(raw["split"].take(pa.array(places)).to_pylist()) == {split}
        seen += places.tolist()
        for name, values in expected.items():
            column = stored[name].combine_chunks()
            if values.dtype == object:
                assert column.to_pylist() == values[places].tolist(), name
                continue
            while pa.types.is_fixed_size_list(column.type):
                column = column.flatten()
            assert column.to_numpy().tobytes() == values[places].tobytes(), name
    assert sorted(seen) == list(range(len(raw)))


@settings(max_examples=4, phases=WITHOUT_SHRINKING, suppress_health_check=list(HealthCheck))
@given(drawn=many_rows)
def test_prepare_writes_what_transform_gives(house: House, drawn: list[tuple[str, tuple[Any, ...]]]) -> None:
    raw = table_of(drawn)
    dataset = house.prepare(raw)
    assert_same(dataset, dataset.features, raw)

    kept = tuple(f for f in dataset.features.features if f.name not in LOST_BY_PANDAS)
    by_pandas = pa.Table.from_pandas(raw.drop_columns(["n"]).to_pandas(), preserve_index=False)
    assert_same(dataset, dataset.features.model_copy(update={"features": kept}), by_pandas)


def test_cleaned_and_hashed_rows_keep_their_features(rows: DataFrame, prepared: Dataset) -> None:
    raw = {r["row_id"]: r.asDict() for r in rows.select("*", row_id(KEY).alias("row_id")).collect()}
    assert len(raw) == rows.count()
    for split in SPLITS:
        table = prepared.to_arrow(split)
        schema = pa.schema([("amount", pa.float64()), ("size", pa.int32()), ("colour", pa.string())])
        source = [raw[number] for number in table["row_id"].to_pylist()]
        expected = prepared.features.transform(pa.Table.from_pylist(source, schema))
        assert {name: table[name].to_numpy().tobytes() for name in expected} == {
            name: values.tobytes() for name, values in expected.items()
        }
        assert table["bought"].to_pylist() == [r["bought"] for r in source]
