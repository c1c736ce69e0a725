"""Columns that are handed on as they are."""

from __future__ import annotations

from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import FiniteFloat, model_validator

from sparktrain.features.fitted_columns.column import Arrays, FittedColumn, refuse_nulls
from sparktrain.features.output import Output, OutputType
from sparktrain.features.raw import read_as

_Handed = Literal["long", "double", "boolean", "string", "timestamp", "date"]
_OUTPUTS: dict[_Handed, OutputType] = {
    "long": "int64",
    "double": "float64",
    "boolean": "uint8",
    "string": "string",
    "timestamp": "int64",
    "date": "int64",
}
_FILLS: dict[_Handed, tuple[type, ...]] = {
    "long": (int,),
    "double": (int, float),
    "boolean": (bool,),
    "string": (str,),
    "timestamp": (int,),
    "date": (int,),
}


class FittedPassthrough(FittedColumn):
    """See `declare.Passthrough`. `fill` is what a null becomes, of the output's type; None: refused."""

    kind: Literal["passthrough"] = "passthrough"
    input_type: _Handed
    fill: bool | int | FiniteFloat | str | None

    @model_validator(mode="after")
    def _fill_fits(self) -> Self:
        fits = isinstance(self.fill, _FILLS[self.input_type]) and (
            self.input_type == "boolean" or not isinstance(self.fill, bool)
        )
        if self.fill is not None and not fits:
            raise ValueError(
                f"`{self.column}` is {self.input_type}, so that a null can't become {self.fill!r}: give a "
                f"{_FILLS[self.input_type][-1].__name__}"
            )
        return self

    @property
    def outputs(self) -> tuple[Output, ...]:
        return (Output(name=self.name, dtype=_OUTPUTS[self.input_type]),)

    def transform(self, column: pa.Array) -> Arrays:
        column = read_as(column, self.input_type)
        if self.input_type in ("timestamp", "date"):
            column = read_as(column, "timestamp").cast(pa.int64())
        if self.fill is None:
            refuse_nulls(self.column, column)
        elif column.null_count:
            column = column.fill_null(pa.scalar(self.fill, column.type))
        values: NDArray[Any] = column.to_numpy(zero_copy_only=False)
        return {self.name: values.astype(np.uint8) if self.input_type == "boolean" else values}
