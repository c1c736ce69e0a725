"""What is predicted, and how much each row counts."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat, model_validator

from sparktrain.errors import ValuesRefused
from sparktrain.features.declare import Declared
from sparktrain.features.fitted_columns.column import counted, refuse_nulls
from sparktrain.features.fitted_columns.vocabulary import NULL, Vocabulary
from sparktrain.features.output import Output
from sparktrain.features.raw import InputType, read_as

_INPUT_TYPES: dict[str, tuple[InputType, ...]] = {
    "binary": ("boolean", "long", "double"),
    "multiclass": ("string", "long", "boolean"),
    "regression": ("double", "long"),
}


class FittedTarget(Declared):
    """A column to predict.

    Attributes:
        name: what the batch has it under.
        column: the raw column.
        kind: "binary" is float32 0 or 1, "multiclass" the class' number as int64, "regression" float32.
        classes: of "multiclass": each class as text, by its number.
    """

    name: str
    column: str
    kind: Literal["binary", "multiclass", "regression"]
    input_type: Literal["boolean", "long", "double", "string"]
    classes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.input_type not in _INPUT_TYPES[self.kind]:
            allowed = ", ".join(_INPUT_TYPES[self.kind])
            raise ValueError(
                f"a {self.kind} target is made of {allowed}; `{self.column}` is {self.input_type}"
            )
        if (self.kind == "multiclass") != bool(self.classes):
            raise ValueError(f"{len(self.classes)} classes are given for a {self.kind} target")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("a class is given twice")
        return self

    @property
    def output(self) -> Output:
        return Output(name=self.name, dtype="int64" if self.kind == "multiclass" else "float32")

    def transform(self, column: pa.Array) -> NDArray[Any]:
        """Turn the raw column into what the loss takes, shape [rows].

        Raises:
            ValuesRefused: values that are missing or not allowed.
            pa.ArrowException: a column that can't be read as `input_type`.
        """
        column = read_as(column, self.input_type)
        if self.kind == "multiclass":
            return self._numbers(column)
        refuse_nulls(self.column, column)
        given = read_as(column, "double").to_numpy()
        with np.errstate(over="ignore"):
            values: NDArray[np.float32] = given.astype(np.float32)
        values += np.float32(0)  # minus zero becomes zero
        if self.kind == "binary":
            self._refuse((given != 0) & (given != 1), "value other than 0 and 1", "values other than 0 and 1")
        else:
            self._refuse(
                ~np.isfinite(values), "value that is no finite float32", "values that are no finite float32"
            )
        return values

    def _numbers(self, column: pa.Array) -> NDArray[np.int64]:
        numbers = self._known.positions(column)
        if numbers.size and numbers.min() < 0:
            refuse_nulls(self.column, column)
            self._refuse(
                (numbers < 0) & (numbers != NULL), "value of no known class", "values of no known class"
            )
        return numbers.astype(np.int64)

    def _refuse(self, wrong: NDArray[np.bool_], one: str, several: str) -> None:
        if number := int(np.count_nonzero(wrong)):
            raise ValuesRefused({self.column: counted(number, one, several)})

    @cached_property
    def _known(self) -> Vocabulary:
        return Vocabulary(self.classes)


class FittedWeight(Declared):
    """How much each row counts: `column / scale`, float32. Missing, negative or infinite ones are refused."""

    name: str
    column: str
    input_type: Literal["double", "long"]
    scale: Annotated[FiniteFloat, Field(gt=0)] = 1.0

    @property
    def output(self) -> Output:
        return Output(name=self.name, dtype="float32")

    def transform(self, column: pa.Array) -> NDArray[np.float32]:
        """Turn the raw column into weights, shape [rows].

        Raises:
            ValuesRefused: values that are missing, negative, NaN or infinite.
            pa.ArrowException: a column that can't be read as `input_type`.
        """
        column = read_as(read_as(column, self.input_type), "double")
        refuse_nulls(self.column, column)
        with np.errstate(over="ignore"):
            weights: NDArray[np.float32] = (column.to_numpy() / self.scale).astype(np.float32)
        weights += np.float32(0)
        if wrong := int(np.count_nonzero(~((weights >= 0) & np.isfinite(weights)))):
            what = counted(wrong, "value that is no weight", "values that are no weights")
            raise ValuesRefused({self.column: f"{what} (a finite number from 0 on)"})
        return weights
