"""What a pipeline declares about its columns, before any data was seen.

Plain values: no pyspark, no torch, so that training and serving can read them too. The raw column is the
one of the feature's name, unless `column` names another.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveInt, field_validator, model_validator

NumberType = Literal["float32", "float64", "int32", "int64", "uint8"]
TimestampPart = Literal["minute", "hour", "day", "day_of_week", "day_of_year", "month", "year"]

_TOKENIZER = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_NUM_BYTE_TOKENS = 256


class Declared(BaseModel):
    """Base of everything declared: immutable, and a misspelt argument is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class _OfColumn(Declared):
    name: Annotated[str, Field(min_length=1)]
    column: str | None = None

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(name=name, **options)  # type: ignore[call-arg]  # the fields are the subclass' too

    @property
    def source(self) -> str:
        """The raw column that this is made of."""
        return self.column or self.name


class Numeric(_OfColumn):
    """A numeric column, handed to the model as float32.

    A value is replaced where `fill`, `nan` or `infinity` say so, clipped, normalized.

    Attributes:
        normalize: how, by statistics of the training rows' values. "standard" subtracts their mean and
            divides by their population standard deviation; "minmax" maps smallest and largest to 0 and 1;
            "robust" subtracts the median and divides by the distance between the quartiles; where the divisor
            would be zero, the value is only centred. Medians and quartiles are exact for whole numbers of a
            range up to 16,384, else within 2**-10 of the value's own size: numbers that lie close together
            far from zero (seconds since 1970, say) need a constant subtracted first. "log1p" is log(1 + x),
            "none" keeps the value.
        clip: lowest and highest value in the column's own units, None for no bound. With "log1p" the lowest
            is 0 when not given.
        fill: what a null becomes: the training rows' "mean" or "median" (0 where they have no value), a
            number; "fail" refuses nulls.
        nan: what a NaN becomes: "null" treats it as a null, a number takes its place, "fail" refuses it.
        infinity: "null" treats it as a null; "clip" makes it the training rows' largest or smallest finite
            value, or clip's bound when given; "fail" refuses it.
        null_flag: adds the output `<name>_is_null`, 1.0 for a null and for what is treated as one.
    """

    kind: Literal["numeric"] = "numeric"
    normalize: Literal["standard", "minmax", "robust", "log1p", "none"] = "standard"
    clip: tuple[FiniteFloat | None, FiniteFloat | None] | None = None
    fill: Literal["mean", "median", "fail"] | FiniteFloat = "mean"
    nan: Literal["null", "fail"] | FiniteFloat = "null"
    infinity: Literal["null", "clip", "fail"] = "null"
    null_flag: bool = False

    @model_validator(mode="after")
    def _has_sound_bounds(self) -> Self:
        low, high = self.clip or (None, None)
        if self.normalize == "log1p":
            if low is not None and low <= -1:
                raise ValueError(f"clip's lowest value is {low:g}, log1p takes values above -1: raise it")
            low = 0.0 if low is None else low
        if low is not None and high is not None and low > high:
            raise ValueError(
                f"clip's lowest value {low:g} is above its highest {high:g}: give (lowest, highest)"
            )
        return self


class Categorical(_OfColumn):
    """A column of text, integers or booleans, handed to the model as int32 codes.

    Code 0 is null, code 1 is any value that the vocabulary lacks. Codes from 2 on are the vocabulary by
    falling count (ties: by the value's code points), or the hash's bucket.

    Attributes:
        encoding: "vocabulary" learns the training rows' values; "hash" learns nothing, and values may share a
            bucket (see `features.hashing`).
        max_size: of the vocabulary; more values than these are unknown.
        min_count: keep only values seen in at least this many training rows.
        num_buckets: of the hash.
    """

    kind: Literal["categorical"] = "categorical"
    encoding: Literal["vocabulary", "hash"] = "vocabulary"
    max_size: Annotated[int, Field(ge=1)] = 100_000
    min_count: Annotated[int, Field(ge=1)] = 1
    num_buckets: Annotated[int, Field(ge=1, le=2**31 - 3)] = 1024

    @model_validator(mode="after")
    def _has_options_of_its_encoding(self) -> Self:
        ignored = ["num_buckets"] if self.encoding == "vocabulary" else ["max_size", "min_count"]
        fields = type(self).model_fields
        if given := [name for name in ignored if getattr(self, name) != fields[name].default]:
            other = "hash" if self.encoding == "vocabulary" else "vocabulary"
            raise ValueError(
                f'{" and ".join(given)} would be ignored with encoding="{self.encoding}": leave it out, or '
                f'say encoding="{other}"'
            )
        return self


class Boolean(_OfColumn):
    """A boolean column, handed to the model as float32 0 or 1.

    Attributes:
        fill: what a null becomes; "fail" refuses nulls.
        null_flag: adds the output `<name>_is_null`, 1.0 for a null.
    """

    kind: Literal["boolean"] = "boolean"
    fill: bool | Literal["fail"] = False
    null_flag: bool = False


