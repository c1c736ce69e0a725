"""Numbers: replaced, clipped, normalized."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat, model_validator

from sparktrain.errors import ValuesRefused
from sparktrain.features.fitted_columns.column import Arrays, FittedColumn, all_finite, counted, null_mask
from sparktrain.features.output import Output, flag_name, flag_outputs
from sparktrain.features.raw import read_as

Replacement = FiniteFloat | Literal["null"] | None
"""A number; "null": treated as a null; None: refused."""


class FittedNumeric(FittedColumn):
    """replace → clip to [low, high] → log(1 + x) if log1p → (x - offset) / scale in float64 → float32.

    Minus zero becomes zero: sorting can't tell them apart, so that a dataset's bytes would depend on the
    order in which its rows came.

    Attributes:
        fill: what a null becomes, before clipping; None: nulls are refused.
        nan, positive_infinity, negative_infinity: what becomes of each, before clipping.
        low, high: bounds in raw units; log1p needs a low one.
        null_flag: also give `<name>_is_null`.
    """

    kind: Literal["numeric"] = "numeric"
    input_type: Literal["double", "long"]
    fill: FiniteFloat | None
    nan: Replacement = "null"
    positive_infinity: Replacement = "null"
    negative_infinity: Replacement = "null"
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None
    log1p: bool = False
    offset: FiniteFloat = 0.0
    scale: Annotated[FiniteFloat, Field(gt=0)] = 1.0
    null_flag: bool = False

    @model_validator(mode="after")
    def _gives_numbers(self) -> Self:
        if self.log1p and (self.low is None or self.low <= -1):
            raise ValueError(f"log1p needs a lower bound above -1, low is {self.low}")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low {self.low:g} is above high {self.high:g}")
        return self

    @property
    def outputs(self) -> tuple[Output, ...]:
        return (Output(name=self.name, dtype="float32"), *flag_outputs(self.name, self.null_flag))

    def transform(self, column: pa.Array) -> Arrays:
        column = read_as(column, "double")
        missing = null_mask(column) if self.null_flag else None
        nulls = column.null_count
        if nulls:
            # Refusing waits until everything else was counted.
            column = column.fill_null(0.0 if self.fill is None else self.fill)
        values = column.to_numpy()
        if (nulls and self.fill is None) or not all_finite(values):
            values = self._replaced(values, nulls, missing)
        arrays: Arrays = {self.name: self._normalized(values)}
        if missing is not None:
            arrays[flag_name(self.name)] = missing.astype(np.float32)
        return arrays

    def _replaced(
        self, values: NDArray[np.float64], nulls: int, missing: NDArray[np.bool_] | None
    ) -> NDArray[np.float64]:
        """Replace what is not finite, and add what counts as a null to `missing`."""
        values = values.copy()  # Arrow's memory
        refused = [counted(nulls, "null")] if nulls and self.fill is None else []
        replacements: list[tuple[NDArray[np.bool_], Replacement, str, str]] = [
            (np.isnan(values), self.nan, "NaN", "NaNs"),
            (values == np.inf, self.positive_infinity, "positive infinity", "positive infinities"),
            (values == -np.inf, self.negative_infinity, "negative infinity", "negative infinities"),
        ]
        for mask, replacement, one, several in replacements:
            number = int(np.count_nonzero(mask))
            if not number:
                continue
            if replacement == "null" and missing is not None:
                missing |= mask
            becomes = self.fill if replacement == "null" else replacement
            if becomes is None:
                refused.append(counted(number, one, several))
            else:
                np.copyto(values, becomes, where=mask)
        if refused:
            raise ValuesRefused({self.column: ", ".join(refused)})
        return values

    def _normalized(self, values: NDArray[np.float64]) -> NDArray[np.float32]:
        values = _clipped(values, self.low, self.high)
        if self.log1p:
            values = np.log1p(values)
        with np.errstate(over="ignore"):
            if self.offset:
                values = values - self.offset
            out: NDArray[np.float32]
            if self.scale == 1.0:
                out = values.astype(np.float32)
            else:  # divided in float64; only the result is rounded
                out = np.empty(len(values), np.float32)
                np.divide(values, self.scale, out=out, casting="same_kind")
        out += np.float32(0)
        return out


def _clipped(values: NDArray[Any], low: float | None, high: float | None) -> NDArray[Any]:
    if low is not None:
        values = np.maximum(values, low)
    return values if high is None else np.minimum(values, high)
