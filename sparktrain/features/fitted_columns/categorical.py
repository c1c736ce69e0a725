"""Categories: a code for each value of a vocabulary, or for each bucket of a hash."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Literal, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, model_validator

from sparktrain.features.fitted_columns.column import Arrays, FittedColumn
from sparktrain.features.fitted_columns.vocabulary import NOT_THERE, NULL, Vocabulary
from sparktrain.features.hashing import hash_text
from sparktrain.features.output import Output
from sparktrain.features.raw import read_as

NULL_CODE = 0
UNKNOWN_CODE = 1
FIRST_CODE = 2


class FittedCategorical(FittedColumn):
    """int32 codes: 0 null, 1 unknown, from 2 on the vocabulary's values or the hash's buckets.

    Attributes:
        vocabulary: the known values as text, in the order of their codes; or
        num_buckets: of the hash: the code is 2 + `hash_text` modulo num_buckets. One of the two is given.
    """

    kind: Literal["categorical"] = "categorical"
    input_type: Literal["string", "long", "boolean"]
    vocabulary: tuple[str, ...] | None = None
    num_buckets: Annotated[int, Field(ge=1, le=2**31 - 3)] | None = None

    @model_validator(mode="after")
    def _has_one_encoding(self) -> Self:
        if (self.vocabulary is None) == (self.num_buckets is None):
            raise ValueError("give either vocabulary or num_buckets")
        if self.vocabulary is not None and len(set(self.vocabulary)) < len(self.vocabulary):
            raise ValueError("the vocabulary holds a value twice")
        return self

    @property
    def num_codes(self) -> int:
        return FIRST_CODE + (self.num_buckets or len(self.vocabulary or ()))

    @property
    def outputs(self) -> tuple[Output, ...]:
        return (Output(name=self.name, dtype="int32", num_codes=self.num_codes),)

    def transform(self, column: pa.Array) -> Arrays:
        column = read_as(column, self.input_type)
        if self.num_buckets is not None:
            return {self.name: _hashed(column, self.num_buckets)}
        codes = self._known.positions(column)
        codes += np.int32(FIRST_CODE)  # a value that is not there gets 1, a null 0
        return {self.name: codes}

    @cached_property
    def _known(self) -> Vocabulary:
        return Vocabulary(self.vocabulary or ())


assert (NOT_THERE + FIRST_CODE, NULL + FIRST_CODE) == (UNKNOWN_CODE, NULL_CODE)


def _hashed(column: pa.Array, num_buckets: int) -> NDArray[np.int32]:
    encoded = column.dictionary_encode()  # each value is hashed once
    buckets = hash_text(encoded.dictionary.cast(pa.string())) % np.uint64(num_buckets)
    codes = np.append(buckets.astype(np.int32) + np.int32(FIRST_CODE), np.int32(NULL_CODE))
    indices = encoded.indices
    if indices.null_count:
        indices = indices.fill_null(len(buckets))
    hashed: NDArray[np.int32] = codes[indices.to_numpy()]
    return hashed
