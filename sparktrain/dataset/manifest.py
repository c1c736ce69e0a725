"""manifest.json: what a dataset consists of. It is written last, so that its existence is the commit."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sparktrain.dataset.layout import ColumnSpec, Layout, stored_schema
from sparktrain.errors import DatasetInvalid
from sparktrain.storage import AnyPath, to_json

FORMAT: Literal["sparktrain.dataset/2"] = "sparktrain.dataset/2"
MANIFEST_FILE = "manifest.json"
FEATURES_FILE = "features.json"
EXAMPLES_FILE = "examples.parquet"  # a few raw rows
WEIGHT_COLUMN = "row_weight"  # batches carry it beside the columns
SOURCE_COLUMN = "row_source"  # and this one, when they are of a mixture

Count = Annotated[int, Field(ge=0)]


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Part(Record):
    """A Parquet file.

    Attributes:
        path: relative to the dataset's directory, with `/`.
        rows: in the file; the sum of `row_groups`.
        row_groups: rows of each row group, in the file's order.
        size_bytes: of the file.
        digest: of its content, as the writer took it.
    """

    path: str
    rows: Count
    row_groups: tuple[Count, ...]
    size_bytes: Count
    digest: str

    @field_validator("path")
    @classmethod
    def _stays_inside(cls, path: str) -> str:
        pure = PurePosixPath(path)
        if not path or pure.is_absolute() or ".." in pure.parts or "\\" in path:
            raise ValueError(
                f"{path!r} must be a path inside the dataset's directory: relative, without `..`"
            )
        return path

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if sum(self.row_groups) != self.rows:
            raise ValueError(f"{self.path} has {self.rows} rows, its row groups {sum(self.row_groups)}")
        return self


class Split(Record):
    """One of train, validation, test: its parts in the order that plans count on."""

    rows: Count
    parts: tuple[Part, ...]

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        total = sum(part.rows for part in self.parts)
        if total != self.rows:
            raise ValueError(f"the split has {self.rows} rows, its parts {total}")
        return self


class Manifest(Record):
    """Everything that a reader must know before it opens a part.

    Attributes:
        columns: as people see them.
        layout: how they lie in the parts.
        key: name and type of each column that identifies a row, in the order in which they are hashed; empty:
            the whole row does.
        appended_to: fingerprint of the version that rows were added to; None: prepared at once.
    """

    format: Literal["sparktrain.dataset/2"] = FORMAT
    name: str
    fingerprint: str = Field(pattern="^[0-9a-f]{32}$")
    columns: tuple[ColumnSpec, ...]
    layout: Layout = "columns"
    splits: dict[str, Split]
    rows_in: Count
    rows_kept: Count
    quarantined: dict[str, Count]
    features_sha256: str
    key: tuple[tuple[str, str], ...] = ()
    appended_to: str | None = None
    prepare: dict[str, Any]
    versions: dict[str, str]

    @field_validator("columns")
    @classmethod
    def _have_names_of_their_own(cls, columns: tuple[ColumnSpec, ...]) -> tuple[ColumnSpec, ...]:
        names = [column.name for column in columns]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"column names must differ, but these occur twice: {', '.join(doubled)}")
        if WEIGHT_COLUMN in names:
            raise ValueError(f"no column may be called {WEIGHT_COLUMN}: batches use that name")
        return columns

    @model_validator(mode="after")
    def _has_a_schema(self) -> Self:
        _ = self.schema  # a column may not have the name of a block
        return self

    @property
    def schema(self) -> pa.Schema:
        """The schema of every part, as it is stored."""
        return stored_schema(self.columns, self.layout)

    @property
    def logical_schema(self) -> pa.Schema:
        """The columns as people see them, whatever the layout; a shape is a fixed-size list, row-major."""
        return pa.schema([column.field for column in self.columns])

    def to_json(self) -> str:
        return to_json(self.model_dump(mode="json"))

    @classmethod
    def load(cls, path: AnyPath) -> Manifest:
        """Read the manifest of the dataset directory `path`.

        Raises:
            DatasetInvalid: when there is none, or none that this version understands.
        """
        try:
            content = json.loads((path / MANIFEST_FILE).read_bytes())
        except FileNotFoundError:
            raise DatasetInvalid(str(path), _no_manifest(path)) from None
        except (OSError, ValueError) as error:
            raise DatasetInvalid(str(path), f"{MANIFEST_FILE} can't be read ({error})") from error
        given = content.get("format") if isinstance(content, dict) else type(content).__name__
        if given != FORMAT:
            problem = f"its format is {given!r}, this version of sparktrain reads {FORMAT!r}"
            raise DatasetInvalid(
                str(path), problem, "prepare it again, or read it with the version that wrote it"
            )
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise DatasetInvalid(
                str(path), f"{MANIFEST_FILE} is wrong: {'; '.join(_problems(error))}"
            ) from error


def _no_manifest(path: AnyPath) -> str:
    if not path.is_dir():
        return "there is no such directory"
    return f"it was never committed (no {MANIFEST_FILE}), because its preparation was stopped or still runs"


def _problems(error: ValidationError) -> Iterable[str]:
    for problem in error.errors(include_url=False):
        place = ".".join(map(str, problem["loc"]))
        yield f"{place}: {problem['msg'].removeprefix('Value error, ')}"
