"""Datasets of made-up rows for benchmarks, and the same rows as anybody's Parquet: quickly, without Spark."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sparktrain.dataset import ColumnSpec, Dataset, Manifest, Part, Split
from sparktrain.dataset.layout import Layout, pack
from sparktrain.dataset.read import WRITE_CHECKSUMS

_NUM_PARTS = 4
_CHUNK_BYTES = 32 << 20  # made at once; whole row groups of it

Rows = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Recipe:
    """How to make a table.

    Attributes:
        columns: of the dataset.
        make: (random, number of the first row, rows) -> values by column.
        small: columns whose few values a dictionary suits, as preparation would write them.
    """

    columns: tuple[ColumnSpec, ...]
    make: Callable[[np.random.Generator, int, int], Rows]
    small: tuple[str, ...] = ()

    @property
    def row_bytes(self) -> int:
        return sum(np.dtype(c.dtype).itemsize * prod(c.shape) for c in self.columns)

    def parts(self, rows: int, rows_per_row_group: int) -> Iterator[tuple[int, Iterator[Rows]]]:
        """The number of each part, and its rows in chunks; the same rows however they are chunked."""
        for part in range(_NUM_PARTS):
            first, stop = part * rows // _NUM_PARTS, (part + 1) * rows // _NUM_PARTS
            yield part, self._chunks(part, first, stop, rows_per_row_group)

    def _chunks(self, part: int, first: int, stop: int, rows_per_row_group: int) -> Iterator[Rows]:
        random = np.random.default_rng(part)
        step = max(_CHUNK_BYTES // self.row_bytes // rows_per_row_group, 1) * rows_per_row_group
        for start in range(first, stop, step):
            yield self.make(random, start, min(step, stop - start))


def _table_rows(random: np.random.Generator, first: int, rows: int) -> Rows:
    values: Rows = {f"numeric_{i}": random.standard_normal(rows, np.float32) for i in range(13)}
    for i in range(26):
        values[f"category_{i}"] = random.integers(0, 10 ** (1 + i % 4), rows, np.int32)
    values["label"] = random.standard_normal(rows, np.float32)
    return values


def _label(dtype: str) -> ColumnSpec:
    return ColumnSpec.model_validate({"name": "label", "dtype": dtype, "role": "target"})


# 13 numbers, 26 codes of 10, 100, 1,000 and 100,000 values in turn (10^5 stands at every fourth), a label
TABLE = Recipe(
    columns=(
        *(ColumnSpec(name=f"numeric_{i}", dtype="float32", role="feature") for i in range(13)),
        *(ColumnSpec(name=f"category_{i}", dtype="int32", role="feature") for i in range(26)),
        _label("float32"),
    ),
    make=_table_rows,
    small=tuple(f"category_{i}" for i in range(26) if i % 4 < 3),
)
VECTORS = Recipe(
    columns=(ColumnSpec(name="vector", dtype="float32", shape=(256,), role="feature"), _label("float32")),
    make=lambda random, first, rows: {
        "vector": random.standard_normal((rows, 256), np.float32),
        "label": random.standard_normal(rows, np.float32),
    },
)
IMAGES = Recipe(
    columns=(ColumnSpec(name="image", dtype="uint8", shape=(64, 64), role="feature"), _label("int64")),
    make=lambda random, first, rows: {
        "image": random.integers(0, 256, (rows, 64, 64), np.uint8),
        "label": random.integers(0, 10, rows, np.int64),
    },
)


def labels_in_order(rows: int, num_labels: int) -> Recipe:
    """A label and nothing else, one label after the other, as data is stored that was never shuffled."""
    return Recipe(
        columns=(_label("int64"),),
        make=lambda random, first, count: {"label": np.arange(first, first + count) * num_labels // rows},
    )


def write_dataset(
    path: Path, recipe: Recipe, rows: int, rows_per_row_group: int, layout: Layout = "columns"
) -> Dataset:
    """Write a dataset as preparation lays it out: four parts, required columns, lz4, page checksums."""
    (path / "train").mkdir(parents=True)
    dictionary = list(recipe.small) if layout == "columns" else []
    options = {"compression": "lz4", "use_dictionary": dictionary, "store_schema": False, **WRITE_CHECKSUMS}
    to_table = partial(pack, specs=recipe.columns, layout=layout)
    row_groups = _write_parts(path / "train", recipe, rows, rows_per_row_group, to_table, options)
    parts = []
    for number, sizes in enumerate(row_groups):
        file = path / "train" / _name(number)
        part = {"path": f"train/{file.name}", "rows": sum(sizes), "row_groups": sizes, "digest": "none"}
        parts.append(Part.model_validate({**part, "size_bytes": file.stat().st_size}))
    manifest = Manifest(
        name="benchmark",
        fingerprint="0" * 32,
        columns=recipe.columns,
        layout=layout,
        splits={"train": Split(rows=rows, parts=tuple(parts))},
        rows_in=rows,
        rows_kept=rows,
        quarantined={},
        features_sha256="none: these columns were never features",
        prepare={},
        versions={"pyarrow": pa.__version__},
    )
    (path / "manifest.json").write_text(manifest.to_json())
    return Dataset(path, manifest)


def write_plain(
    directory: Path, recipe: Recipe, rows: int, rows_per_row_group: int | None = None, **options: object
) -> Path:
    """Write the same rows with `pyarrow.parquet`'s defaults; `options` are its own."""
    directory.mkdir(parents=True)
    size = rows_per_row_group or 1 << 20  # its default
    _write_parts(directory, recipe, rows, size, pa.table, options)
    return directory


def _write_parts(
    directory: Path,
    recipe: Recipe,
    rows: int,
    rows_per_row_group: int,
    to_table: Callable[[Rows], pa.Table],
    options: dict[str, object],
) -> list[tuple[int, ...]]:
    """Write parts, two at a time, and return the rows of each row group of each part."""

    def write(number: int, chunks: Iterator[Rows]) -> tuple[int, ...]:
        writer = None
        for chunk in chunks:
            table = to_table(chunk)
            writer = writer or pq.ParquetWriter(directory / _name(number), table.schema, **options)
            writer.write_table(table, row_group_size=rows_per_row_group)
        assert writer is not None, "a part without rows"
        writer.close()
        metadata = pq.read_metadata(directory / _name(number))
        return tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda part: write(*part), recipe.parts(rows, rows_per_row_group)))


def _name(number: int) -> str:
    return f"part-{number:05d}.parquet"
