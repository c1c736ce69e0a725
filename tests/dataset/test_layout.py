"""What parts store: the schema, and that packing loses and mixes up nothing."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparktrain.dataset import ColumnSpec, Dataset, Manifest
from sparktrain.dataset.layout import Layout, pack, stored_columns, stored_schema, unpack
from sparktrain.errors import DatasetInvalid, SchemaMismatch
from sparktrain.testing import write_tiny_dataset

LAYOUTS: tuple[Layout, ...] = ("columns", "blocks")


def spec(name: str, dtype: str, role: str = "feature", shape: tuple[int, ...] = ()) -> ColumnSpec:
    return ColumnSpec.model_validate({"name": name, "dtype": dtype, "role": role, "shape": shape})


SPECS = (
    spec("id", "int64", "row_id"),
    spec("a", "float32"),
    spec("code", "int32"),
    spec("carrier", "string", "passthrough"),
    spec("b", "float32"),
    spec("image", "uint8", shape=(2, 3, 1)),
    spec("text", "string"),
    spec("late", "float32", "target"),
)


def test_columns_stand_by_themselves_and_a_shape_is_fixed_size_binary() -> None:
    assert [(f.name, str(f.type), f.nullable) for f in stored_schema(SPECS, "columns")] == [
        ("id", "int64", False),
        ("a", "float", False),
        ("code", "int32", False),
        ("carrier", "string", False),
        ("b", "float", False),
        ("image", "fixed_size_binary[6]", False),
        ("text", "string", False),
        ("late", "float", False),
    ]


def test_blocks_hold_the_scalar_features_of_a_dtype() -> None:
    assert [(f.name, str(f.type), f.nullable) for f in stored_schema(SPECS, "blocks")] == [
        ("id", "int64", False),
        ("block_float32", "fixed_size_binary[8]", False),
        ("block_int32", "fixed_size_binary[4]", False),
        ("carrier", "string", False),
        ("image", "fixed_size_binary[6]", False),
        ("text", "string", False),
        ("late", "float", False),
    ]
    needed = stored_columns(SPECS, "blocks", ["late", "b"])
    assert [(c.name, c.members) for c in needed] == [("block_float32", ("a", "b")), ("late", ())]


@pytest.mark.parametrize("first", [True, False])
def test_a_column_must_not_have_the_name_of_a_block(first: bool) -> None:
    block, feature = spec("block_float32", "float32", "target"), spec("a", "float32")
    both = [block, feature] if first else [feature, block]
    assert stored_schema(both, "columns").names == [column.name for column in both]
    with pytest.raises(ValueError, match="no column may be called block_float32"):
        stored_schema(both, "blocks")


def values_of(column: ColumnSpec, rows: int, random: np.random.Generator) -> np.ndarray:
    if column.dtype == "string":
        return np.array([str(word) for word in random.choice(["", "ä", "a\0b", "row"], rows)], object)
    dtype, count = np.dtype(column.dtype), rows * prod(column.shape)
    # Any bits: NaNs of every kind, infinities and minus zero among them.
    return np.frombuffer(random.bytes(count * dtype.itemsize), dtype).reshape(rows, *column.shape)


specs = st.lists(
    st.one_of(
        st.builds(
            lambda dtype, role, shape: (dtype, role, tuple(shape)),
            st.sampled_from(["float32", "float64", "int32", "int64", "uint8"]),
            st.sampled_from(["feature", "passthrough", "target", "weight"]),
            st.lists(st.integers(1, 3), max_size=3),
        ),
        st.just(("string", "passthrough", ())),
        st.just(("string", "feature", ())),
    ),
    min_size=1,
    max_size=8,
).map(lambda drawn: [spec(f"c{i}", dtype, role, shape) for i, (dtype, role, shape) in enumerate(drawn)])


def as_seen(values: np.ndarray, column: ColumnSpec) -> Any:
    return [row.ravel().tolist() for row in values] if column.shape else values.tolist()


@given(specs, st.integers(0, 5), st.sampled_from(LAYOUTS), st.integers(0, 2**32))
def test_unpack_returns_what_was_packed(
    columns: list[ColumnSpec], rows: int, layout: Layout, seed: int
) -> None:
    random = np.random.default_rng(seed)
    values = {column.name: values_of(column, rows, random) for column in columns}
    stored = pack(values, columns, layout)
    assert stored.schema == stored_schema(columns, layout)
    stored.validate(full=True)
    logical = unpack(stored, columns, layout)
    assert logical.schema == pa.schema([column.field for column in columns])
    logical.validate(full=True)
    # repr, because a NaN is not equal to itself
    wanted = {column.name: as_seen(values[column.name], column) for column in columns}
    assert repr(logical.to_pydict()) == repr(wanted)

    # A reader gets slices of larger buffers, in several chunks.
    start = int(random.integers(0, rows + 1))
    pieces = pa.concat_tables([stored.slice(start), stored.slice(0, start)])
    turned = {name: kept[start:] + kept[:start] for name, kept in wanted.items()}
    assert repr(unpack(pieces, columns, layout).to_pydict()) == repr(turned)

    names = [column.name for column in columns]
    some = [str(name) for name in random.permutation(names)[: random.integers(1, len(names) + 1)]]
    needed = [column.name for column in stored_columns(columns, layout, some)]
    chosen = unpack(stored.select(needed), columns, layout, some)
    assert chosen.column_names == some
    assert repr(chosen.to_pydict()) == repr({name: wanted[name] for name in some})


def test_a_vector_is_packed_and_read_without_a_copy() -> None:
    columns = [spec("v", "float32", shape=(4,))]
    given = np.arange(40, dtype=np.float32).reshape(10, 4)
    stored = pack({"v": given}, columns, "columns")
    (column,) = stored_columns(columns, "columns")
    assert np.shares_memory(column.values(stored["v"]), given)
    assert np.shares_memory(column.values(stored.slice(3, 2)["v"]), given[3:5])
    flat = unpack(stored, columns, "columns")["v"].chunk(0).flatten()
    assert np.shares_memory(flat.to_numpy(), given)


def test_bytes_are_row_major_and_little_endian_whatever_is_given() -> None:
    columns = [spec("v", "int32", shape=(2, 2)), spec("x", "int32"), spec("y", "int32")]
    vector = np.asfortranarray(np.array([[[1, 2], [3, 4]]], np.int32))
    one = np.array([256], np.int32)
    stored = pack({"v": vector, "x": one, "y": -one}, columns, "blocks")
    assert stored["v"].to_pylist() == [bytes([1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0])]
    assert stored["block_int32"].to_pylist() == [bytes([0, 1, 0, 0, 0, 255, 255, 255])]


def test_values_that_do_not_fit_are_refused_all_at_once() -> None:
    columns = [spec("a", "float32"), spec("b", "float32", shape=(2,)), spec("c", "int64"), spec("d", "int32")]
    given = {
        "a": np.zeros(3, np.float64),
        "b": np.zeros((3, 4), np.float32),
        "cc": np.zeros(3, np.int64),
        "d": np.zeros(1, np.int32),
    }
    for layout in LAYOUTS:
        with pytest.raises(SchemaMismatch) as caught:
            pack(given, columns, layout)
        for said in (
            "missing column `c` (there is `cc`)",
            "unexpected column `cc`",
            "column `a` is float64[3], expected float32[3]",
            "column `b` is float32[3, 4], expected float32[3, 2]",
            "column `d` is int32[1], expected int32[3]",
        ):
            assert said in str(caught.value)


def test_a_null_in_text_is_refused() -> None:
    with pytest.raises(SchemaMismatch, match="column `t` is nullable string, expected string"):
        pack({"t": np.array(["a", None], object)}, [spec("t", "string", "passthrough")], "columns")


@pytest.fixture(params=LAYOUTS)
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> Dataset:
    return write_tiny_dataset(
        tmp_path / "tiny", [[10, 3], [], [7]], vector_shape=(2, 3), text=True, layout=request.param
    )


def test_a_dataset_is_seen_the_same_in_both_layouts(dataset: Dataset, tmp_path: Path) -> None:
    other = write_tiny_dataset(tmp_path / "other", [[20]], vector_shape=(2, 3), text=True)
    assert dataset.to_arrow("train").equals(other.to_arrow("train").combine_chunks())
    assert dataset.to_arrow("train").schema == dataset.manifest.logical_schema
    assert str(dataset.to_arrow("train").schema.field("vector").type) == "fixed_size_list<item: float>[6]"
    assert dataset.to_arrow("test").schema == dataset.manifest.logical_schema
    some = ["text", "numeric_1", "vector"]
    assert dataset.to_arrow("train", some).equals(other.to_arrow("train").select(some))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_name_of_a_block_is_refused_by_the_manifest(layout: Layout, tmp_path: Path) -> None:
    dataset = write_tiny_dataset(tmp_path / "tiny", 10, layout=layout)
    file = dataset.path / "manifest.json"
    file.write_text(file.read_text().replace('"label"', '"block_float32"'))
    if layout == "columns":
        assert "block_float32" in Manifest.load(dataset.path).schema.names
    else:
        with pytest.raises(DatasetInvalid, match="no column may be called block_float32"):
            Manifest.load(dataset.path)


def test_anyone_reads_a_part_of_columns(tmp_path: Path) -> None:
    dataset = write_tiny_dataset(tmp_path / "tiny", 100, num_parts=1, vector_shape=(2,), text=True)
    file = dataset.path / dataset.manifest.splits["train"].parts[0].path
    wanted = dataset.to_arrow("train")
    plain = pq.read_table(file)
    scalars = [name for name in wanted.column_names if name != "vector"]
    assert plain.select(scalars).equals(wanted.select(scalars))
    frame = pd.read_parquet(file)
    assert frame["numeric_0"].dtype == np.float32
    assert frame["text"].tolist() == wanted["text"].to_pylist()
    vectors = np.frombuffer(b"".join(frame["vector"]), "<f4").reshape(-1, 2)
    assert vectors.tolist() == wanted["vector"].to_pylist()


def test_duckdb_reads_a_part_of_columns(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    dataset = write_tiny_dataset(tmp_path / "tiny", 100, num_parts=1, vector_shape=(2,), text=True)
    file = dataset.path / dataset.manifest.splits["train"].parts[0].path
    query = f"select row_id, category_0, label, text from '{file}' order by row_id"
    wanted = dataset.to_arrow("train", ["row_id", "category_0", "label", "text"])
    assert duckdb.sql(query).fetchall() == [tuple(row.values()) for row in wanted.to_pylist()]
