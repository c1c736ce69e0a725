"""Raw columns: the few types that features are fitted on, and reading whatever Arrow holds as one of them."""

from __future__ import annotations

from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from sparktrain.features.vectors import is_vectors, lists_of

InputType = Literal["double", "long", "boolean", "string", "timestamp", "date", "binary", "doubles", "longs"]
"""The last two are arrays. An Arrow timestamp keeps whether it has a zone; with one it is in UTC."""

MALFORMED_COLUMN = "_malformed_row"
"""Where a reader of files keeps the text of a row that it could not read; null in the others."""

UNCASTABLE_COLUMN = "_uncastable"
"""Where `cast_columns` keeps the texts that it could not cast: a struct with a field for each cast column."""

ARROW_TYPES: dict[InputType, pa.DataType] = {
    "double": pa.float64(),
    "long": pa.int64(),
    "boolean": pa.bool_(),
    "string": pa.string(),
    "timestamp": pa.timestamp("us", tz="UTC"),
    "date": pa.date32(),
    "binary": pa.large_binary(),  # images of one batch can have more than 2 GiB
    "doubles": pa.list_(pa.float64()),
    "longs": pa.list_(pa.int64()),
}


def read_as(column: pa.Array, input_type: InputType) -> pa.Array:
    """Cast a raw column to the type it had when the feature was fitted.

    pandas turns integers with a missing value into floats with NaN, so NaN is read as null there; a fraction
    in an integer column stays an error, because no vocabulary can hold it. A timestamp without zone stays
    one; dates are read as timestamps without zone, at midnight. Vectors of spark.ml are read as arrays.

    Raises:
        pa.ArrowException: text is no number, a number is no text, and so on.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    target = ARROW_TYPES[input_type]
    given = column.type
    if given == target:
        return column
    if not is_readable(given, input_type):
        raise pa.ArrowTypeError(f"{given} is not {target}")
    if pa.types.is_null(given):
        return pa.nulls(len(column), target)
    if is_vectors(given):
        return lists_of(column)
    if input_type == "timestamp":
        return _as_microseconds(column)
    if input_type == "long" and pa.types.is_floating(given):
        column = column.cast(pa.float64())
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, pa.float64()), column)
    if input_type == "double" and pa.types.is_decimal(given):
        column = column.cast(pa.string())  # the direct cast is off by a bit where Spark's is not
    # Integers beyond 2**53 are rounded to the nearest float64, as Spark does it.
    return column.cast(target, safe=input_type not in ("double", "doubles", "date"))


def _as_microseconds(column: pa.Array) -> pa.Array:
    given = column.type
    zone = "UTC" if pa.types.is_timestamp(given) and given.tz is not None else None
    # pandas' nanoseconds lose three digits; seconds that are too many for microseconds are an error.
    finer = pa.types.is_timestamp(given) and given.unit == "ns"
    return column.cast(pa.timestamp("us", tz=zone), safe=not finer)


def is_readable(given: pa.DataType, input_type: InputType) -> bool:
    """Whether `read_as` takes a column of this Arrow type; single values can still be refused."""
    types = pa.types
    if types.is_dictionary(given):
        given = given.value_type
    if types.is_null(given):
        return True
    if input_type == "string":
        return str(given) in ("string", "large_string", "string_view")
    if input_type == "boolean":
        return bool(types.is_boolean(given))
    if input_type == "binary":
        return str(given).partition("[")[0] in ("binary", "large_binary", "binary_view", "fixed_size_binary")
    if input_type == "timestamp":
        return bool(types.is_timestamp(given) or types.is_date(given))
    if input_type == "date":  # pandas has no dates: it delivers midnights
        return bool(types.is_date(given) or (types.is_timestamp(given) and given.tz is None))
    if input_type == "doubles" and is_vectors(given):
        return True
    if input_type in ("doubles", "longs"):
        lists = (types.is_list, types.is_large_list, types.is_fixed_size_list)
        return any(test(given) for test in lists) and _is_number(given.value_type, input_type == "longs")
    return _is_number(given, False)


def _is_number(given: pa.DataType, whole: bool) -> bool:
    types = pa.types
    if types.is_null(given) or types.is_integer(given):
        return True
    if types.is_floating(given):  # cast to integers, it is held to whole numbers
        return True
    return not whole and bool(types.is_decimal(given) or types.is_boolean(given))
