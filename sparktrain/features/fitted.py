"""Features after fitting: the one object that prepare, training, scoring and serving share, kept as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat

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
    """`(fill if x is null, NaN or infinite else x) - offset, divided by scale`, in float64, then float32.

    Minus zero becomes zero: sorting can't tell them apart, so that a dataset's bytes would depend on the
    order in which its rows came.
    """

    kind: Literal["numeric"] = "numeric"
    name: str
    column: str
    input_type: InputType
    fill: FiniteFloat
    offset: FiniteFloat
    scale: Annotated[FiniteFloat, Field(gt=0)]

    def transform(self, column: pa.Array) -> NDArray[np.float32]:
        values = read_as(column, "double").to_numpy(zero_copy_only=False)  # a null arrives as NaN
        filled = np.where(np.isfinite(values), values, self.fill)
        with np.errstate(over="ignore"):
            return ((filled - self.offset) / self.scale).astype(np.float32) + np.float32(0)


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

    pandas turns integers with a missing value into floats with NaN, so NaN is read as null there; a fraction
    in an integer column stays an error, because no vocabulary can hold it.

    Raises:
        pa.ArrowException: text is no number, a number is no text, and so on.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    target = ARROW_TYPES[input_type]
    if not _is_readable(column.type, input_type):
        raise pa.ArrowTypeError(f"{column.type} is not {target}")
    if input_type == "long" and pa.types.is_floating(column.type):
        column = column.cast(pa.float64())
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, pa.float64()), column)
    if input_type == "double" and pa.types.is_decimal(column.type):
        column = column.cast(pa.string())  # the direct cast is off by a bit where Spark's is not
    # Integers beyond 2**53 are rounded to the nearest float64, as Spark does it.
    return column.cast(target, safe=input_type != "double")


def _is_readable(given: pa.DataType, input_type: InputType) -> bool:
    if pa.types.is_null(given):
        return True
    if input_type == "string":
        return str(given) in ("string", "large_string", "string_view")
    if input_type == "boolean":
        return bool(pa.types.is_boolean(given))
    return any(
        test(given)
        for test in (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean)
    )
