"""What a feature hands to the model: its outputs, and how they are called."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sparktrain.features.declare import Declared, Feature, Target, Timestamp, Tokens

OutputType = Literal["float32", "float64", "int32", "int64", "uint8", "string"]


class Output(Declared):
    """One array that a feature makes of the raw rows.

    Attributes:
        name: what a batch has it under.
        dtype: of numpy; "string" is an object array of `str`.
        shape: of one row's value; () is a plain number.
        num_codes: of codes from 0 on: how many there can be, the rows of an embedding; else None.
    """

    name: str
    dtype: OutputType
    shape: tuple[int, ...] = ()
    num_codes: Annotated[int, Field(ge=1)] | None = None


def output_names(feature: Feature | Target) -> list[str]:
    """The names that a declared feature will give, in the order in which it will give them."""
    names = [feature.name]
    if isinstance(feature, Timestamp):
        names = [name for part in feature.parts for name in part_names(feature.name, part, feature.cyclic)]
    elif isinstance(feature, Tokens):
        names.append(document_name(feature.name) if feature.pack else length_name(feature.name))
    if not isinstance(feature, Target) and getattr(feature, "null_flag", False):
        names.append(flag_name(feature.name))
    return names


def flag_name(name: str) -> str:
    return f"{name}_is_null"


def flag_outputs(name: str, null_flag: bool) -> tuple[Output, ...]:
    """The output that tells which rows had no value, where it was asked for."""
    return (Output(name=flag_name(name), dtype="float32"),) if null_flag else ()


def part_names(name: str, part: str, cyclic: bool) -> list[str]:
    """A cyclic part of a timestamp is a point on a circle, two numbers; another one number."""
    return [f"{name}_{part}_sin", f"{name}_{part}_cos"] if cyclic else [f"{name}_{part}"]


def length_name(name: str) -> str:
    return f"{name}_length"


def document_name(name: str) -> str:
    return f"{name}_document"
