"""What a pipeline declares about its columns, before any data was seen.

Plain values: no pyspark, no torch, so that training and serving can read them too.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat


class Declared(BaseModel):
    """Base of everything declared: immutable, and a misspelt argument is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class _Feature(Declared):
    name: str
    column: str | None = None

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(name=name, **options)  # type: ignore[call-arg]  # the fields are the subclass' too

    @property
    def source(self) -> str:
        """The raw column that this feature is made of."""
        return self.column or self.name


class Numeric(_Feature):
    """A numeric column, handed to the model as float32.

    Attributes:
        name: what the model knows it by.
        column: the raw column, of any numeric type; None: the same as `name`.
        normalize: "standard" subtracts the training rows' mean and divides by their population standard
            deviation (a constant column is only centred); "none" keeps the value.
        fill: what a null, a NaN or an infinity becomes before normalizing: the training rows' "mean", or a
            (finite) number.
    """

    kind: Literal["numeric"] = "numeric"
    normalize: Literal["standard", "none"] = "standard"
    fill: Literal["mean"] | FiniteFloat = "mean"


class Categorical(_Feature):
    """A column of values from a vocabulary, handed to the model as int32 codes.

    Code 0 is null, code 1 is any value that the vocabulary lacks, codes from 2 on are the vocabulary by
    falling count (ties: by the value's code points).

    Attributes:
        name: what the model knows it by.
        column: the raw column, text, integer or boolean; None: the same as `name`.
        max_size: keep at most this many values.
        min_count: keep only values seen in at least this many training rows.
    """

    kind: Literal["categorical"] = "categorical"
    max_size: int = Field(default=100_000, ge=1)
    min_count: int = Field(default=1, ge=1)


class Target(_Feature):
    """The column to predict. A row without it, or with a value that is not allowed, is quarantined.

    Attributes:
        kind: "binary" is a boolean, or 0 and 1, handed to the loss as float32; "multiclass" is text, integers
            or booleans, handed on as the class' number, int64; "regression" is a number, handed on as float32.
    """

    kind: Literal["binary", "multiclass", "regression"] = "binary"

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(name, **options)


Feature = Annotated[Numeric | Categorical, Field(discriminator="kind")]
