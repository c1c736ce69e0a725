"""Features after fitting: the one object that prepare, training, scoring and serving share, kept as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import Field, model_validator

from sparktrain.errors import NotOneTarget, SchemaMismatch, ValuesRefused
from sparktrain.features.declare import Declared
from sparktrain.features.fitted_columns import (
    FittedBoolean,
    FittedCategorical,
    FittedImage,
    FittedNumeric,
    FittedPassthrough,
    FittedTarget,
    FittedTimestamp,
    FittedTokens,
    FittedVector,
    FittedWeight,
)
from sparktrain.features.fitted_columns.column import Arrays
from sparktrain.features.output import Output
from sparktrain.features.raw import InputType, is_readable, read_as
from sparktrain.storage import to_json

FittedFeature = Annotated[
    FittedNumeric
    | FittedCategorical
    | FittedBoolean
    | FittedTimestamp
    | FittedVector
    | FittedImage
    | FittedTokens
    | FittedPassthrough,
    Field(discriminator="kind"),
]

_VERSION = 2


class FittedFeatures(Declared):
    """Every feature with its statistics, in the declared order, the targets and the weight.

    Attributes:
        version: of this file's format.
        features: what the model is given.
        targets: what it predicts; not needed to transform features.
        weight: how much each row counts; None: all the same.
    """

    version: Literal[2] = 2
    features: tuple[FittedFeature, ...]
    targets: tuple[FittedTarget, ...] = ()
    weight: FittedWeight | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_of_this_version(cls, given: Any) -> Any:
        version = given.get("version", _VERSION) if isinstance(given, dict) else _VERSION
        if version != _VERSION:
            raise ValueError(
                f"these features have version {version}, this sparktrain reads version {_VERSION}: prepare "
                "the dataset again, and train again what was trained on it"
            )
        return given

    @model_validator(mode="after")
    def _has_no_clash(self) -> FittedFeatures:
        names = [output.name for output in self.outputs] + [target.name for target in self.targets]
        names += [self.weight.name] if self.weight else []
        # Spark does not tell `a` from `A`.
        counts = Counter(name.lower() for name in names)
        if doubled := [name for name in dict.fromkeys(names) if counts[name.lower()] > 1]:
            raise ValueError(f"names that are given twice: {', '.join(doubled)}")
        types = {(feature.column, feature.input_type) for feature in self.features}
        columns = Counter(column for column, _ in types)
        if doubled := sorted(column for column, count in columns.items() if count > 1):
            raise ValueError(f"raw columns that are read as two types: {', '.join(doubled)}")
        return self

    @property
    def packed(self) -> FittedTokens | None:
        """The feature whose texts are packed into blocks, if there is one."""
        return next((f for f in self.features if isinstance(f, FittedTokens) and f.pack), None)

    @property
    def target(self) -> FittedTarget:
        """The only target.

        Raises:
            NotOneTarget: there are several, or none.
        """
        if len(self.targets) != 1:
            raise NotOneTarget([target.name for target in self.targets])
        return self.targets[0]

    @property
    def has_binary_target(self) -> bool:
        """Whether one binary target is all there is, which logistic regression can be compared with."""
        return [target.kind for target in self.targets] == ["binary"]

    @property
    def outputs(self) -> tuple[Output, ...]:
        """What `transform` gives, in its order."""
        return tuple(output for feature in self.features for output in feature.outputs)

    @property
    def numeric(self) -> tuple[Output, ...]:
        """The outputs that are one float32 a row."""
        return tuple(o for o in self.outputs if o.dtype == "float32" and not o.shape)

    @property
    def categorical(self) -> tuple[Output, ...]:
        """The outputs that are one code a row; each says how many codes there are."""
        return tuple(output for output in self.outputs if output.num_codes is not None)

    @property
    def input_types(self) -> dict[str, InputType]:
        """Raw columns that `transform` needs, with their types."""
        return {feature.column: feature.input_type for feature in self.features}

    def to_json(self) -> str:
        return to_json(self.model_dump(mode="json"))

    @classmethod
    def from_json(cls, text: str | bytes) -> FittedFeatures:
        return cls.model_validate_json(text)

    def import_tokenizers(self) -> None:
        """Import the functions that `transform` will call, while their modules can still be found.

        Raises:
            TokenizerUnusable: one can't be imported.
        """
        for feature in self.features:
            if isinstance(feature, FittedTokens) and feature.tokenizer not in (None, "bytes"):
                _ = feature.tokenize

    def check_schema(self, schema: pa.Schema) -> None:
        """Refuse rows that `transform` could not read whatever their values are.

        Raises:
            SchemaMismatch: with every column that is missing or of a type that can't be read as the declared.
        """
        there = dict(zip(schema.names, schema.types, strict=True))
        missing = [name for name in self.input_types if name not in there]
        retyped = {
            name: (str(there[name]), wanted)
            for name, wanted in self.input_types.items()
            if name in there and not is_readable(there[name], wanted)
        }
        if missing or retyped:
            way_out = "give the columns that the training read, with their names and types"
            raise SchemaMismatch("the rows to transform", missing=missing, retyped=retyped, way_out=way_out)

    def transform(self, rows: pa.RecordBatch | pa.Table) -> Arrays:
        """Turn raw rows into what the model takes: arrays of shape [rows, *output.shape] by output.

        An array can be a read-only view of the rows' memory.

        Raises:
            SchemaMismatch: with every column that is missing or can't be read as its declared type.
            ValuesRefused: with every column that has values which its feature was declared not to take.
        """
        return _transform(rows, self.features)

    def transform_targets(self, rows: pa.RecordBatch | pa.Table) -> Arrays:
        """Turn raw rows into the targets and the weight, each of shape [rows], by name.

        Raises:
            SchemaMismatch, ValuesRefused: as `transform` does.
        """
        return _transform(rows, (*self.targets, *((self.weight,) if self.weight else ())))


def _transform(
    rows: pa.RecordBatch | pa.Table, parts: Sequence[FittedFeature | FittedTarget | FittedWeight]
) -> Arrays:
    columns = _read_columns(rows, parts)
    arrays: Arrays = {}
    refused: dict[str, str] = {}
    for part in parts:
        try:
            made = part.transform(columns[part.column, part.input_type])
        except ValuesRefused as error:
            refused.update(error.columns)
            continue
        arrays.update(made if isinstance(made, dict) else {part.name: made})
    if refused:
        raise ValuesRefused(refused)
    return arrays


def _read_columns(
    rows: pa.RecordBatch | pa.Table, parts: Sequence[FittedFeature | FittedTarget | FittedWeight]
) -> dict[tuple[str, InputType], pa.Array]:
    """Every raw column, read once, by its name and the type that it is read as."""
    missing: dict[str, None] = {}
    retyped: dict[str, tuple[str, str]] = {}
    columns: dict[tuple[str, InputType], pa.Array] = {}
    names = set(rows.schema.names)
    wanted: dict[tuple[str, InputType], None] = {(part.column, part.input_type): None for part in parts}
    for name, input_type in wanted:
        if name not in names:
            missing[name] = None
            continue
        column = rows.column(name)
        if isinstance(column, pa.ChunkedArray):
            column = column.combine_chunks()
        try:
            columns[name, input_type] = read_as(column, input_type)
        except pa.ArrowException:
            retyped[name] = (str(column.type), input_type)
    if missing or retyped:
        raise SchemaMismatch("the rows to transform", missing=list(missing), retyped=retyped)
    return columns
