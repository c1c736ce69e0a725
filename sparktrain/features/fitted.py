"""Features after fitting: the one object that prepare, training, scoring and serving share, stored as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from sparktrain.errors import SchemaMismatch
from sparktrain.features.declare import Declared, Target
from sparktrain.storage import to_json

NULL_CODE = 0
UNKNOWN_CODE = 1
FIRST_VOCABULARY_CODE = 2

InputType = Literal["double", "long", "boolean", "string"]
ARROW_TYPES: dict[InputType, pa.DataType] = {
    "double": pa.float64(),
    "long": pa.int64(),
    "boolean": pa.bool_(),
    "string": pa.string(),
}


class FittedNumeric(Declared):
    """`(fill if x is null, NaN or infinite else x) - offset, divided by scale`, in float64, then float32."""

    kind: Literal["numeric"] = "numeric"
    name: str
    column: str
    input_type: InputType
    fill: float
    offset: float
    scale: float

    def transform(self, column: pa.Array) -> NDArray[np.float32]:
        values = column.cast(pa.float64()).to_numpy(zero_copy_only=False)  # a null arrives as NaN
        filled = np.where(np.isfinite(values), values, self.fill)
        with np.errstate(over="ignore"):
            return ((filled - self.offset) / self.scale).astype(np.float32)


class FittedCategorical(Declared):
    """Codes of `vocabulary`: see `Categorical`."""

    kind: Literal["categorical"] = "categorical"
    name: str
    column: str
    input_type: InputType
    vocabulary: tuple[str, ...]

    @property
    def num_codes(self) -> int:
        return len(self.vocabulary) + FIRST_VOCABULARY_CODE

    def transform(self, column: pa.Array) -> NDArray[np.int32]:
        text = column.cast(pa.string())
        positions = pc.index_in(text, value_set=pa.array(self.vocabulary, pa.string()))
        codes = pc.fill_null(pc.add(positions, FIRST_VOCABULARY_CODE), UNKNOWN_CODE)
        codes = pc.if_else(pc.is_null(text), NULL_CODE, codes)
        return np.asarray(codes.to_numpy(zero_copy_only=False), dtype=np.int32)


FittedFeature = Annotated[FittedNumeric | FittedCategorical, Field(discriminator="kind")]


class FittedFeatures(Declared):
    """Every feature with its statistics, in the declared order, and the target.

    Attributes:
        version: of this file's format.
        features: what the model is given, by column.
        target: what it predicts; not needed to transform.
    """

    version: Literal[1] = 1
    features: tuple[FittedFeature, ...]
    target: Target

    @property
    def numeric(self) -> list[FittedNumeric]:
        return [f for f in self.features if isinstance(f, FittedNumeric)]

    @property
    def categorical(self) -> list[FittedCategorical]:
        return [f for f in self.features if isinstance(f, FittedCategorical)]

    @property
    def input_types(self) -> dict[str, InputType]:
        """Raw columns that `transform` needs, with their types."""
        return {feature.column: feature.input_type for feature in self.features}

    def to_json(self) -> str:
        return to_json(self.model_dump(mode="json"))

    @classmethod
    def from_json(cls, text: str | bytes) -> FittedFeatures:
        return cls.model_validate_json(text)

    def transform(self, rows: pa.RecordBatch | pa.Table) -> dict[str, NDArray[np.generic]]:
        """Turn raw rows into what the model takes: float32 and int32 arrays of shape [rows], by feature.

        The same arithmetic, in the same order, as the Column expressions of `preparation.apply`.

        Raises:
            SchemaMismatch: with every column that is missing or can't be read as its declared type.
        """
        columns = self._read_columns(rows)
        return {feature.name: feature.transform(columns[feature.column]) for feature in self.features}

    def _read_columns(self, rows: pa.RecordBatch | pa.Table) -> Mapping[str, pa.Array]:
        missing = [name for name in self.input_types if name not in rows.schema.names]
        retyped: dict[str, tuple[str, str]] = {}
        columns: dict[str, pa.Array] = {}
        for name, input_type in self.input_types.items():
            if name in missing:
                continue
            column = rows.column(name)
            if isinstance(column, pa.ChunkedArray):
                column = column.combine_chunks()
            try:
                columns[name] = read_as(column, input_type)
            except pa.ArrowException:
                retyped[name] = (str(column.type), input_type)
        if missing or retyped:
            raise SchemaMismatch("the rows to transform", missing=missing, retyped=retyped)
        return columns


def read_as(column: pa.Array, input_type: InputType) -> pa.Array:
    """Cast a raw column to the type it had when the feature was fitted.

    pandas turns integers with a missing value into floats with NaN, so NaN is read as null there; a fraction in an
    integer column stays an error, because no vocabulary can hold it.
    """
    target = ARROW_TYPES[input_type]
    if input_type in ("string", "boolean") and not (column.type == target or pa.types.is_null(column.type)):
        if pa.types.is_large_string(column.type) or pa.types.is_dictionary(column.type):
            return column.cast(pa.string())
        raise pa.ArrowTypeError(f"{column.type} is not {target}")
    if pa.types.is_string(column.type) and input_type != "string":
        raise pa.ArrowTypeError("text is not a number")
    if input_type == "long" and pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    return column.cast(target)
