"""A split as a Spark DataFrame. It is given a session, and so knows Spark without importing it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from sparktrain.dataset.layout import stored_columns, unpack
from sparktrain.dataset.manifest import Manifest
from sparktrain.dataset.read import RowGroupReader

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_TYPES = {
    "float32": "float",
    "float64": "double",
    "int32": "int",
    "int64": "bigint",
    "uint8": "smallint",  # Spark has no unsigned byte
    "string": "string",
}
_MAX_BATCH_BYTES = 16 << 20  # Spark's vectors end at 2 GiB, and a batch exists several times at once


def spark_frame(
    spark: SparkSession, path: Path, manifest: Manifest, split: str, names: Sequence[str]
) -> DataFrame:
    """Return the columns `names` of a split; `Dataset.to_spark` says more."""
    parts = manifest.splits[split].parts
    specs = {column.name: column for column in manifest.columns}
    schema = ", ".join(
        f"`{name.replace('`', '``')}` " + (f"array<{kind}>" if specs[name].shape else kind)
        for name, kind in ((name, _TYPES[specs[name].dtype]) for name in names)
    )
    if not parts:
        return spark.createDataFrame([], schema)
    root = path.absolute()
    if not any(column.shape for column in stored_columns(manifest.columns, manifest.layout, names)):
        reader = spark.read.schema(schema).option("parquet.page.verify-checksum.enabled", "true")
        return reader.parquet(*(str(root / part.path) for part in parts))
    read = partial(_read_parts, root=str(root), manifest=manifest, split=split, names=tuple(names))
    return spark.range(0, len(parts), 1, len(parts)).mapInArrow(read, schema)


def _read_parts(
    numbers: Iterable[pa.RecordBatch], root: str, manifest: Manifest, split: str, names: tuple[str, ...]
) -> Iterator[pa.RecordBatch]:
    """Runs in a Python worker: numbers of parts come in, their rows go out."""
    columns, layout = manifest.columns, manifest.layout
    reader = RowGroupReader(Path(root), manifest, split, stored_columns(columns, layout, names))
    for batch in numbers:
        for part in batch.column(0).to_pylist():
            for row_group in reader.row_groups(part):
                yield from _for_spark(unpack(reader.read_table(row_group), columns, layout, names))


def _for_spark(table: pa.Table) -> Iterator[pa.RecordBatch]:
    most_rows = max(1, _MAX_BATCH_BYTES * len(table) // max(table.nbytes, 1))
    for batch in table.to_batches(max_chunksize=most_rows):
        arrays = [_plain(column) for column in batch.columns]
        yield pa.RecordBatch.from_arrays(arrays, names=batch.schema.names)


def _plain(column: pa.Array) -> pa.Array:
    """Spark reads neither fixed-size lists nor unsigned bytes."""
    if pa.types.is_fixed_size_list(column.type):
        size = column.type.list_size
        offsets = np.arange(0, (len(column) + 1) * size, size, dtype=np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), _plain(column.flatten()))
    return column.cast(pa.int16()) if pa.types.is_uint8(column.type) else column
