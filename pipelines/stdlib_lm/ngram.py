"""What the model is compared with: an n-gram model of order 3, fitted on the same blocks.

A byte's probability given the k bytes before it is the mixture of Witten and Bell (1991),
    p_k(b | c) = (count(c b) + kinds(c) * p_{k-1}(b | c')) / (count(c) + kinds(c)),
where c' is c without its oldest byte, kinds(c) the number of different bytes seen after c, and p_{-1} is
uniform over the 256 bytes. It knows what the transformer knows: where a file or a block begins, the bytes
before are the symbol 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sparktrain.dataset import Dataset

ORDER = 3
_NUM_SYMBOLS = 257
_Codes = NDArray[np.int64]


def bits_per_byte(dataset: Dataset) -> float:
    """Fit on the train split; return the bits per byte of the test split."""
    return NGram.fit(*_blocks(dataset, "train")).bits_per_byte(*_blocks(dataset, "test"))


@dataclass(frozen=True)
class _Order:
    """What was seen of one length of context; both tables are sorted by their codes.

    Attributes:
        grams, gram_counts: each context with the byte after it, and how often.
        contexts, context_counts, kinds: each context, how often, and how many different bytes came after.
    """

    grams: _Codes
    gram_counts: _Codes
    contexts: _Codes
    context_counts: _Codes
    kinds: _Codes


class NGram:
    """Probabilities of bytes given the `ORDER` bytes before them."""

    def __init__(self, orders: list[_Order]) -> None:
        self._orders = orders

    @classmethod
    def fit(cls, symbols: NDArray[Any], document: NDArray[Any]) -> Self:
        """Count blocks: symbols (1 to 256) and number of the document (-1: padding), [rows, block_size]."""
        last, contexts = with_contexts(symbols, document)
        return cls([_count(last, context) for context in contexts])

    def bits_per_byte(self, symbols: NDArray[Any], document: NDArray[Any]) -> float:
        """The mean over all bytes of blocks as `fit` takes them."""
        return float(-np.log2(self.probabilities(*with_contexts(symbols, document))).mean())

    def probabilities(self, last: _Codes, contexts: list[_Codes]) -> NDArray[np.float64]:
        """Of each symbol given the codes of its contexts, those of 0 to ORDER symbols, each [positions]."""
        found = np.full(len(last), 1 / 256)
        for order, context in zip(self._orders, contexts, strict=True):
            count = _look_up(order.grams, order.gram_counts, context * _NUM_SYMBOLS + last)
            total = _look_up(order.contexts, order.context_counts, context)
            kinds = _look_up(order.contexts, order.kinds, context)
            mixed = (count + kinds * found) / np.maximum(total + kinds, 1)
            found = np.where(total > 0, mixed, found)
        return found


def with_contexts(symbols: NDArray[Any], document: NDArray[Any]) -> tuple[_Codes, list[_Codes]]:
    """Return the symbol at each position that holds a byte, and the codes of its contexts of each length."""
    symbols, is_byte = symbols.astype(np.int64), document >= 0
    context = np.zeros_like(symbols)
    contexts = [context[is_byte]]
    for distance in range(1, ORDER + 1):
        seen = np.zeros_like(symbols)
        same = document[:, distance:] == document[:, :-distance]
        seen[:, distance:] = np.where(same, symbols[:, :-distance], 0)
        context = context + seen * _NUM_SYMBOLS ** (distance - 1)
        contexts.append(context[is_byte])
    return symbols[is_byte], contexts


def _count(last: _Codes, context: _Codes) -> _Order:
    grams, gram_counts = np.unique(context * _NUM_SYMBOLS + last, return_counts=True)
    contexts, first, kinds = np.unique(grams // _NUM_SYMBOLS, return_index=True, return_counts=True)
    return _Order(grams, gram_counts, contexts, np.add.reduceat(gram_counts, first), kinds)


def _look_up(keys: _Codes, values: _Codes, wanted: _Codes) -> _Codes:
    """The values of the keys that are wanted, 0 for one that is not there."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)


def _blocks(dataset: Dataset, split: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Symbols and documents of a split, each int32 [rows, block_size]."""
    table = dataset.to_arrow(split, columns=["source", "source_document"])
    return tuple(_matrix(table[name]) for name in ("source", "source_document"))  # type: ignore[return-value]


def _matrix(column: Any) -> NDArray[np.int32]:
    rows = column.combine_chunks()
    values: NDArray[np.int32] = rows.flatten().to_numpy().reshape(len(rows), -1)
    return values
