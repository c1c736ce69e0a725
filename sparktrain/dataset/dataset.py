"""Dataset: an immutable directory of Parquet parts, opened by its manifest. Only a stream needs torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
from pydantic import ValidationError

from sparktrain.dataset.examples import read_examples
from sparktrain.dataset.layout import stored_columns, unpack
from sparktrain.dataset.manifest import (
    FEATURES_FILE,
    MANIFEST_FILE,
    Manifest,
    Part,
    Split,
)
from sparktrain.dataset.plan import Plan, Tail, count_steps
from sparktrain.dataset.read import FileUnusable, RowGroupReader, SchemaDifference, open_part
from sparktrain.dataset.spark_frame import spark_frame
from sparktrain.errors import ConfigError, DatasetInvalid, NameUnknown, TooFewRows
from sparktrain.features import FittedFeatures
from sparktrain.world import World

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from sparktrain.config import Reader
    from sparktrain.dataset.stream import Stream

LATEST_FILE = "latest.json"


def open_dataset(path: Path | str, reader: Reader = "sparktrain") -> Dataset:
    """Open a dataset's directory, or the directory above it, whose latest.json names the newest one.

    Args:
        reader: what reads its streams; with "petastorm" these lack what `dataset.petastorm_reader` says.

    Raises:
        DatasetInvalid: when there is no committed dataset.
    """
    directory = Path(path)
    if (directory / LATEST_FILE).is_file() and not (directory / MANIFEST_FILE).is_file():
        directory = directory / _latest(directory)
    if reader == "petastorm":
        from sparktrain.dataset.petastorm_reader import PetastormDataset  # it needs torch

        return PetastormDataset(directory, Manifest.load(directory))
    return Dataset(directory, Manifest.load(directory))


def _latest(directory: Path) -> str:
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
        path: its directory.
        manifest: what it consists of.
    """

    path: Path
    manifest: Manifest

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
        shuffle: bool = True,
        num_prefetch: int = 4,
    ) -> Stream:
        """Stream a split in batches that are the same at any world size.

        Args:
            split: "train", "validation" or "test".
            global_batch_size: rows of a step over all ranks.
            num_lanes: places of the epoch's order that each global batch mixes; divides `global_batch_size`.
            world: this rank; it takes rows [rank * G / size, (rank + 1) * G / size) of every global batch.
            seed: of the order; every epoch has another one.
            tail: "drop" leaves out the rows of an incomplete last step, "mask" pads it with rows of weight 0.
            columns: to read; None reads all but text.
            shuffle: False reads row groups and rows as they are stored, in each lane.
            num_prefetch: batches that may wait to be taken; up to as many again are being assembled.

        Raises:
            TooFewRows: when an epoch would have no step.
            NameUnknown: for a split or column that does not exist.
            ConfigError: for numbers that don't fit together, or a column of text.
        """
        from sparktrain.dataset.stream import Stream  # it needs torch

        return Stream(
            self.path,
            self.manifest,
            split,
            Plan(self.num_rows(split), global_batch_size, num_lanes, tail),
            self._streamed(columns),
            world=world or World(),
            seed=seed,
            shuffle=shuffle,
            num_prefetch=num_prefetch,
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
            NameUnknown: for a split or column that does not exist.
        """
        self._split(split)
        return spark_frame(spark, self.path, self.manifest, split, self._names(columns))

    def verify(self) -> None:
        """Hold every file's size and footer against the manifest; reads no row.

        Raises:
            SchemaMismatch: when the only fault is that columns differ, in the same way in all the parts it
            names. DatasetInvalid: with everything else, all at once.
        """
        problems: list[str] = []
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
                problems.append(str(error))
                continue
            if any(difference):
                differing.setdefault(difference, []).append(part.path)
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
            raise FileUnusable(f"{FEATURES_FILE} can't be read ({error.strerror})") from error
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

    def _streamed(self, names: Sequence[str] | None) -> list[str]:
        text = {column.name for column in self.manifest.columns if column.dtype == "string"}
        chosen = self._names(names)
        if names is not None and (refused := [name for name in chosen if name in text]):
            problems = [
                f"column `{n}` is text, a stream gives numbers; read it by `to_arrow`" for n in refused
            ]
            raise ConfigError(problems, "the stream's columns")
        return [name for name in chosen if name not in text]
