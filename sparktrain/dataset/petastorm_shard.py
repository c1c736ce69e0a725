"""Reading one rank's row groups of a split by Petastorm's `make_batch_reader`."""

from __future__ import annotations

import keyword
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sparktrain.dataset.layout import StoredColumn
from sparktrain.dataset.manifest import Manifest
from sparktrain.errors import DatasetInvalid, first_line
from sparktrain.world import World

Columns = dict[str, NDArray[Any]]
"""Stored columns by name, each of shape [rows, *shape]."""


def rows_of_shards(manifest: Manifest, split: str, num_shards: int) -> list[int]:
    """Rows of each shard: shard s of S has the row groups s, s + S, s + 2S, … in the manifest's order."""
    row_groups = [rows for part in manifest.splits[split].parts for rows in part.row_groups]
    return [sum(row_groups[shard::num_shards]) for shard in range(num_shards)]


@dataclass(frozen=True)
class Shard:
    """What one rank reads of a split.

    Attributes:
        path: the dataset's directory, absolute.
        columns: what to read, of `stored_columns`.
    """

    path: Path
    manifest: Manifest
    split: str
    columns: tuple[StoredColumn, ...]
    world: World

    def problems(self) -> Iterator[str]:
        """What Petastorm can't read, though we could."""
        for column in self.columns:
            if not column.name.isidentifier() or keyword.iskeyword(column.name) or column.name[0] == "_":
                yield (
                    f"column `{column.name}`: Petastorm hands rows out as named tuples, and this can't be a "
                    "field of one; rename the feature, or set data.reader=sparktrain"
                )
        if urlparse(self._url("")).path != f"{self.path}/":
            yield (
                f"{self.path} can't be written as a URL of Petastorm's; move the dataset to a path without "
                "`?`, `#` and `;`, or set data.reader=sparktrain"
            )

    def row_groups(self, seed: int | None) -> Generator[Columns]:
        """Read the row groups, and their rows, in an order that `seed` fixes; as they are stored for None.

        The ranks must give the same seed. A thread of Petastorm's reads ahead until the generator ends.

        Raises:
            DatasetInvalid: they can't be read, or have not the rows that the manifest says.
        """
        num_rows = 0
        try:
            with self._reader(seed) as reader:
                for read in reader:
                    rows = {
                        column.name: _values(column, getattr(read, column.name)) for column in self.columns
                    }
                    num_rows += num_rows_of(rows)
                    yield rows
        except (pa.ArrowException, OSError) as error:
            problem = f"Petastorm can't read split `{self.split}` ({first_line(error)})"
            way_out = "`sparktrain check` names a part that is not whole; prepare it again"
            raise DatasetInvalid(str(self.path), problem, way_out) from error
        wanted = rows_of_shards(self.manifest, self.split, self.world.size)[self.world.rank]
        if num_rows != wanted:
            problem = f"Petastorm gave rank {self.world.rank} {num_rows:,} rows of split `{self.split}`"
            raise DatasetInvalid(str(self.path), f"{problem}, the manifest says {wanted:,}")

    def _reader(self, seed: int | None) -> Any:
        from petastorm import make_batch_reader

        return make_batch_reader(
            # Files, not their directory: there Petastorm would unpickle a schema if it found one. And in the
            # manifest's order, so that it counts row groups as we do.
            [self._url(part.path) for part in self.manifest.splits[self.split].parts],
            schema_fields=[re.escape(column.name) for column in self.columns],
            workers_count=1,  # more would hand row groups out in another order each time
            results_queue_size=2,
            num_epochs=1,
            cur_shard=self.world.rank,
            shard_count=self.world.size,
            shuffle_row_groups=seed is not None,
            shuffle_rows=seed is not None,
            seed=seed,
        )

    def _url(self, part: str) -> str:
        return f"file://{self.path}/{part}"  # not quoted: Petastorm takes it as it is


def num_rows_of(rows: Columns) -> int:
    return len(next(iter(rows.values())))


def _values(column: StoredColumn, read: NDArray[Any]) -> NDArray[Any]:
    """What Petastorm read of a row group, as an array of our own of shape [rows, *shape]."""
    if not column.shape:
        return np.array(read, column.dtype)
    stored = np.dtype(column.dtype).newbyteorder("<")
    flat = np.frombuffer(bytearray().join(read), stored, len(read) * prod(column.shape))
    return flat.reshape(-1, *column.shape).astype(column.dtype, copy=False)
