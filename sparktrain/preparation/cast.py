"""Casting columns without losing a row: what can't be cast is kept, marked, and quarantined by `clean`."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, DataType, DoubleType, FloatType, MapType, StructType

from sparktrain.errors import CastsInvalid
from sparktrain.features import UNCASTABLE_COLUMN
from sparktrain.preparation.analysis import resolve

UNCASTABLE_RULE = "uncastable_"
_INFINITE_TEXT = r"(?i)^\s*[+-]?inf(inity)?\s*$"


def cast_columns(df: DataFrame, types: Mapping[str, str], *, optional: Collection[str] = ()) -> DataFrame:
    """Cast columns, the same way in ANSI mode and without.

    A value that is there and can't be cast becomes null, and its text stays in `_uncastable`, a struct with a
    text field for each cast column (the struct is null in rows without such a value); `prepare` quarantines
    the row under `uncastable_<column>`, with that text. What is too large for the new type can't be cast
    either. A fraction is cut off when a number becomes an integer; text with a fraction is no integer.

    Args:
        types: SQL type by column, such as {"amount": "double", "day": "date"}.
        optional: columns of `types` that `df` may lack, such as the target in rows to be scored.

    Raises:
        CastsInvalid: no such column, no such type, or one that this column can't have; names every one.
    """
    given = {field.name: field.dataType for field in df.schema.fields}
    types = {name: kind for name, kind in types.items() if name in given or name not in optional}
    resolved = {name: _resolved(df, given, name, kind) for name, kind in types.items()}
    if problems := [fault for _, fault in resolved.values() if fault]:
        raise CastsInvalid(problems, df.columns)
    originals = {name: F.col(UNCASTABLE_COLUMN).getField(name) for name in uncastable_columns(df)}
    cast: dict[str, Column] = {}
    for name, kind in types.items():
        cast[name] = _cast(name, kind, is_float=isinstance(resolved[name][0], (FloatType, DoubleType)))
        text = F.col(f"`{name}`").cast("string")
        failed = F.when(F.col(f"`{name}`").isNotNull() & cast[name].isNull(), text)
        originals[name] = F.coalesce(originals[name], failed) if name in originals else failed
    any_text = F.coalesce(*originals.values()) if originals else F.lit(None)
    packed = F.when(
        any_text.isNotNull(), F.struct(*[text.alias(name) for name, text in originals.items()])
    ).alias(UNCASTABLE_COLUMN)
    kept = [name for name in df.columns if name != UNCASTABLE_COLUMN]
    columns = [cast[name].alias(name) if name in cast else F.col(f"`{name}`") for name in kept]
    return df.select(*columns, packed) if originals else df


def uncastable_columns(df: DataFrame) -> list[str]:
    """Columns that `cast_columns` has cast."""
    if UNCASTABLE_COLUMN not in df.columns:
        return []
    kind = df.schema[UNCASTABLE_COLUMN].dataType
    return kind.fieldNames() if isinstance(kind, StructType) else []


def _cast(name: str, kind: str, is_float: bool) -> Column:
    cast = F.expr(_sql(name, kind))
    if not is_float:
        return cast
    # A float overflows to infinity without an error: an infinity must have been one before.
    was_infinite = F.col(f"`{name}`").cast("string").rlike(_INFINITE_TEXT)
    return F.when((F.abs(cast) < F.lit(float("inf"))) | F.isnan(cast) | was_infinite, cast)


def _sql(name: str, kind: str) -> str:
    return f"try_cast(`{name}` AS {kind})"


def _resolved(
    df: DataFrame, given: Mapping[str, DataType], name: str, kind: str
) -> tuple[DataType | None, str]:
    """The type that a cast gives; or None, and what is wrong in one line."""
    if name not in given:
        return None, f"there is no column `{name}`"
    if isinstance(given[name], (ArrayType, MapType, StructType)):
        return None, f"`{name}` is {given[name].simpleString()}; cast what is inside of it with an expression"
    found, fault = resolve(df, _sql(name, kind))
    return found, f"`{name}` AS {kind}: {fault}" if fault else ""
