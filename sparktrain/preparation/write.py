"""Writing parts with pyarrow inside Spark's Python workers.

That gives exact row groups, page checksums and required columns on every Spark version, and needs no output
committer: only files that a successful task returned get into the manifest, so a retried task's leftovers are
never seen.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark import TaskContext
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from sparktrain.config import PrepareConfig
from sparktrain.dataset.manifest import Part
from sparktrain.dataset.read import WRITE_CHECKSUMS
from sparktrain.features import FittedCategorical, FittedFeatures
from sparktrain.preparation.apply import feature_columns, target_column
from sparktrain.preparation.split import ORDER_COLUMN, ROW_ID_COLUMN, SPLIT_COLUMN, add_order

_RETURNED = (
    "split string, part int, path string, rows bigint, row_groups array<bigint>, size_bytes bigint, "
    "digest string"
)
_RETURNED_ARROW = pa.schema(
    [
        ("split", pa.string()),
        ("part", pa.int32()),
        ("path", pa.string()),
        ("rows", pa.int64()),
        ("row_groups", pa.list_(pa.int64())),
        ("size_bytes", pa.int64()),
        ("digest", pa.string()),
    ]
)
_LARGEST_DICTIONARY = 4096


def part_schema(features: FittedFeatures) -> pa.Schema:
    """Columns of a part: row id, features, target; all required, which decodes twice as fast as nullable."""
    columns = [(ROW_ID_COLUMN, pa.int64())]
    columns += [
        (f.name, pa.int32() if isinstance(f, FittedCategorical) else pa.float32()) for f in features.features
    ]
    columns.append((features.target.name, pa.float32()))
    return pa.schema([pa.field(name, dtype, nullable=False) for name, dtype in columns])


def write_parts(
    kept: DataFrame, features: FittedFeatures, directory: Path, config: PrepareConfig
) -> dict[str, list[Part]]:
    """Encode, shuffle once over the whole dataset, and write one part per Spark partition and split.

    Args:
        kept: clean raw rows with `row_id` and `_split`.
        directory: absolute, seen by all executors; parts go to `<split>/part-….parquet` in it.

    Returns:
        The parts of each split, in the order of the manifest.
    """
    values = [F.col(ROW_ID_COLUMN), *feature_columns(features), target_column(features)]
    # By number, because mapInArrow takes the dot in a name for a field of a struct.
    numbered = [column.alias(f"_{number}") for number, column in enumerate(values)]
    encoded = add_order(kept, config.seed).select(SPLIT_COLUMN, ORDER_COLUMN, *numbered)
    # The number is given, so that adaptive execution leaves the partitions alone. All columns break ties, so
    # that rows with one key come out in one order whatever order they arrived in.
    ordered = encoded.repartition(config.num_parts, ORDER_COLUMN).sortWithinPartitions(*encoded.columns)
    dictionary = [f.name for f in features.categorical if f.num_codes <= _LARGEST_DICTIONARY]
    writer = partial(
        write_partition,
        directory=str(directory),
        schema=part_schema(features),
        rows_per_row_group=config.rows_per_row_group,
        compression=config.compression,
        dictionary=tuple(dictionary),
    )
    parts: dict[str, list[Part]] = {}
    for row in sorted(ordered.mapInArrow(writer, _RETURNED).collect(), key=lambda r: (r["split"], r["part"])):
        fields = row.asDict()
        del fields["part"]
        parts.setdefault(fields.pop("split"), []).append(Part.model_validate(fields))
    return parts


def write_partition(
    batches: Iterable[pa.RecordBatch],
    directory: str,
    schema: pa.Schema,
    rows_per_row_group: int,
    compression: str,
    dictionary: tuple[str, ...],
) -> Iterator[pa.RecordBatch]:
    """Write one Spark partition, whose rows come split by split; runs on an executor."""
    context = TaskContext.get()
    assert context is not None
    number = context.partitionId()
    writer: _PartWriter | None = None
    for split, rows in _by_split(batches, schema):
        if writer is not None and writer.split != split:
            yield writer.close()
            writer = None
        writer = writer or _PartWriter(
            Path(directory), split, number, schema, rows_per_row_group, compression, dictionary
        )
        writer.write(rows)
    if writer is not None:
        yield writer.close()


def _by_split(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[tuple[str, pa.Table]]:
    for batch in batches:
        table = pa.Table.from_batches([batch])
        for split in table[SPLIT_COLUMN].unique().to_pylist():
            rows = table.filter(pa.compute.equal(table[SPLIT_COLUMN], split))
            yield split, pa.table(rows.drop_columns([SPLIT_COLUMN, ORDER_COLUMN]).columns, schema=schema)


class _PartWriter:
    """One Parquet file: buffers rows until a row group is full."""

    def __init__(
        self,
        directory: Path,
        split: str,
        number: int,
        schema: pa.Schema,
        rows_per_row_group: int,
        compression: str,
        dictionary: Sequence[str],
    ) -> None:
        self.split = split
        self._number = number
        self._rows_per_row_group = rows_per_row_group
        # The token keeps two tries of a Spark task from writing one file; only the successful one's is in the
        # manifest.
        self._path = Path(split) / f"part-{number:05d}-{secrets.token_hex(4)}.parquet"
        self._file = directory / self._path
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._writer = pq.ParquetWriter(
            self._file,
            schema,
            compression=compression,
            use_dictionary=list(dictionary),
            store_schema=False,
            **WRITE_CHECKSUMS,
        )
        self._pending = schema.empty_table()
        self._row_groups: list[int] = []
        self._digest = hashlib.blake2b(digest_size=16)

    def write(self, rows: pa.Table) -> None:
        self._pending = pa.concat_tables([self._pending, rows])
        while len(self._pending) >= self._rows_per_row_group:
            self._write_row_group(self._pending.slice(0, self._rows_per_row_group))
            self._pending = self._pending.slice(self._rows_per_row_group)

    def close(self) -> pa.RecordBatch:
        if len(self._pending):
            self._write_row_group(self._pending)
        self._writer.close()
        returned = {
            "split": self.split,
            "part": self._number,
            "path": self._path.as_posix(),
            "rows": sum(self._row_groups),
            "row_groups": self._row_groups,
            "size_bytes": self._file.stat().st_size,
            "digest": self._digest.hexdigest(),
        }
        return pa.RecordBatch.from_pylist([returned], schema=_RETURNED_ARROW)

    def _write_row_group(self, rows: pa.Table) -> None:
        rows = rows.combine_chunks()
        # Values, not file bytes: the fingerprint shall not depend on the codec or on pyarrow's version.
        for column in rows.columns:
            assert column.null_count == 0
            for chunk in column.chunks:
                self._digest.update(chunk.to_numpy(zero_copy_only=False).data)
        self._writer.write_table(rows, row_group_size=len(rows))
        self._row_groups.append(len(rows))
