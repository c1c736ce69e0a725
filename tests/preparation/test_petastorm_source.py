"""What Petastorm wrote becomes a dataset of ours: without Petastorm, and without reading a pickle."""

from __future__ import annotations

import io
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from sparktrain.config import PrepareConfig
from sparktrain.errors import CellsUnreadable, NameUnknown, SourceMissing
from sparktrain.features import Categorical, Image, Numeric, Target, Tokens, Vector
from sparktrain.preparation import prepare, read_petastorm
from sparktrain.preparation.petastorm_source import Cell, _decode, _decode_batches
from tests.fixtures.write_petastorm_dataset import DATASET, IMAGE_SHAPE, NUM_ROWS, row_of


def npy(value: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, value)
    return file.getvalue()


def npz(value: Any) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, arr=value)
    return file.getvalue()


def decode(values: list[bytes | None], dtype: str = "float32", shape: tuple[int, ...] = (2,)) -> list[Any]:
    found: list[Any] = _decode("x", pa.array(values, pa.binary()), Cell(dtype, shape)).to_pylist()
    return found


def test_both_codecs_and_nulls_become_lists() -> None:
    first, second = np.array([1, 2], np.float32), np.array([3, 4], np.float32)
    assert decode([None, npy(first), None, npz(second), None]) == [None, [1, 2], None, [3, 4], None]
    assert decode([]) == []
    assert decode([None]) == [None]


def test_shapes_are_row_major_whatever_the_array_was() -> None:
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    values = [npy(matrix), npy(np.asfortranarray(matrix)), npy(matrix.astype(">f4")), npz(matrix)]
    assert decode(values, shape=(2, 3)) == [[0, 1, 2, 3, 4, 5]] * 4


def test_an_array_without_a_shape_is_a_number_and_vectors_may_differ_in_length() -> None:
    assert decode([None, npy(np.float32(7)), npy(np.float32(8))], shape=()) == [None, 7, 8]
    assert decode([npy(np.zeros(n, np.float32)) for n in (2, 0, 3)]) == [[0, 0], [], [0, 0, 0]]


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [("bool", pa.int8()), ("uint8", pa.int16()), ("uint32", pa.int64()), ("float16", pa.float32())],
)
def test_what_spark_does_not_have_becomes_the_next_larger_type(dtype: str, kind: pa.DataType) -> None:
    values = np.array([0, 1], dtype)
    found = _decode("x", pa.array([npy(values)]), Cell(dtype, (2,)))
    assert found.type.value_type == kind
    assert found.to_pylist() == [[0, 1]]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (npy(np.zeros(2, np.float64)), r"a value is float64\[2\], the first one is float32\[2\]"),
        (npy(np.zeros((2, 1), np.float32)), r"a value is float32\[2, 1\]"),
        (npy(np.zeros(2, np.float32))[:-3], "can't be read as an array"),
        (npz(np.zeros(2, np.float32))[:-9], "can't be read as an array"),
        (b"\x93NUMPY rubbish", "can't be read as an array"),
        (b"\x89PNG", "a value is no array, unlike the first"),
        (b"", "a value is no array"),
        (npy(np.array([{}, []], object)), "can't be read as an array"),
    ],
)
def test_a_value_that_is_no_such_array_is_told_with_its_column(value: bytes, told: str) -> None:
    with pytest.raises(CellsUnreadable, match=f"column `x` .*{told}"):
        decode([npy(np.zeros(2, np.float32)), value])


