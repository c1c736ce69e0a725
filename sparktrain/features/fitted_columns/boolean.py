"""Booleans as 0 and 1."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow as pa

from sparktrain.features.fitted_columns.column import Arrays, FittedColumn, null_mask, refuse_nulls
from sparktrain.features.output import Output, flag_name, flag_outputs
from sparktrain.features.raw import read_as


class FittedBoolean(FittedColumn):
    """float32 0 or 1. `fill` is what a null becomes; None: nulls are refused."""

    kind: Literal["boolean"] = "boolean"
    input_type: Literal["boolean"] = "boolean"
    fill: bool | None
    null_flag: bool = False

    @property
    def outputs(self) -> tuple[Output, ...]:
        return (Output(name=self.name, dtype="float32"), *flag_outputs(self.name, self.null_flag))

    def transform(self, column: pa.Array) -> Arrays:
        column = read_as(column, "boolean")
        if self.fill is None:
            refuse_nulls(self.column, column)
        filled = column.fill_null(bool(self.fill)) if column.null_count else column
        arrays: Arrays = {self.name: filled.to_numpy(zero_copy_only=False).astype(np.float32)}
        if self.null_flag:
            arrays[flag_name(self.name)] = null_mask(column).astype(np.float32)
        return arrays