class Timestamp(_OfColumn):
    """A timestamp or a date, handed to the model as parts of the calendar, float32. A null is zeros.

    Attributes:
        parts: which. Monday is day_of_week 0, all others count as people do (January is month 1).
        cyclic: a part becomes a point on the circle, `<name>_<part>_sin` and `<name>_<part>_cos`, so that 23
            o'clock lies beside 0 o'clock; else the number itself, `<name>_<part>`. A month has 31 days there
            and a year 366.
        time_zone: of the calendar, such as "Europe/Berlin". A timestamp without zone is taken as being there.
            After 2037 Arrow knows no summer time.
        null_flag: adds the output `<name>_is_null`, 1.0 for a null.
    """

    kind: Literal["timestamp"] = "timestamp"
    parts: Annotated[tuple[TimestampPart, ...], Field(min_length=1)] = ("hour", "day_of_week", "month")
    cyclic: bool = True
    time_zone: str = "UTC"
    null_flag: bool = False

    @field_validator("time_zone")
    @classmethod
    def _is_known(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (KeyError, ValueError, OSError) as error:
            if name == "UTC":  # which needs no database
                return name
            raise ValueError(
                f"there is no time zone {name!r}: give a name of the tz database such as 'Europe/Berlin'"
            ) from error
        return name

    @model_validator(mode="after")
    def _has_sound_parts(self) -> Self:
        if len(set(self.parts)) < len(self.parts):
            raise ValueError(f"parts holds a part twice: {', '.join(self.parts)}")
        if self.cyclic and "year" in self.parts:
            raise ValueError(
                "a year never comes again, so it can't be cyclic: declare it as a Timestamp of its own with "
                'parts=("year",) and cyclic=False'
            )
        return self


class Vector(_OfColumn):
    """Numbers of a fixed shape in each row, handed to the model as an array of that shape.

    The raw column is an array of numbers (row-major when the shape has several dimensions), or binary of
    exactly the bytes of one row: row-major, little-endian, of this dtype.

    Attributes:
        shape: of one row; an integer is a shape of one dimension.
        fill: "zeros" makes a null row zeros, and a null, NaN or infinity within a row zero; "fail" refuses
            them. A row of another size, or a number that dtype can't hold, is always refused.
    """

    kind: Literal["vector"] = "vector"
    shape: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
    dtype: NumberType = "float32"
    fill: Literal["zeros", "fail"] = "zeros"

    @field_validator("shape", mode="before")
    @classmethod
    def _one_dimension(cls, shape: object) -> object:
        return (shape,) if isinstance(shape, int) else shape


class Image(_OfColumn):
    """An image in each row, handed to the model as uint8 pixels [height, width, channels].

    The raw column is binary: exactly the bytes of the pixels, row-major, or a PNG or JPEG of this height and
    width, which is converted to 1 (grey), 3 (RGB) or 4 (RGBA) channels.

    Attributes:
        shape: (height, width, channels).
        fill: "zeros" makes a null black; "fail" refuses nulls. What is no such image is always refused.
    """

    kind: Literal["image"] = "image"
    shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    dtype: Literal["uint8"] = "uint8"
    fill: Literal["zeros", "fail"] = "zeros"


class Tokens(_OfColumn):
    """Text as numbers, handed to the model as int32 [block_size].

    Each row is cut or padded at its end, and its length before padding, at most block_size, is the output
    `<name>_length`, int32; a null has length 0. With `pack`, a dataset's rows are blocks instead: a split's
    texts are laid one after the other, in their shuffled order, and cut into blocks, so that no token is
    lost and only the last block of a part is padded. The output `<name>_document`, int32 [block_size], then
    says where a text begins and ends: it counts the texts within the block from 0 on, and is -1 for padding.
    A row that is transformed by itself, in serving, is a block of one text.

    Attributes:
        block_size: number of tokens in a row.
        tokenizer: a "module:function" that takes a text and returns a sequence of integers; "bytes" takes the
            text's UTF-8 bytes plus one, 1 to 256, so that 0 is left for padding; None takes a column that is
            an array of integers already.
        pad_id: what follows the last token.
        pack: make blocks of texts; there can be no other feature then, no target and no weight, because a
            block is of several rows.
    """

    kind: Literal["tokens"] = "tokens"
    block_size: PositiveInt
    tokenizer: str | None = None
    pad_id: Annotated[int, Field(ge=-(2**31), lt=2**31)] = 0
    pack: bool = False

    @model_validator(mode="after")
    def _has_a_tokenizer(self) -> Self:
        check_tokenizer(self.tokenizer, self.pad_id)
        return self


class Passthrough(_OfColumn):
    """A column that is handed on as it is: int64, float64, uint8 (of booleans) or text; timestamps and dates
    as int64 microseconds since 1970 in UTC (one without zone is taken as UTC).

    Attributes:
        fill: what a null becomes, of the column's type (microseconds for a timestamp); "fail" refuses nulls.
    """

    kind: Literal["passthrough"] = "passthrough"
    fill: bool | int | FiniteFloat | str = "fail"


class Target(_OfColumn):
    """The column to predict. A row without it, or with a value that is not allowed, is quarantined.

    Attributes:
        kind: "binary" is a boolean, or 0 and 1, handed to the loss as float32; "multiclass" is text,
            integers or booleans, handed on as the class' number, int64; "regression" is a number, handed on
            as float32.
    """

    kind: Literal["binary", "multiclass", "regression"] = "binary"


Feature = Annotated[
    Numeric | Categorical | Boolean | Timestamp | Vector | Image | Tokens | Passthrough,
    Field(discriminator="kind"),
]


def check_tokenizer(tokenizer: str | None, pad_id: int) -> None:
    """Raise ValueError for a tokenizer of no known form, or padding that looks like a byte."""
    if tokenizer == "bytes":
        if 1 <= pad_id <= _NUM_BYTE_TOKENS:
            raise ValueError(f"pad_id {pad_id} is a byte's token: give 0, or a number above 256")
    elif tokenizer is not None and not _TOKENIZER.fullmatch(tokenizer):
        raise ValueError(f'tokenizer is {tokenizer!r}: give "module:function", "bytes", or leave it out')
