"""Dataset: an immutable directory of Parquet parts, opened by its manifest. Only a stream needs torch."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
from pydantic import ValidationError

from sparktrain.dataset.examples import read_examples
from sparktrain.dataset.layout import ColumnSpec, stored_columns, unpack
from sparktrain.dataset.manifest import (
    FEATURES_FILE,
    MANIFEST_FILE,
    SOURCE_COLUMN,
    WEIGHT_COLUMN,
    Manifest,
    Part,
    Split,
)
from sparktrain.dataset.plan import Plan, Tail, count_steps
from sparktrain.dataset.read import FileUnusable, RowGroupReader, SchemaDifference, Seen, Verify, open_part
from sparktrain.dataset.spark_frame import spark_frame
from sparktrain.errors import ConfigError, DatasetInvalid, NameUnknown, TooFewRows
from sparktrain.features import FittedFeatures
from sparktrain.file_cache import FileCache
from sparktrain.storage import AnyPath, local, path_of
from sparktrain.world import World

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from sparktrain.config import Reader
    from sparktrain.dataset.delivery import Delivery
    from sparktrain.dataset.load import OnBadData
    from sparktrain.dataset.stream import Stream
    from sparktrain.dataset.where import Where

logger = logging.getLogger(__name__)

LATEST_FILE = "latest.json"
DEFAULT_CACHE_BYTES = 100 << 30


def open_dataset(
    path: AnyPath | str,
    *,
    cache: Path | str | None = None,
    cache_bytes: int = DEFAULT_CACHE_BYTES,
    reader: Reader = "sparktrain",
) -> Dataset:
    """Open a dataset's directory, or the directory above it, whose latest.json names the newest one.

    Args:
        path: of the directory, or the URI of one in an object store, such as "s3://bucket/flights".
        cache: a directory on a local disk, where parts that are read from an object store are kept; processes
            and datasets can share it. A local dataset needs none, and ignores it.
        cache_bytes: that the cache may grow to; what was not used for longest makes room. It needs room for
            all that a run reads: else some parts are read from the store, and some fetched again and again.
        reader: what reads its streams; with "petastorm" these lack what `dataset.petastorm_reader` says.

    Raises:
        DatasetInvalid: when there is no committed dataset.
        StoreFailed: an object store refused, or did not answer.
        StoreUriInvalid: the URI makes no sense.
    """
    directory = path_of(path, FileCache(Path(cache).absolute(), cache_bytes) if cache else None)
    if (directory / LATEST_FILE).is_file() and not (directory / MANIFEST_FILE).is_file():
        directory = directory / _latest(directory)
    if reader == "petastorm":
        from sparktrain.dataset.petastorm_reader import PetastormDataset  # it needs torch

        return PetastormDataset(directory, Manifest.load(directory))
    return Dataset(directory, Manifest.load(directory))


def _latest(directory: AnyPath) -> str:
    try:
        name = json.loads((directory / LATEST_FILE).read_bytes())["path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetInvalid(str(directory), f"{LATEST_FILE} can't be read ({error!r})") from error
    if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\\" in name:
        raise DatasetInvalid(str(directory), f"{LATEST_FILE} names {name!r}, which is no folder beside it")
    return name


@dataclass(frozen=True)
class Dataset:
    """A committed dataset.

    Attributes:
        path: its directory; a RemotePath when it lies in an object store.
        manifest: what it consists of.
    """

    path: AnyPath
    manifest: Manifest

    def __repr__(self) -> str:
        rows = ", ".join(f"{split.rows:,} for {name}" for name, split in self.manifest.splits.items())
        return f"Dataset({self.manifest.name!r}: {rows} rows; {self.path})"

    def _repr_html_(self) -> str:
        from sparktrain.dataset.in_notebook import dataset_in_cell

        return dataset_in_cell(self)

    @property
    def fingerprint(self) -> str:
        """Names the content: equal rows, columns and features have equal fingerprints."""
        return self.manifest.fingerprint

    @cached_property
    def features(self) -> FittedFeatures:
        """The fitted features that made the columns.

        Raises:
            DatasetInvalid: when features.json is missing or not the one that the manifest means.
        """
        try:
            return self._read_features()
        except FileUnusable as error:
            raise DatasetInvalid(str(self.path), str(error)) from error

    @cached_property
    def seen(self) -> Seen:
        """What this process knows of the parts; its streams share it."""
        return Seen()

    def examples(self) -> pa.Table:
        """A few raw rows as they came to preparation: the columns and types that the features are made of.

        Raises:
            DatasetInvalid: when examples.parquet is missing, can't be read, or lacks columns.
        """
        return read_examples(self.path, list(self.features.input_types))

    def num_rows(self, split: str) -> int:
        return self._split(split).rows

    def steps_per_epoch(self, split: str, global_batch_size: int, tail: Tail = "drop") -> int:
        """Steps of one epoch, at any world size.

        Raises:
            TooFewRows: when there would be none.
        """
        num_steps = count_steps(self.num_rows(split), global_batch_size, tail)
        if num_steps == 0:
            raise TooFewRows(str(self.path), split, self.num_rows(split), global_batch_size)
        return num_steps

    def stream(
        self,
        split: str,
        global_batch_size: int,
        *,
        num_lanes: int = 8,
        world: World | None = None,
        seed: int = 0,
        tail: Tail = "drop",
        columns: Sequence[str] | None = None,
        pack: Mapping[str, Sequence[str]] | None = None,
        pad: Mapping[str, int] | None = None,
        where: Where | None = None,
        shuffle: bool = True,
        num_threads: int = 2,
        memory_bytes: int | None = None,
        on_bad_data: OnBadData = "fail",
        verify: Verify = "first",
    ) -> Stream:
        """Stream a split in batches that are the same at any world size.

        Args:
            split: "train", "validation" or "test".
            global_batch_size: rows of a step over all ranks.
            num_lanes: places of the epoch's order that each global batch mixes; divides `global_batch_size`.
            world: this rank; it takes rows [rank * G / size, (rank + 1) * G / size) of every global batch.
            seed: of the order; every epoch has another one.
            tail: "drop" leaves out the rows of an incomplete last step, "repeat" fills it up with rows that
                were there before, "mask" pads it with rows of weight 0.
            columns: to read; None reads all but text. Text comes as its bytes in UTF-8: `text` (uint8, of all
                rows, one after another) and `text_offsets` (int64 [rows + 1], where each row begins).
            pack: columns of one dtype to put side by side: {"x": ["a", "b"]} gives `x` of shape [rows, 2] in
                the place of `a` and `b`. Costs nothing where a block has them in this order.
            pad: columns of text to cut off or fill up with zeros: {"text": 64} gives `text` (uint8
                [rows, 64]) and `text_length` (int64 [rows], bytes that are not filling).
            where: rows to take: terms (column, operator, value) that must all hold, such as
                [("month", "<=", 10)]; operators are ==, !=, <, <=, >, >=, in, not in. The columns are read
                once when the stream is made, to count the rows.
            shuffle: False reads row groups and rows as they are stored, in each lane.
            num_threads: that read, decode and assemble.
            memory_bytes: that the stream may use for it, at most, text not counted; None: 1 GiB, or what it
                needs at least.
            on_bad_data: when a row group can't be read: "fail" raises, "mask" gives its rows the weight 0.
            verify: "first" holds pages against their checksums when this `Dataset` reads them for the first
                time, "always" each time.

        Raises:
            TooFewRows: when an epoch would have no step.
            NameUnknown: for a split or column that does not exist.
            ConfigError: for arguments that don't fit together.
        """
        from sparktrain.dataset.inputs import make_input
        from sparktrain.dataset.schedule import SingleSplit
        from sparktrain.dataset.stream import Stream  # it needs torch

        self._split(split)
        given = make_input(
            self.path,
            self.manifest,
            split,
            self.seen,
            seed=seed,
            shuffle=shuffle,
            where=where,
            verify=verify,
        )
        plan = Plan(int(given.source.row_group_rows.sum()), global_batch_size, num_lanes, tail)
        if plan.steps_per_epoch == 0:
            raise TooFewRows(str(self.path), split, plan.num_rows, plan.global_batch_size)
        return Stream(
            [given],
            SingleSplit(plan, given.source),
            self.delivery(columns, pack, pad),
            world=world or World(),
            num_threads=num_threads,
            memory_bytes=memory_bytes,
            on_bad_data=on_bad_data,
        )

    def to_arrow(self, split: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Read a whole split; its schema is `Manifest.logical_schema`, or the chosen columns of it.

        Raises:
            DatasetInvalid, SchemaMismatch: with the part and row group that can't be read.
            NameUnknown: for a split or column that does not exist.
        """
        manifest, names = self.manifest, self._names(columns)
        num_row_groups = sum(len(part.row_groups) for part in self._split(split).parts)
        stored = stored_columns(manifest.columns, manifest.layout, names)
        reader = RowGroupReader(self.path, manifest, split, stored)
        tables = [
            unpack(reader.read_table(row_group), manifest.columns, manifest.layout, names)
            for row_group in range(num_row_groups)
        ]
        schema = pa.schema([manifest.logical_schema.field(name) for name in names])
        return pa.concat_tables([schema.empty_table(), *tables])

    def to_spark(self, spark: SparkSession, split: str, columns: Sequence[str] | None = None) -> DataFrame:
        """Return a split as a DataFrame with the columns of `to_arrow`, lists as arrays, uint8 as smallint.

        Nothing is read before an action. The executors must see the dataset's directory.

        Raises:
            NotLocal: it lies in an object store.
            NameUnknown: for a split or column that does not exist.
        """
        self._split(split)
        return spark_frame(spark, local(self.path, "to_spark"), self.manifest, split, self._names(columns))

    def verify(self, on_bad_data: OnBadData = "fail") -> None:
        """Hold every file's size and footer against the manifest; reads no row.

        Args:
            on_bad_data: "mask" only warns of a part that can't be read, as a stream goes on without it, as
                long as the split has one that can.

        Raises:
            SchemaMismatch: when the only fault is that columns differ, in the same way in all the parts it
                names.
            DatasetInvalid: with everything else, all at once.
        """
        problems: list[str] = []
        unusable: dict[str, str] = {}
        differing: dict[SchemaDifference, list[str]] = {}
        try:
            self._read_features()
        except FileUnusable as error:
            problems.append(str(error))
        for part in self._parts():
            try:
                with open_part(self.path, part) as file:
                    difference = SchemaDifference.between(file.schema_arrow, self.manifest.schema)
            except FileUnusable as error:
                unusable[part.path] = str(error)
                continue
            if any(difference):
                differing.setdefault(difference, []).append(part.path)
        for split in self.manifest.splits.values():
            bad = [unusable[part.path] for part in split.parts if part.path in unusable]
            if on_bad_data == "fail" or len(bad) == len(split.parts):
                problems += bad
            else:
                for problem in bad:
                    logger.warning("%s: its rows will be masked", problem)
        mismatches = [difference.error(", ".join(paths)) for difference, paths in differing.items()]
        if len(mismatches) == 1 and not problems:
            raise mismatches[0]
        problems += map(str, mismatches)
        if problems:
            raise DatasetInvalid(str(self.path), problems)

    def _read_features(self) -> FittedFeatures:
        try:
            content = (self.path / FEATURES_FILE).read_bytes()
        except OSError as error:
            raise FileUnusable(f"{FEATURES_FILE} can't be read ({error.strerror or error})") from error
        if hashlib.sha256(content).hexdigest() != self.manifest.features_sha256:
            raise FileUnusable(f"{FEATURES_FILE} was changed after the manifest was written")
        try:
            return FittedFeatures.from_json(content)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise FileUnusable(
                f"{FEATURES_FILE} was written by another version of sparktrain ({reason})"
            ) from error

    def _parts(self) -> Sequence[Part]:
        return [part for split in self.manifest.splits.values() for part in split.parts]

    def _split(self, name: str) -> Split:
        if name not in self.manifest.splits:
            raise NameUnknown("split", name, self.manifest.splits, f"the dataset at {self.path}")
        return self.manifest.splits[name]

    def _names(self, names: Sequence[str] | None) -> list[str]:
        known = [column.name for column in self.manifest.columns]
        for name in names or ():
            if name not in known:
                raise NameUnknown("column", name, known, f"the dataset at {self.path}")
        return known if names is None else list(dict.fromkeys(names))

    def delivery(
        self,
        columns: Sequence[str] | None = None,
        pack: Mapping[str, Sequence[str]] | None = None,
        pad: Mapping[str, int] | None = None,
    ) -> Delivery:
        """Say how batches with these columns are made; the arguments are those of `stream`.

        Raises:
            NameUnknown: for a column that does not exist.
            ConfigError: for columns that can't be packed or padded.
        """
        from sparktrain.dataset.delivery import Delivery  # it needs torch

        pack = {name: list(members) for name, members in (pack or {}).items()}
        specs = {spec.name: spec for spec in self.manifest.columns}
        members = self._names([name for packed in pack.values() for name in packed])
        problems = list(_packing_problems(pack, specs, columns))
        chosen = [name for name in self._names(columns) if name not in members]
        pad = dict(pad or {})
        self._names(list(pad))
        text = [name for name in specs if specs[name].dtype == "string"]
        texts = {
            name: pad.get(name) for name in text if name in pad or (columns is not None and name in chosen)
        }
        names = [name for name in chosen if name not in text]
        problems += _text_problems(pad, texts, [*names, *pack])
        if problems:
            raise ConfigError(problems, "the stream's columns")
        return Delivery.of(self.manifest.columns, self.manifest.layout, names, pack, texts)


