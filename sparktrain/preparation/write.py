"""Writing parts: spooled rows become what the model takes, in exactly equal shares, with pyarrow.

That gives exact row groups, page checksums, required columns and fixed-size values on every Spark version,
and needs no output committer: only files that a successful task returned get into the manifest, so a retried
task's leftovers are never seen. Features are applied by `FittedFeatures.transform`, as in serving.
"""

from __future__ import annotations

import json
import os
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyspark.sql import SparkSession

from sparktrain.config import PrepareConfig
from sparktrain.dataset.digest import PartDigest
from sparktrain.dataset.layout import ColumnSpec, Layout, Role, pack, stored_schema
from sparktrain.dataset.manifest import Part
from sparktrain.dataset.read import WRITE_CHECKSUMS
from sparktrain.errors import DataError, ValuesRefused
from sparktrain.features import UNKNOWN_CODE, FittedCategorical, FittedFeatures
from sparktrain.preparation.packing import Packer
from sparktrain.preparation.split import ROW_ID_COLUMN, SPLITS
from sparktrain.preparation.spooling import Spool
from sparktrain.preparation.staging import keep_only

_SCHEMA = "split string, part int, content string"
_ARROW_SCHEMA = pa.schema([("split", pa.string()), ("part", pa.int32()), ("content", pa.string())])
_LARGEST_DICTIONARY = 4096
_MIN_CHUNK_ROWS, _MAX_CHUNK_BYTES = 32_768, 64 << 20


class Stretch(NamedTuple):
    """Rows `start` to `stop` of a spool."""

    spool: Spool
    start: int
    stop: int


@dataclass
class Written:
    """A split as it was written.

    Attributes:
        parts: in the order of the manifest.
        unknown: rows whose value a vocabulary lacks, by feature.
        nulls: rows whose raw value was null, by feature.
        classes: rows by value of each target that has classes (binary, multiclass).
        sums: (sum, sum of squares) of each target that has none.
    """

    parts: list[Part] = field(default_factory=list)
    unknown: Counter[str] = field(default_factory=Counter)
    nulls: Counter[str] = field(default_factory=Counter)
    classes: dict[str, Counter[str]] = field(default_factory=dict)
    sums: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)


def column_specs(features: FittedFeatures) -> tuple[ColumnSpec, ...]:
    """Columns of a dataset: row id, features, targets, weight."""
    passed_on = {f.name for f in features.features if f.kind == "passthrough"}
    specs = [ColumnSpec(name=ROW_ID_COLUMN, dtype="int64", role="row_id")]
    for o in features.outputs:
        role: Role = "passthrough" if o.name in passed_on else "feature"
        specs.append(ColumnSpec(name=o.name, dtype=o.dtype, shape=o.shape, role=role))
    specs += [ColumnSpec(name=t.name, dtype=t.output.dtype, role="target") for t in features.targets]
    if (weight := features.weight) is not None:
        specs.append(ColumnSpec(name=weight.name, dtype=weight.output.dtype, role="weight"))
    return tuple(specs)


def write_parts(
    spark: SparkSession,
    spools: Sequence[Spool],
    raw_columns: Sequence[str],
    features: FittedFeatures,
    directory: Path,
    config: PrepareConfig,
) -> dict[str, Written]:
    """Apply the features to the spooled rows and write `config.num_parts` parts for each split.

    Args:
        spools: in their order, which is the order of the rows.
        raw_columns: of the spools, after the row id.
        directory: absolute, seen by all executors; parts go to `<split>/part-….parquet` in it.
    """
    shares = [_shares(spools, number, config.num_parts) for number in range(config.num_parts)]
    writer = partial(
        write_share,
        shares=shares,
        raw_columns=tuple(raw_columns),
        features=features,
        directory=str(directory),
        config=config,
    )
    numbers = spark.range(0, config.num_parts, 1, config.num_parts)
    found: dict[str, Written] = {split: Written() for split in SPLITS}
    rows = sorted(numbers.mapInArrow(writer, _SCHEMA).collect(), key=lambda row: int(row["part"]))
    contents = [(row["split"], json.loads(row["content"])) for row in rows]
    _raise_refused([content for _, content in contents if "part" not in content])
    for split, content in contents:
        _add(found[split], content)
    for split, content in found.items():
        keep_only(directory / split, [Path(part.path).name for part in content.parts])
    return found


