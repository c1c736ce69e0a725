"""Damaged parts: named before a launch where a footer shows it, named at the read where only a page does."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparktrain.dataset import Dataset, open_dataset
from sparktrain.dataset.read import WRITE_CHECKSUMS
from sparktrain.errors import DatasetInvalid, SchemaMismatch
from sparktrain.testing import write_tiny_dataset

checksums = pytest.mark.skipif(not WRITE_CHECKSUMS, reason="this pyarrow has no page checksums")


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return write_tiny_dataset(tmp_path / "tiny", 400, num_parts=3)


@pytest.fixture(params=["columns", "blocks"])
def any_layout(tmp_path: Path, request: pytest.FixtureRequest) -> Dataset:
    return write_tiny_dataset(tmp_path / "tiny", 400, num_parts=3, vector_shape=(2,), layout=request.param)


def part(dataset: Dataset, number: int) -> Path:
    return dataset.path / dataset.manifest.splits["train"].parts[number].path


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def break_footer(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-4:] = b"NOPE"
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (truncate, "bytes, the manifest says"),
        (empty, "has 0 bytes, the manifest says"),
        (Path.unlink, "is missing"),
        (break_footer, "can't be opened"),
    ],
)
def test_a_damaged_part_is_named_before_the_launch_and_at_the_read(
    dataset: Dataset, damage: Callable[[Path], None], said: str
) -> None:
    damage(part(dataset, 1))
    for act in (dataset.verify, lambda: list(dataset.stream("train", 16)), lambda: dataset.to_arrow("train")):
        with pytest.raises(DatasetInvalid, match=re.escape("train/part-00001-tiny.parquet ") + ".*" + said):
            act()


def test_all_damaged_parts_are_named_at_once(dataset: Dataset) -> None:
    truncate(part(dataset, 0))
    part(dataset, 2).unlink()
    (dataset.path / "features.json").write_text("{}")
    with pytest.raises(DatasetInvalid) as caught:
        open_dataset(dataset.path).verify()
    for said in (
        "train/part-00000-tiny.parquet has",
        "train/part-00002-tiny.parquet is missing",
        "features.json was changed",
    ):
        assert f"\n  - {said}" in str(caught.value)


def rewrite(dataset: Dataset, number: int, change: Callable[[pa.Table], pa.Table], rows: int = 64) -> Dataset:
    """Put another file in a part's place, and its size into the manifest: only the footer can tell."""
    path = part(dataset, number)
    pq.write_table(change(pq.read_table(path)), path, row_group_size=rows)
    old = dataset.manifest.splits["train"].parts[number]
    content = dataset.manifest.to_json()
    start = content.index('"size_bytes"', content.index(old.path))
    changed = content[:start] + content[start:].replace(str(old.size_bytes), str(path.stat().st_size), 1)
    (dataset.path / "manifest.json").write_text(changed)
    return open_dataset(dataset.path)


def test_a_part_with_other_row_groups_is_named(dataset: Dataset) -> None:
    changed = rewrite(dataset, 1, lambda table: table, rows=50)
    said = r"part-00001-tiny.parquet has row groups of \[50, 50, 33\] rows, the manifest says \[64, 64, 5\]"
    with pytest.raises(DatasetInvalid, match=said):
        changed.verify()
    with pytest.raises(DatasetInvalid, match=said):
        list(changed.stream("train", 16))


def test_other_columns_are_a_schema_mismatch_that_names_the_part(dataset: Dataset) -> None:
    def change(table: pa.Table) -> pa.Table:
        names = ["label_" if name == "label" else name for name in table.column_names]
        renamed = table.rename_columns(names)
        place = renamed.schema.get_field_index("numeric_0")
        return renamed.set_column(place, "numeric_0", renamed["numeric_0"].cast(pa.float64()))

    changed = rewrite(dataset, 2, change)
    for act in (changed.verify, lambda: list(changed.stream("train", 16))):
        with pytest.raises(SchemaMismatch) as caught:
            act()
        for said in (
            "part-00002-tiny.parquet",
            "missing column `label` (there is `label_`)",
            "column `numeric_0` is",
        ):
            assert said in str(caught.value)


