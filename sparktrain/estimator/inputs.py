"""Input columns: which there are, when a row's are invalid, and how features are made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.ml.functions import vector_to_array
from pyspark.ml.linalg import VectorUDT
from pyspark.sql import Column
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ArrayType,
    BooleanType,
    DataType,
    DateType,
    DoubleType,
    FloatType,
    NumericType,
    StringType,
    StructField,
    StructType,
    TimestampNTZType,
    TimestampType,
)

from sparktrain.errors import ConfigError, SchemaMismatch
from sparktrain.estimator.params import ESTIMATOR, TorchParams, declared_features
from sparktrain.features import Boolean, Categorical, Feature, Numeric, Timestamp, Vector
from sparktrain.features.vectors import dense_rows, lists_of_rows

Shape = Literal["vector", "array", "index", "plain"]

MOST = float(np.finfo(np.float32).max)
_MOST_NUMBERS = 4_000_000


@dataclass(frozen=True)
class Input:
    """A column that a model is given.

    Attributes:
        name: of the column.
        shape: "vector" is Spark's type, dense or sparse; "array" an array of numbers; "index" what a
            StringIndexer made, a class as a double; "plain" any other.
        type: Spark's name of it, "double" say.
        size: of a vector or an array; 0: not known yet.
    """

    name: str
    shape: Shape
    type: str
    size: int = 0

    @property
    def is_shaped(self) -> bool:
        return self.shape in ("vector", "array")


def inputs_of(params: TorchParams, features_col: str, schema: StructType) -> list[Input]:
    """Return the inputs that Params name, as a DataFrame has them.

    Raises:
        SchemaMismatch: columns that are missing, there twice, or of a type that nothing can be made of.
        ConfigError: inputCols and declaredFeatures are both given.
    """
    names, declared = params.value("inputCols"), params.value("declaredFeatures")
    if names and declared:
        problem = "inputCols: declaredFeatures is given, too; the features say which columns they are made of"
        raise ConfigError([f"{problem}; leave one of them out"], ESTIMATOR)
    if declared:
        names = list(dict.fromkeys(feature.source for feature in declared_features(declared)))
    fields = {field.name: field for field in schema.fields}
    wanted = names or [features_col]
    missing = [name for name in wanted if name not in fields]
    if doubled := [name for name in wanted if schema.fieldNames().count(name) > 1]:
        way_out = "there are several columns of this name; rename or drop the others"
        raise SchemaMismatch("the DataFrame", unexpected=doubled, way_out=way_out)
    retyped = {}
    found = []
    for name in wanted:
        if name in missing:
            continue
        field = fields[name]
        shape = _shape_of(field)
        if (shape is None and not declared) or (not names and shape not in ("vector", "array")):
            expected = "a number, a boolean, text, a time or a vector" if names else "a vector or an array"
            retyped[name] = (field.dataType.simpleString(), expected)
        else:
            found.append(Input(name, shape or "plain", field.dataType.simpleString(), _size_of(field)))
    if missing or retyped:
        way_out = f"there are {', '.join(fields)}"
        if not names:
            way_out += "; make a vector with VectorAssembler, or name plain columns: inputCols=[...]"
        raise SchemaMismatch("the DataFrame", missing=missing, retyped=retyped, way_out=way_out)
    return found


def _shape_of(field: StructField) -> Shape | None:
    kind = field.dataType
    if isinstance(kind, VectorUDT):
        return "vector"
    if isinstance(kind, ArrayType):
        return "array" if isinstance(kind.elementType, NumericType) else None
    if isinstance(kind, DoubleType) and _attributes(field).get("type") == "nominal":
        return "index"
    plain = (NumericType, BooleanType, StringType, TimestampType, TimestampNTZType, DateType)
    return "plain" if isinstance(kind, plain) else None


def _attributes(field: StructField) -> Mapping[str, Any]:
    found: Mapping[str, Any] = (field.metadata or {}).get("ml_attr", {})
    return found


def _size_of(field: StructField) -> int:
    """A vector's, where the stage that made it says so."""
    return int(_attributes(field).get("num_attrs", 0)) if isinstance(field.dataType, VectorUDT) else 0


