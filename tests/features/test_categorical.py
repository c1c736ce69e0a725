"""Categories: the same code for the same value, in a column, alone, and in years to come."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sparktrain.features import FittedCategorical, InputType
from sparktrain.features.hashing import hash_text


def categorical(*vocabulary: str, input_type: InputType = "string") -> FittedCategorical:
    return FittedCategorical(name="c", column="c", input_type=input_type, vocabulary=vocabulary)


def hashed(num_buckets: int, input_type: InputType = "string") -> FittedCategorical:
    return FittedCategorical(name="c", column="c", input_type=input_type, num_buckets=num_buckets)


def codes(feature: FittedCategorical, column: pa.Array) -> list[int]:
    out = feature.transform(column)["c"]
    assert out.dtype == np.int32
    return out.tolist()


def plain_hash(text: str) -> int:
    """The definition, letter by letter."""
    state = 0xCBF29CE484222325
    for byte in text.encode():
        state = (state ^ byte) * 0x100000001B3 % 2**64
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
    return state ^ (state >> 31)


def test_known_values_unknown_values_and_nulls_have_codes_of_their_own() -> None:
    column = pa.array(["b", "a", "", "never seen", None, "A"])
    assert codes(categorical("b", "a", ""), column) == [2, 3, 4, 1, 0, 1]
    assert codes(categorical(), column) == [1, 1, 1, 1, 0, 1]


@given(
    vocabulary=st.lists(st.text(max_size=3), unique=True, max_size=30),
    values=st.lists(st.none() | st.text(max_size=3), max_size=40),
    start=st.integers(0, 5),
)
def test_a_vocabulary_is_looked_up_alike_whatever_its_size(
    vocabulary: list[str], values: list[str | None], start: int
) -> None:
    # Few values among many are looked up in another way than many among few.
    feature = categorical(*vocabulary)
    expected = [0 if v is None else vocabulary.index(v) + 2 if v in vocabulary else 1 for v in values]
    assert codes(feature, pa.array(values, pa.string()).slice(start)) == expected[start:]
    assert [codes(feature, pa.array([v], pa.string()))[0] for v in values] == expected


@pytest.mark.parametrize("kind", ["large_string", "string_view", "dictionary", "null"])
def test_text_is_text_however_it_is_stored(kind: str) -> None:
    values = pa.array(["b", None, "x"])
    if kind == "string_view" and not hasattr(pa, "string_view"):
        pytest.skip("this pyarrow has no string views")
    if kind == "dictionary":
        column, expected = values.dictionary_encode(), [2, 0, 1]
    elif kind == "null":
        column, expected = pa.nulls(2), [0, 0]
    else:
        column, expected = pa.array(values.to_pylist(), pa.type_for_alias(kind)), [2, 0, 1]
    assert codes(categorical("b"), column) == expected


def test_integers_that_pandas_turned_into_floats_are_integers_again() -> None:
    frame = pd.DataFrame({"month": [1, 12, None, 7]})
    assert frame["month"].dtype == np.float64
    column = pa.Array.from_pandas(frame["month"])
    month = categorical("12", "1", input_type="long")
    assert codes(month, column) == [3, 2, 0, 1]
    assert codes(month, pa.array([1.0, float("nan")], pa.float32())) == [3, 0]


def test_booleans_are_categories() -> None:
    weekend = categorical("false", "true", input_type="boolean")
    assert codes(weekend, pa.array([True, False, None])) == [3, 2, 0]


def test_looking_up_leaves_the_feature_what_it_was() -> None:
    used, fresh = categorical("a", "b"), categorical("a", "b")
    used.transform(pa.array(["a"]))
    assert used == fresh
    assert used.model_dump() == fresh.model_dump()


def test_a_hash_never_changes() -> None:
    frozen = {
        "": 0xF52A15E9A9B5E89B,
        "a": 0x02C0BDBF481420F8,
        "UA": 0x48C0E8FE3EE0F5ED,
        "Zürich": 0xC65E9341AF283A5D,
        "a longer text, of more than one machine word": 0xE20B0B042132D334,
    }
    assert dict(zip(frozen, hash_text(pa.array(frozen.keys())).tolist(), strict=True)) == frozen


@given(st.lists(st.none() | st.text(max_size=20), max_size=30), st.integers(0, 3))
def test_the_hash_is_its_definition(values: list[str | None], start: int) -> None:
    column = pa.array(values, pa.string()).slice(start)
    assert hash_text(column).tolist() == [plain_hash(value or "") for value in values[start:]]


@given(st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), max_size=20))
def test_a_hashed_value_gets_the_code_of_its_bucket(values: list[int | None]) -> None:
    expected = [0 if v is None else plain_hash(str(v)) % 7 + 2 for v in values]
    assert codes(hashed(7, "long"), pa.array(values, pa.int64())) == expected
    text = pa.array([None if v is None else str(v) for v in values], pa.string())
    assert codes(hashed(7), text) == expected


def test_similar_words_spread_over_the_buckets() -> None:
    found = np.bincount(codes(hashed(64), pa.array([f"user-{i}" for i in range(6400)])))
    assert found[:2].sum() == 0
    assert 50 < found[2:].min() <= found[2:].max() < 160


def test_the_number_of_codes_counts_null_and_unknown() -> None:
    assert categorical("a", "b").outputs[0].num_codes == categorical("a", "b").num_codes == 4
    assert hashed(64).outputs[0].num_codes == 66


@pytest.mark.parametrize("encoding", [{}, {"vocabulary": (), "num_buckets": 3}, {"vocabulary": ("a", "a")}])
def test_an_encoding_is_one_of_two(encoding: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=r"either vocabulary or num_buckets|holds a value twice"):
        FittedCategorical.model_validate({"name": "c", "column": "c", "input_type": "string", **encoding})
