"""What can't be read: under "mask" it has weight 0 and steps stay equal; a part must stay what it was."""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from sparktrain.dataset import Dataset, open_dataset
from sparktrain.dataset.read import WRITE_CHECKSUMS, RowGroupReader
from sparktrain.errors import DatasetChanged, DatasetInvalid, SchemaMismatch
from sparktrain.testing import write_tiny_dataset
from sparktrain.world import World

checksums = pytest.mark.skipif(not WRITE_CHECKSUMS, reason="this pyarrow has no page checksums")


@pytest.fixture(params=["columns", "blocks"])
def dataset(tmp_path: Path, request: pytest.FixtureRequest) -> Dataset:
    sizes = [[17, 3, 64], [30, 41], [64, 64, 5, 40]]
    return write_tiny_dataset(tmp_path / "tiny", sizes, vector_shape=(2,), layout=request.param)


def part(dataset: Dataset, number: int = 1) -> Path:
    return dataset.path / dataset.manifest.splits["train"].parts[number].path


def rows_of(dataset: Dataset, number: int, row_group: int | None = None) -> set[int]:
    """The row_ids of a part, or of one of its row groups."""
    first = 0
    for i, each in enumerate(dataset.manifest.splits["train"].parts):
        for j, rows in enumerate(each.row_groups):
            if i == number and row_group is None:
                return set(range(first, first + each.rows))
            if (i, j) == (number, row_group):
                return set(range(first, first + rows))
            first += rows
    raise AssertionError("no such row group")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def break_footer(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4] + b"NOPE")


def flip_bit(path: Path) -> None:
    """Flip a bit of the first row group's first data page."""
    column = pq.read_metadata(path).row_group(0).column(0)
    content = bytearray(path.read_bytes())
    content[column.data_page_offset + column.total_compressed_size - 1] ^= 4
    path.write_bytes(content)


DAMAGES = [truncate, empty, Path.unlink, break_footer, pytest.param(flip_bit, marks=checksums)]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("tail", ["drop", "mask"])
def test_masked_rows_have_weight_0_on_all_ranks_and_steps_stay_equal(
    dataset: Dataset, damage: Callable[[Path], None], tail: Any, caplog: pytest.LogCaptureFixture
) -> None:
    sound = [batch["row_id"].tolist() for batch in dataset.stream("train", 32, tail=tail)]
    lost = rows_of(dataset, 1, 0 if damage is flip_bit else None)
    damage(part(dataset))
    opened = open_dataset(dataset.path)
    for size in (1, 3, 4):
        streams = [
            opened.stream("train", 32, tail=tail, world=World(rank, size), on_bad_data="mask")
            for rank in range(size)
        ]
        ranks = [list(stream) for stream in streams]
        assert {len(steps) for steps in ranks} == {len(sound)}
        reasons: dict[str, str] = {}
        for stream in streams:
            reasons |= stream.masked
        assert reasons and all(where.startswith("train/part-00001") for where in reasons), "the fault fired"
        for step, whole in enumerate(sound):
            ids = torch.cat([rank[step]["row_id"] for rank in ranks]).tolist()
            weights = torch.cat([rank[step]["row_weight"] for rank in ranks]).tolist()
            values = torch.cat([rank[step]["numeric_0"] for rank in ranks]).tolist()
            for row, found, weight, value in zip(whole, ids, weights, values, strict=True):
                if row in lost:
                    assert (found, weight, value) == (0, 0.0, 0.0)
                elif weight:
                    assert found == row
    assert "its rows get weight 0" in caplog.text
    with pytest.raises(DatasetInvalid, match=r"part-00001"):
        list(open_dataset(dataset.path).stream("train", 32, tail=tail))


