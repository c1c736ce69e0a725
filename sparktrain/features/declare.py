"""What a pipeline declares about its columns, before any data was seen.

Plain values: no pyspark, no torch, so that training and serving can read them too.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Declared(BaseModel):
    """Base of everything declared: immutable, and a misspelt argument is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Numeric(Declared):
    """A numeric column, handed to the model as float32.

    Attributes:
        name: the raw column, of any numeric type.
        normalize: "standard" subtracts the training rows' mean and divides by their population standard
            deviation (a constant column is only centred); "none" keeps the value.
        fill: what a null, a NaN or an infinity becomes before normalizing: the training rows' "mean", or a number.
    """

    kind: Literal["numeric"] = "numeric"
    name: str
    normalize: Literal["standard", "none"] = "standard"
    fill: Literal["mean"] | float = "mean"

    def __init__(self, name: str, **options: object) -> None:
        super().__init__(name=name, **options)


class Categorical(Declared):
    """A column of values from a vocabulary, handed to the model as int32 codes.

    Code 0 is null, code 1 is any value that the vocabulary lacks, codes from 2 on are the vocabulary by falling
    count (ties: by the value's code points).

    Attributes:
        name: the raw column: string, integer or boolean.
        max_size: keep at most this many values.
        min_count: keep only values seen in at least this many training rows.
    """

    kind: Literal["categorical"] = "categorical"
    name: str
    max_size: int = Field(default=100_000, ge=1)
    min_count: int = Field(default=1, ge=1)

    def __init__(self, name: str, **options: object) -> None:
        super().__init__(name=name, **options)


class Target(Declared):
    """The column to predict, handed to the loss as float32; a row without it is quarantined as `target_missing`.

    `kind="binary"` takes 0/1 or a boolean; any other value is quarantined as `target_not_binary`.
    """

    name: str
    kind: Literal["binary"] = "binary"

    def __init__(self, name: str, **options: object) -> None:
        super().__init__(name=name, **options)


Feature = Annotated[Numeric | Categorical, Field(discriminator="kind")]
