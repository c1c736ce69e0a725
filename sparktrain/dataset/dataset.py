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

from sparktrain.dataset.manifest import (
    EXAMPLES_FILE,
    FEATURES_FILE,
    MANIFEST_FILE,
    ColumnSpec,
    Manifest,
    Part,
    Split,
)
from sparktrain.dataset.plan import Plan, Tail, count_steps
from sparktrain.dataset.read import FileUnusable, RowGroupReader, SchemaDifference, open_part
from sparktrain.errors import DatasetInvalid, NameUnknown, TooFewRows
from sparktrain.features import FittedFeatures
from sparktrain.features.fitted import ARROW_TYPES
from sparktrain.world import World

if TYPE_CHECKING:
    from sparktrain.dataset.stream import Stream

LATEST_FILE = "latest.json"


def open_dataset(path: Path | str) -> Dataset:
    """Open a dataset's directory, or the directory above it, whose latest.json names the newest one.

    Raises:
        DatasetInvalid: when there is no committed dataset.
    """
    directory = Path(path)
    if (directory / LATEST_FILE).is_file() and not (directory / MANIFEST_FILE).is_file():
        directory = directory / _latest(directory)
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
            DatasetInvalid: when examples.json is missing or does not fit the features.
        """
        types = self.features.input_types
        schema = pa.schema([(name, ARROW_TYPES[input_type]) for name, input_type in types.items()])
        try:
            return pa.Table.from_pylist(json.loads((self.path / EXAMPLES_FILE).read_bytes()), schema)
        except (OSError, ValueError, TypeError, AttributeError, pa.ArrowException) as error:
            raise DatasetInvalid(str(self.path), f"{EXAMPLES_FILE} can't be read ({error})") from error

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
            columns: to read; None reads all.
            shuffle: False reads row groups and rows as they are stored, in each lane.
            num_prefetch: batches that may wait to be taken; up to as many again are being assembled.

        Raises:
            TooFewRows: when an epoch would have no step.
            NameUnknown: for a split or column that does not exist.
            ConfigError: for numbers that don't fit together.
        """
        from sparktrain.dataset.stream import Stream  # it needs torch

        return Stream(
            self.path,
            self.manifest,
            split,
            Plan(self.num_rows(split), global_batch_size, num_lanes, tail),
            self._column_specs(columns),
            world=world or World(),
            seed=seed,
            shuffle=shuffle,
            num_prefetch=num_prefetch,
        )

    def to_arrow(self, split: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Read a whole split as it is stored.

        Raises:
            DatasetInvalid, SchemaMismatch: with the part and row group that can't be read.
        """
        specs = self._column_specs(columns)
        num_row_groups = sum(len(part.row_groups) for part in self._split(split).parts)
        reader = RowGroupReader(self.path, self.manifest, split, [spec.name for spec in specs])
        tables = [reader.read_table(row_group) for row_group in range(num_row_groups)]
        return pa.concat_tables([pa.schema([spec.field for spec in specs]).empty_table(), *tables])

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

    def _column_specs(self, names: Sequence[str] | None) -> Sequence[ColumnSpec]:
        specs = {column.name: column for column in self.manifest.columns}
        for name in names or ():
            if name not in specs:
                raise NameUnknown("column", name, specs, f"the dataset at {self.path}")
        return list(specs.values()) if names is None else [specs[name] for name in dict.fromkeys(names)]