def _raise_refused(contents: Sequence[Mapping[str, Any]]) -> None:
    """Raise what the parts' writers met, in the words of the first part for each column."""
    if failed := [content["failed"] for content in contents if "failed" in content]:
        raise DataError(failed[0])
    refused: dict[str, list[str]] = {}
    for content in contents:
        for column, what in content["refused"].items():
            refused.setdefault(column, []).append(what)
    if refused:
        more = {
            n: f" in one part, more in {len(w) - 1:,} others" if len(w) > 1 else ""
            for n, w in refused.items()
        }
        raise ValuesRefused({name: whats[0] + more[name] for name, whats in refused.items()})


def _shares(spools: Sequence[Spool], number: int, size: int) -> dict[str, list[Stretch]]:
    """The rows of part `number` of each split: equal shares, to one row, of all its rows in their order."""
    shares: dict[str, list[Stretch]] = {}
    for code, split in enumerate(SPLITS):
        total = sum(spool.rows[code] for spool in spools)
        first, last = number * total // size, (number + 1) * total // size
        seen = 0
        for spool in spools:
            rows, begin = spool.rows[code], sum(spool.rows[:code])
            low, high = max(first - seen, 0), min(last - seen, rows)
            if low < high:
                shares.setdefault(split, []).append(Stretch(spool, begin + low, begin + high))
            seen += rows
    return shares


def _add(found: Written, content: Mapping[str, Any]) -> None:
    found.parts.append(Part.model_validate(content["part"]))
    found.unknown.update(content["unknown"])
    found.nulls.update(content["nulls"])
    for name, counts in content["classes"].items():
        found.classes.setdefault(name, Counter()).update(counts)
    for name, (plain, squares) in content["sums"].items():
        before = found.sums.get(name, (0.0, 0.0))
        found.sums[name] = (before[0] + plain, before[1] + squares)


# --- on an executor --------------------------------------------------------------------------------


def write_share(
    batches: Iterable[pa.RecordBatch],
    shares: Sequence[Mapping[str, Sequence[Stretch]]],
    raw_columns: Sequence[str],
    features: FittedFeatures,
    directory: str,
    config: PrepareConfig,
) -> Iterator[pa.RecordBatch]:
    """Write the parts of the given numbers, one for each split that has rows."""
    for batch in batches:
        for number in batch.column(0).to_pylist():
            for split, stretches in shares[number].items():
                writer = _PartWriter(Path(directory), split, number, features, config)
                content = _write_part(writer, stretches, raw_columns)
                row = {"split": split, "part": number, "content": json.dumps(content)}
                yield pa.RecordBatch.from_pylist([row], schema=_ARROW_SCHEMA)


def _write_part(
    writer: _PartWriter, stretches: Sequence[Stretch], raw_columns: Sequence[str]
) -> Mapping[str, Any]:
    """Write one part; what the features refuse is an answer, for a retry of the task would meet it again."""
    try:
        for rows in _chunks(stretches, raw_columns, writer.chunk_rows):
            writer.write(rows)
    except ValuesRefused as error:
        return {"refused": error.columns}
    except DataError as error:
        return {"failed": str(error)}
    return writer.close()


def _chunks(stretches: Sequence[Stretch], raw_columns: Sequence[str], size: int) -> Iterator[pa.Table]:
    """Spooled rows, `size` at a time, under their columns' names."""
    names = [ROW_ID_COLUMN, *raw_columns]
    pending: list[pa.RecordBatch] = []
    rows = 0
    for stretch in stretches:
        for batch in _read(stretch):
            while rows + batch.num_rows >= size:
                pending.append(batch.slice(0, size - rows))
                yield pa.Table.from_batches(pending).rename_columns(names).combine_chunks()
                batch = batch.slice(size - rows)
                pending, rows = [], 0
            if batch.num_rows:
                pending.append(batch)
                rows += batch.num_rows
    if pending:
        yield pa.Table.from_batches(pending).rename_columns(names).combine_chunks()


def _read(stretch: Stretch) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(stretch.spool.path) as source, pa.ipc.open_file(source) as file:
        begin = 0
        for number, rows in enumerate(stretch.spool.batch_rows):
            low, high = max(stretch.start - begin, 0), min(stretch.stop - begin, rows)
            if low < high:
                yield file.get_batch(number).slice(low, high - low)
            begin += rows