def num_classes_of(field: StructField) -> int | None:
    """How many classes a label has, where the stage that made it says so."""
    attributes = _attributes(field)
    if attributes.get("type") != "nominal":
        return None
    values = attributes.get("vals")
    return len(values) if values is not None else attributes.get("num_vals")


def is_valid(inputs: Sequence[Input], schema: StructType) -> Column:
    """Whether a row has no null, NaN, infinity or number beyond float32 among its inputs."""
    conditions = [_is_there(item, schema[item.name].dataType) for item in inputs]
    return reduce(lambda a, b: a & b, conditions)


def _is_there(item: Input, kind: DataType) -> Column:
    column = F.col(f"`{item.name}`")
    if item.is_shaped:
        # of a null it would fail, and `when` computes only what it needs
        numbers = vector_to_array(column) if item.shape == "vector" else column
        bad = F.exists(numbers, lambda x: x.isNull() | ~_is_finite(x))
        return F.when(column.isNull(), F.lit(False)).otherwise(~bad)
    is_number = isinstance(kind, DoubleType | FloatType)
    return column.isNotNull() & _is_finite(column) if is_number else column.isNotNull()


def _is_finite(number: Column) -> Column:
    """As a float32, which is what a network gets."""
    return F.abs(number.cast("double")) <= MOST  # in Spark a NaN is above all numbers


def rows_at_once(width: int) -> int:
    """How many rows of so many numbers to hold dense at once: 32 MB of float64."""
    return max(1, _MOST_NUMBERS // max(width, 1))


def raw_column(item: Input) -> Column:
    """What `prepare` is given of an input: of its name, of a type that features are made of."""
    column = F.col(f"`{item.name}`")
    if item.shape == "vector":
        made = F.when(column.isNotNull(), vector_to_array(column, "float32"))
    elif item.shape == "index":
        made = F.when(F.abs(column) < 2.0**63, column.cast("long"))  # in Spark a NaN is above all numbers
    else:
        made = column
    return made.alias(item.name)


def features_of(inputs: Sequence[Input], params: TorchParams) -> list[Feature]:
    """Declare what is made of each input; what was declared by the user stays as it is."""
    if declared := params.value("declaredFeatures"):
        return declared_features(declared)
    return [_feature_of(item) for item in inputs]


def _feature_of(item: Input) -> Feature:
    if item.is_shaped:
        return Vector(name=item.name, shape=(item.size,))
    if item.shape == "index" or item.type.startswith(("string", "char", "varchar")):
        return Categorical(name=item.name)
    if item.type == "boolean":
        return Boolean(name=item.name, null_flag=True)
    if item.type.startswith(("timestamp", "date")):
        return Timestamp(name=item.name)
    return Numeric(name=item.name)


def raw_rows(
    batch: pa.RecordBatch, inputs: Sequence[Input], names: Sequence[str], errors: dict[int, str]
) -> pa.Table:
    """Turn the inputs of a batch into what `prepare` was given of them.

    Args:
        names: of the columns that it was given, which may be others by now.
        errors: gets why a row can't be taken, by its place.
    """
    columns: dict[str, pa.Array] = {}
    for item, name in zip(inputs, names, strict=True):
        column = batch.column(batch.schema.get_field_index(item.name))
        if item.shape == "vector":
            rows, problems = dense_rows(column, item.size)
            errors.update({place: f"column `{item.name}`: {text}" for place, text in problems.items()})
            column = lists_of_rows(rows, column.is_null().to_numpy(zero_copy_only=False))
        elif item.shape == "index":
            is_whole = pc.less(pc.abs(column), 2.0**63)  # neither NaN nor infinite
            column = pc.if_else(is_whole, column, pa.scalar(None, pa.float64())).cast(pa.int64(), safe=False)
        columns[name] = column
    return pa.table(columns)