def test_columns_that_may_be_null_are_refused(dataset: Dataset) -> None:
    changed = rewrite(
        dataset, 0, lambda table: table.cast(pa.schema([field.with_nullable(True) for field in table.schema]))
    )
    with pytest.raises(SchemaMismatch, match="column `label` is nullable float, expected float"):
        changed.verify()


def test_schema_faults_of_several_kinds_come_with_everything_else(dataset: Dataset) -> None:
    changed = rewrite(dataset, 0, lambda table: table.drop_columns(["label"]))
    truncate(part(changed, 1))
    with pytest.raises(DatasetInvalid) as caught:
        changed.verify()
    assert "part-00000-tiny.parquet does not fit" in str(caught.value)
    assert "part-00001-tiny.parquet has" in str(caught.value)


def test_faults_of_a_stored_block_are_named(tmp_path: Path) -> None:
    dataset = write_tiny_dataset(tmp_path / "tiny", 400, num_parts=3, vector_shape=(2,), layout="blocks")

    def change(table: pa.Table) -> pa.Table:
        wider = pa.array([b"\0" * 12] * len(table), pa.binary(12))
        place = table.schema.get_field_index("block_float32")
        table = table.set_column(place, pa.field("block_float32", wider.type, nullable=False), wider)
        return table.drop_columns(["vector"]).append_column("numeric_0", pa.nulls(len(table), pa.float32()))

    changed = rewrite(dataset, 1, change)
    for act in (changed.verify, lambda: list(changed.stream("train", 16)), lambda: changed.to_arrow("train")):
        with pytest.raises(SchemaMismatch) as caught:
            act()
        for said in (
            "part-00001-tiny.parquet",
            "missing column `vector`",
            "unexpected column `numeric_0`",
            "column `block_float32` is fixed_size_binary[12], expected fixed_size_binary[8]",
        ):
            assert said in str(caught.value)


def data_bytes(path: Path, row_group: int) -> np.ndarray:
    """Offsets of the pages of a row group, headers included."""
    columns = pq.read_metadata(path).row_group(row_group)
    offsets = []
    for index in range(columns.num_columns):
        column = columns.column(index)
        start = column.data_page_offset
        if column.has_dictionary_page:
            start = min(start, column.dictionary_page_offset)
        offsets.append(np.arange(start, start + column.total_compressed_size))
    return np.concatenate(offsets)


@checksums
def test_a_flipped_bit_in_a_page_is_never_read_as_data(any_layout: Dataset) -> None:
    dataset = any_layout
    stored = dataset.to_arrow("train")
    path = part(dataset, 1)
    sound = path.read_bytes()
    offsets = data_bytes(path, 1)
    detected = 0
    for number, offset in enumerate(offsets[:: max(len(offsets) // 200, 1)]):
        damaged = bytearray(sound)
        damaged[offset] ^= 1 << number % 8
        path.write_bytes(damaged)
        dataset.verify()  # the footer can't tell
        try:
            # A bit of a page header's statistics is not data: then the rows must be sound.
            assert dataset.to_arrow("train") == stored
        except DatasetInvalid as error:
            assert "train/part-00001-tiny.parquet, row group 1 can't be read" in str(error)
            detected += 1
    assert detected > 150


@checksums
def test_a_flipped_bit_reaches_the_consumer_of_a_stream(any_layout: Dataset) -> None:
    dataset = any_layout
    path = part(dataset, 1)
    damaged = bytearray(path.read_bytes())
    damaged[data_bytes(path, 1)[-1]] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(DatasetInvalid, match=r"train/part-00001-tiny\.parquet, row group 1 can't be read"):
        list(dataset.stream("train", 16))