@pytest.mark.parametrize("damage", DAMAGES[:4])
def test_masked_parts_are_warned_of_before_a_launch(
    dataset: Dataset, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    damage(part(dataset))
    with caplog.at_level(logging.WARNING):
        dataset.verify(on_bad_data="mask")
    assert "part-00001" in caplog.text and "its rows will be masked" in caplog.text
    for number in (0, 2):
        damage(part(dataset, number))
    with pytest.raises(DatasetInvalid, match="part-00002"):
        dataset.verify(on_bad_data="mask")


def test_other_columns_are_never_masked(dataset: Dataset) -> None:
    path = part(dataset)
    table = pq.read_table(path).drop_columns(["label"])
    with pq.ParquetWriter(path, table.schema) as writer:
        for start, rows in ((0, 30), (30, 41)):
            writer.write_table(table.slice(start, rows))
    content = dataset.manifest.to_json()
    old = dataset.manifest.splits["train"].parts[1].size_bytes
    (dataset.path / "manifest.json").write_text(content.replace(f": {old}", f": {path.stat().st_size}"))
    with pytest.raises(SchemaMismatch, match="missing column `label`"):
        list(open_dataset(dataset.path).stream("train", 32, on_bad_data="mask"))


@checksums
def test_pages_are_verified_when_they_are_read_first(dataset: Dataset) -> None:
    for _ in dataset.stream("train", 32):
        pass
    before = part(dataset).stat()
    flip_bit(part(dataset))
    os.utime(part(dataset), ns=(before.st_atime_ns, before.st_mtime_ns))  # nobody can tell from outside
    where = r"part-00001-tiny\.parquet, row group 0 can't be read"
    with pytest.raises(DatasetInvalid, match=where):
        list(dataset.stream("train", 32, verify="always"))
    with pytest.raises(DatasetInvalid, match=where):
        list(open_dataset(dataset.path).stream("train", 32))


@checksums
@pytest.mark.parametrize("narrow", [{"columns": ["row_id"]}, {"where": [("row_id", "!=", 3)]}])
def test_a_column_is_verified_although_others_were_read_before(dataset: Dataset, narrow: Any) -> None:
    number = dataset.manifest.schema.names.index("vector")
    path = part(dataset)
    column = pq.read_metadata(path).row_group(0).column(number)
    content = bytearray(path.read_bytes())
    content[column.data_page_offset + column.total_compressed_size - 1] ^= 4
    path.write_bytes(content)
    some = list(dataset.stream("train", 32, **{"columns": ["row_id"], **narrow}))
    assert some, "the sound columns can be read"
    with pytest.raises(DatasetInvalid, match=r"part-00001-tiny\.parquet, row group 0 can't be read"):
        list(dataset.stream("train", 32))


def replace(path: Path) -> None:
    """Put a file of the same size in its place, as tools do that write aside and rename."""
    other = path.with_suffix(".new")
    shutil.copy(path, other)
    os.replace(other, path)


def rewrite(path: Path) -> None:
    path.write_bytes(path.read_bytes())


@pytest.mark.parametrize("change", [replace, rewrite, truncate, Path.unlink])
@pytest.mark.parametrize("on_bad_data", ["fail", "mask"])
def test_a_part_that_changes_under_a_run_is_named(
    dataset: Dataset, change: Callable[[Path], None], on_bad_data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also under "mask": rows of another dataset are no bad rows."""
    reads: list[str] = []
    read_table = RowGroupReader.read_table

    def change_after_the_first(self: RowGroupReader, row_group: int) -> Any:
        table = read_table(self, row_group)
        name = self.locate(row_group)[0].path
        reads.append(name)
        if name.startswith("train/part-00002") and reads.count(name) == 1:
            change(part(dataset, 2))
        return table

    monkeypatch.setattr(RowGroupReader, "read_table", change_after_the_first)
    said = "changed under the run: train/part-00002-tiny.parquet is not the file that was read before"
    with pytest.raises(DatasetChanged, match=said):
        list(dataset.stream("train", 16, num_lanes=2, num_threads=1, on_bad_data=on_bad_data))
