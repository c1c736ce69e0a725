"""Tokens: cut or padded to one length, whatever made them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sparktrain.errors import TokenizerUnusable, ValuesRefused
from sparktrain.features import FittedTokens

HERE = "sparktrain_tokenizers_of_this_test"


def tokens(**changes: Any) -> FittedTokens:
    sound: dict[str, Any] = {"input_type": "longs", "block_size": 4, "pad_id": -1}
    return FittedTokens(name="k", column="k", **(sound | changes))


@pytest.fixture
def tokenizers(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    from types import ModuleType

    module = ModuleType(HERE)
    vars(module).update(
        words=lambda text: [len(word) for word in text.split()],
        array=lambda text: np.arange(len(text)),
        large=lambda text: [2**40],
        letters=lambda text: list(text),
    )
    monkeypatch.setitem(sys.modules, HERE, module)


@given(
    rows=st.lists(st.none() | st.lists(st.integers(0, 9), max_size=8), max_size=10),
    start=st.integers(0, 3),
    block_size=st.integers(1, 6),
)
def test_rows_are_cut_or_padded(rows: list[list[int] | None], start: int, block_size: int) -> None:
    column = pa.array(rows, pa.list_(pa.int32())).slice(start)
    arrays = tokens(block_size=block_size).transform(column)
    cut = [(row or [])[:block_size] for row in rows[start:]]
    assert arrays["k"].tolist() == [row + [-1] * (block_size - len(row)) for row in cut]
    assert arrays["k_length"].tolist() == [len(row) for row in cut]
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.int32)}
    assert arrays["k"].shape == (len(cut), block_size)


@given(st.lists(st.none() | st.text(max_size=6), max_size=8), st.integers(0, 3))
def test_bytes_are_numbered_from_one(texts: list[str | None], start: int) -> None:
    column = pa.array(texts, pa.string()).slice(start)
    arrays = tokens(tokenizer="bytes", input_type="string", pad_id=0, block_size=8).transform(column)
    for row, text in enumerate(texts[start:]):
        content = list((text or "").encode())[:8]
        assert arrays["k"][row].tolist() == [byte + 1 for byte in content] + [0] * (8 - len(content))
        assert arrays["k_length"][row] == len(content)


@pytest.mark.usefixtures("tokenizers")
def test_a_function_of_ones_own_gives_the_tokens() -> None:
    column = pa.array(["a bb ccc", None, "", "a a a a a a"])
    arrays = tokens(tokenizer=f"{HERE}:words", input_type="string").transform(column)
    assert arrays["k"].tolist() == [[1, 2, 3, -1], [-1] * 4, [-1] * 4, [1] * 4]
    assert arrays["k_length"].tolist() == [3, 0, 0, 4]
    array = tokens(tokenizer=f"{HERE}:array", input_type="string").transform(pa.array(["abc"]))
    assert array["k"].tolist() == [[0, 1, 2, -1]]


@pytest.mark.usefixtures("tokenizers")
def test_what_is_no_token_id_is_refused() -> None:
    with pytest.raises(ValuesRefused, match="1 number that int32 can't hold"):
        tokens(tokenizer=f"{HERE}:large", input_type="string").transform(pa.array(["a"]))
    with pytest.raises(TokenizerUnusable, match="it returned <U1, not a sequence of integers"):
        tokens(tokenizer=f"{HERE}:letters", input_type="string").transform(pa.array(["ab"]))
    with pytest.raises(ValuesRefused, match="1 null within the arrays"):
        tokens().transform(pa.array([[1, None]]))
    with pytest.raises(ValuesRefused, match="2 numbers that int32 can't hold"):
        tokens().transform(pa.array([[2**31, 1], [-(2**31) - 1]]))


@pytest.mark.usefixtures("tokenizers")
@pytest.mark.parametrize("tokenizer", [f"{HERE}:missing", "no_such_module:words"])
def test_a_tokenizer_that_is_not_there_is_named(tokenizer: str) -> None:
    with pytest.raises(TokenizerUnusable, match=f"The tokenizer {tokenizer} of feature `k` can't be used"):
        tokens(tokenizer=tokenizer, input_type="string").transform(pa.array(["a"]))


@pytest.mark.parametrize(
    "change", [{"tokenizer": "bytes"}, {"input_type": "string"}, {"tokenizer": "x", "input_type": "string"}]
)
def test_text_has_a_tokenizer_and_integers_have_none(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="tokenizer"):
        tokens(**change)