def test_an_array_with_a_pickle_in_it_is_refused_unread(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.mkdir, (tmp_path / "was_run",)

    for value in (npy(np.array([Evil(), 1], object)), npz(np.array([Evil(), 1], object))):
        with pytest.raises(CellsUnreadable, match="Object arrays cannot be loaded"):
            decode([value])
    assert not (tmp_path / "was_run").exists()


def test_large_arrays_come_in_small_batches() -> None:
    large = npy(np.zeros(1 << 20, np.float32))  # 4 MiB
    batch = pa.RecordBatch.from_arrays([pa.array([large] * 9), pa.array(range(9))], names=["x", "id"])
    found = list(_decode_batches([batch], {"x": Cell("float32", (1 << 20,))}))
    assert [len(part) for part in found] == [4, 4, 1]
    assert pa.Table.from_batches(found)["id"].to_pylist() == list(range(9))


@pytest.mark.spark
def test_every_value_is_what_petastorm_was_given(spark: SparkSession) -> None:
    frame = read_petastorm(spark, DATASET.as_uri())
    types = dict(frame.dtypes)
    assert types["vector"] == "array<float>" and types["matrix"] == "array<smallint>"
    assert types["history"] == "array<int>" and types["total"] == "double" and types["image"] == "binary"
    found = {row["id"]: row.asDict() for row in frame.collect()}
    assert sorted(found) == list(range(NUM_ROWS))
    for number, row in found.items():
        expected = row_of(number)
        for name in set(expected) - {"image", "photo", "price"}:
            wanted = expected[name]
            if isinstance(wanted, np.ndarray):
                wanted = wanted.reshape(-1).tolist() if wanted.ndim else wanted.item()
            assert row[name] == wanted, name
        assert row["price"] == pytest.approx(expected["price"])


@pytest.mark.spark
def test_prepare_makes_a_dataset_of_it(spark: SparkSession, tmp_path: Path) -> None:
    features = [
        Numeric("price"),
        Categorical("colour"),
        Vector("matrix", shape=(2, 3), dtype="uint8"),
        Vector("vector", shape=5),
        Vector("sometimes", shape=2),
        Tokens("history", block_size=3),
        Image("image", shape=IMAGE_SHAPE),
        Image("photo", shape=IMAGE_SHAPE),
    ]
    frame = read_petastorm(spark, str(DATASET))
    config = PrepareConfig(num_parts=1, max_quarantined_fraction=0.0)
    dataset = prepare(frame, features, Target("late"), config, root=tmp_path, key="id")
    seen = []
    for split in ("train", "validation", "test"):
        if not dataset.num_rows(split):
            continue
        for batch in dataset.stream(split, 1, num_lanes=1, shuffle=False):
            number = find(batch["vector"][0].numpy())
            expected = row_of(number)
            assert np.array_equal(batch["matrix"][0], expected["matrix"])
            assert np.array_equal(batch["image"][0], expected["image"])
            assert np.abs(batch["photo"][0].numpy().astype(int) - expected["photo"]).max() <= 2
            assert batch["late"][0] == expected["late"]
            seen.append(number)
    assert sorted(seen) == list(range(NUM_ROWS))


def find(vector: Any) -> int:
    [number] = [n for n in range(NUM_ROWS) if np.array_equal(row_of(n)["vector"], vector)]
    return number


@pytest.mark.spark
def test_the_pickled_schema_is_not_even_opened(spark: SparkSession, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.mkdir, (tmp_path / "was_run",)

    copy = tmp_path / "copy"
    shutil.copytree(DATASET, copy)
    key = b"dataset-toolkit.unischema.v1"
    schema = pq.read_schema(copy / "_common_metadata")
    assert key in schema.metadata, "it was to be Petastorm's own"
    pq.write_metadata(
        schema.with_metadata({**schema.metadata, key: pickle.dumps(Evil())}), copy / "_common_metadata"
    )
    assert read_petastorm(spark, str(copy), ["vector", "id"]).count() == NUM_ROWS
    assert not (tmp_path / "was_run").exists()


@pytest.mark.spark
def test_columns_can_be_chosen_and_mistakes_are_told(spark: SparkSession, tmp_path: Path) -> None:
    assert read_petastorm(spark, str(DATASET), ["total", "id"]).columns == ["total", "id"]
    assert read_petastorm(spark, str(DATASET), ["image", "id"]).dtypes == [
        ("image", "binary"),
        ("id", "bigint"),
    ]
    with pytest.raises(NameUnknown, match="Did you mean `vector`"):
        read_petastorm(spark, str(DATASET), ["vectr"])
    with pytest.raises(SourceMissing, match="Give a Parquet file"):
        read_petastorm(spark, str(tmp_path / "nothing"))
    words = pa.table({"x": [None, npy(np.array(["a", "b"]))], "none": pa.nulls(2, pa.binary())})
    pq.write_table(words, tmp_path / "words.parquet")
    assert read_petastorm(spark, str(tmp_path / "words.parquet"), ["none"]).dtypes == [("none", "binary")]
    with pytest.raises(CellsUnreadable, match="its arrays are of <U1, allowed are bool, int8"):
        read_petastorm(spark, str(tmp_path / "words.parquet"))