class _PartWriter:
    """One Parquet file, and what there is to count of its rows."""

    def __init__(
        self, directory: Path, split: str, number: int, features: FittedFeatures, config: PrepareConfig
    ) -> None:
        self._features = features
        self._specs, self._layout = column_specs(features), config.layout
        self._row_group_rows = config.rows_per_row_group
        # The token keeps two tries of a Spark task from writing one file.
        self._path = Path(split) / f"part-{number:05d}-{secrets.token_hex(4)}.parquet"
        self._file = directory / self._path
        self._file.parent.mkdir(parents=True, exist_ok=True)
        schema = stored_schema(self._specs, self._layout)
        self._writer = pq.ParquetWriter(self._file, schema, **_encodings(self._specs, features, config))
        packed = features.packed
        self._packer = Packer(packed, self._row_group_rows) if packed else None
        self._row_groups: list[int] = []
        self._digest = PartDigest(self._specs)
        self._found = Written()
        self._vocabularies = [
            f.name for f in features.features if isinstance(f, FittedCategorical) and f.num_buckets is None
        ]

    @property
    def chunk_rows(self) -> int:
        """Rows that are worth a call and fit into memory: whole row groups."""
        row_bytes = sum(
            np.dtype(s.dtype).itemsize * int(np.prod(s.shape)) for s in self._specs if s.dtype != "string"
        )
        wanted = max(min(_MIN_CHUNK_ROWS, _MAX_CHUNK_BYTES // max(row_bytes, 1)), 1)
        return -(-wanted // self._row_group_rows) * self._row_group_rows

    def write(self, rows: pa.Table) -> None:
        """Write raw rows: whole row groups of them, unless they are the last."""
        for feature in self._features.features:
            if nulls := rows[feature.column].null_count:
                self._found.nulls[feature.name] += nulls
        if self._packer is not None:
            columns = self._packer.add(rows)
        else:
            columns = {ROW_ID_COLUMN: rows[ROW_ID_COLUMN].to_numpy()}
            columns |= self._features.transform(rows)
            columns |= self._features.transform_targets(rows)
        if columns is not None:
            self._write(columns)

    def _write(self, columns: Mapping[str, NDArray[Any]]) -> None:
        self._count(columns)
        num_rows = len(columns[ROW_ID_COLUMN])
        for start in range(0, num_rows, self._row_group_rows):
            stop = min(start + self._row_group_rows, num_rows)
            self._digest.add_row_group({spec.name: columns[spec.name][start:stop] for spec in self._specs})
            self._row_groups.append(stop - start)
        table = pack(columns, self._specs, self._layout)
        self._writer.write_table(table, row_group_size=self._row_group_rows)

    def _count(self, columns: Mapping[str, NDArray[Any]]) -> None:
        for name in self._vocabularies:
            if unknown := int(np.count_nonzero(columns[name] == UNKNOWN_CODE)):
                self._found.unknown[name] += unknown
        for target in self._features.targets:
            values = columns[target.name]
            if target.kind == "regression":
                exact = values.astype(np.float64)
                plain, squares = self._found.sums.get(target.name, (0.0, 0.0))
                self._found.sums[target.name] = plain + float(exact.sum()), squares + float(exact @ exact)
                continue
            counts = self._found.classes.setdefault(target.name, Counter())
            for code, count in enumerate(np.bincount(values.astype(np.int64)).tolist()):
                if count:
                    counts[target.classes[code] if target.classes else str(code)] += count

    def close(self) -> dict[str, Any]:
        if self._packer is not None and (last := self._packer.flush()) is not None:
            self._write(last)
        self._writer.close()
        with self._file.open("rb") as file:
            os.fsync(file.fileno())  # the manifest that names it shall not outlive it
        part = {
            "path": self._path.as_posix(),
            "rows": sum(self._row_groups),
            "row_groups": self._row_groups,
            "size_bytes": self._file.stat().st_size,
            "digest": self._digest.hexdigest(),
        }
        found = self._found
        counted = {
            "unknown": found.unknown,
            "nulls": found.nulls,
            "classes": found.classes,
            "sums": found.sums,
        }
        return {"part": part, **counted}


def _encodings(
    specs: Sequence[ColumnSpec], features: FittedFeatures, config: PrepareConfig
) -> dict[str, Any]:
    """Writer options: dictionaries where they are small, bytes apart where a strong codec follows."""
    layout: Layout = config.layout
    small = {
        o.name for o in features.categorical if o.num_codes is not None and o.num_codes <= _LARGEST_DICTIONARY
    }
    dictionary = [s.name for s in specs if s.dtype == "string" or (layout == "columns" and s.name in small)]
    options: dict[str, Any] = {
        "compression": config.compression,
        "use_dictionary": dictionary,
        "store_schema": False,
        **WRITE_CHECKSUMS,
    }
    if config.compression == "zstd" and layout == "columns":
        floats = [s.name for s in specs if s.dtype in ("float32", "float64") and not s.shape]
        options["use_byte_stream_split"] = floats
    return options