def _packing_problems(
    pack: Mapping[str, Sequence[str]], specs: Mapping[str, ColumnSpec], columns: Sequence[str] | None
) -> Iterator[str]:
    for name, packed in pack.items():
        if not packed or len(set(packed)) < len(packed):
            yield f"pack has {name}={list(packed)}; give one or more columns, each once"
        for member in packed:
            if specs[member].shape or specs[member].dtype == "string":
                yield f"pack has {name}=[… {member} …], which is no column of single numbers"
        if len(dtypes := {specs[member].dtype for member in packed}) > 1:
            yield f"pack has {name} of columns of {', '.join(sorted(dtypes))}; pack those of one dtype"
        taken = {WEIGHT_COLUMN, SOURCE_COLUMN, *(specs if columns is None else columns)}
        if name in taken - set(packed):
            yield f"pack has {name}, which another column of the batch is called; choose another name"


def _text_problems(
    pad: Mapping[str, int], texts: Mapping[str, int | None], taken: Sequence[str]
) -> Iterator[str]:
    for name, width in pad.items():
        if name not in texts:
            yield f"pad has {name}, which is no column of text"
        elif width < 1:
            yield f"pad has {name}={width}; give 1 byte or more"
    for name in texts:
        if clash := {f"{name}_offsets", f"{name}_length"} & {*taken, *texts}:
            yield f"column `{clash.pop()}` is called as what `{name}` brings with it; leave one of them out"
