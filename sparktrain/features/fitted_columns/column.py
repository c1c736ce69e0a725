"""FittedColumn: what every fitted feature can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sparktrain.errors import ValuesRefused
from sparktrain.features.declare import Declared
from sparktrain.features.output import Output
from sparktrain.features.raw import InputType

Arrays = dict[str, NDArray[Any]]
"""Arrays of shape [rows, *shape of the output] by the output's name."""


class FittedColumn(Declared, ABC):
    """A raw column and all that is needed to turn it into a feature's outputs.

    Attributes:
        name: the feature's.
        column: the raw column.
        input_type: what it was when the feature was fitted; `transform` reads it as that.
    """

    name: str
    column: str
    input_type: InputType

    @property
    @abstractmethod
    def outputs(self) -> tuple[Output, ...]:
        """What `transform` gives, in its order."""

    @abstractmethod
    def transform(self, column: pa.Array) -> Arrays:
        """Turn the raw column into the outputs.

        Raises:
            ValuesRefused: values that the feature was declared not to take.
            pa.ArrowException: a column that can't be read as `input_type`.
        """


def null_mask(column: pa.Array) -> NDArray[np.bool_]:
    """True where there is no value, shape [rows]."""
    if column.null_count == 0:
        return np.zeros(len(column), np.bool_)
    mask: NDArray[np.bool_] = column.is_null().to_numpy(zero_copy_only=False)
    return mask


def refuse_nulls(name: str, column: pa.Array) -> None:
    """Raise ValuesRefused for the raw column `name` when there is a null in it."""
    if column.null_count:
        raise ValuesRefused({name: counted(column.null_count, "null")})


def counted(number: int, one: str, several: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def all_finite(values: NDArray[np.floating[Any]]) -> bool:
    """Whether there is neither NaN nor infinity; a sum that overflows says no as well. One pass."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(values.sum()))
