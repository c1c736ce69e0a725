"""A look at the rows before they are prepared, in one pass: labels, invalid rows, sizes of vectors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial, reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from sparktrain.estimator.inputs import MOST, Input, is_valid, rows_at_once
from sparktrain.features.vectors import dense_rows

_LABEL, _VALID, _TRAIN, _WEIGHT = "_label", "_is_valid", "_is_train", "_weight"


@dataclass(frozen=True)
class Spread:
    """Count, means and squared deviations of numbers, float64 [numbers]; partial ones add up."""

    count: int
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]

    @classmethod
    def of(cls, rows: NDArray[np.float64]) -> Spread:
        """Of rows [rows, numbers]."""
        if not len(rows):
            return cls(0, np.zeros(rows.shape[1]), np.zeros(rows.shape[1]))
        mean = rows.mean(axis=0)
        return cls(len(rows), mean, ((rows - mean) ** 2).sum(axis=0))

    def __add__(self, other: Spread) -> Spread:
        """Chan, Golub, LeVeque: Updating formulae and a pairwise algorithm for computing sample variances."""
        if not self.count or not other.count:
            return self if self.count else other
        count = self.count + other.count
        apart = other.mean - self.mean
        mean = self.mean + apart * (other.count / count)
        squares = self.squares + other.squares + apart**2 * (self.count * other.count / count)
        return Spread(count, mean, squares)

    @property
    def deviation(self) -> NDArray[np.float64]:
        """Of the population; that of a number which does not vary is 0."""
        deviation = np.sqrt(self.squares / max(self.count, 1))
        return np.where(deviation > 1e-12 * np.abs(self.mean), deviation, 0.0)


@dataclass(frozen=True)
class Look:
    """What was seen; of the valid rows but for the counts.

    Attributes:
        num_rows: all.
        num_invalid: with a null, a NaN or an infinity among the inputs.
        num_unlabelled: valid rows whose label is null, NaN or infinite, or more than a float32 holds.
        num_unweighted: valid rows whose weight is that, or negative.
        num_fractions: whose label is no whole number.
        num_training: valid rows to train on.
        lowest, highest: label.
        label: the spread of the training rows' labels.
        sizes: smallest and largest of each vector, by column.
        vectors: the spread of the training rows' vectors, by column.
    """

    num_rows: int = 0
    num_invalid: int = 0
    num_unlabelled: int = 0
    num_unweighted: int = 0
    num_fractions: int = 0
    num_training: int = 0
    lowest: float = np.inf
    highest: float = -np.inf
    label: Spread = field(default_factory=lambda: Spread(0, np.zeros(1), np.zeros(1)))
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    vectors: dict[str, Spread] = field(default_factory=dict)

    def __add__(self, other: Look) -> Look:
        counts = [name for name in self.__dataclass_fields__ if name.startswith("num_")]
        sizes = dict(self.sizes)
        for name, (low, high) in other.sizes.items():
            least, most = sizes.get(name, (low, high))
            sizes[name] = (min(low, least), max(high, most))
        vectors = dict(self.vectors)
        for name, spread in other.vectors.items():
            before = vectors.get(name)
            # of another size, which is refused when all is seen
            fits = before is not None and len(before.mean) == len(spread.mean)
            vectors[name] = before + spread if before is not None and fits else spread
        return Look(
            **{name: getattr(self, name) + getattr(other, name) for name in counts},
            lowest=min(self.lowest, other.lowest),
            highest=max(self.highest, other.highest),
            label=self.label + other.label,
            sizes=sizes,
            vectors=vectors,
        )

    def to_json(self) -> str:
        return json.dumps(asdict(self), default=lambda array: array.tolist())

    @classmethod
    def from_json(cls, text: str) -> Look:
        found: dict[str, Any] = json.loads(text)
        found["label"] = _spread(found["label"])
        found["vectors"] = {name: _spread(spread) for name, spread in found["vectors"].items()}
        found["sizes"] = {name: tuple(sizes) for name, sizes in found["sizes"].items()}
        return cls(**found)


def _spread(plain: dict[str, Any]) -> Spread:
    return Spread(plain["count"], np.array(plain["mean"]), np.array(plain["squares"]))


def look_at(
    df: DataFrame,
    label: str,
    inputs: Sequence[Input],
    *,
    is_train: Column,
    weight: Column,
    ignores_invalid: bool,
) -> Look:
    """Look at all rows of `df`.

    Args:
        is_train: whether a row is to be trained on.
        weight: of a row.
        ignores_invalid: nulls, NaNs and infinities are no matter.
    """
    shaped = [item for item in inputs if item.is_shaped]
    valid = F.lit(True) if ignores_invalid else is_valid(inputs, df.schema)
    rows = df.select(
        F.col(f"`{label}`").cast("double").alias(_LABEL),
        valid.alias(_VALID),
        is_train.alias(_TRAIN),
        weight.cast("double").alias(_WEIGHT),
        *(F.col(f"`{item.name}`").alias(f"_{place}") for place, item in enumerate(shaped)),
    )
    partial_looks = rows.mapInArrow(partial(_look, shapes=[item.shape for item in shaped]), "look string")
    found = reduce(Look.__add__, (Look.from_json(row[0]) for row in partial_looks.collect()), Look())
    names = [item.name for item in shaped]
    return Look(
        **{
            **{name: getattr(found, name) for name in Look.__dataclass_fields__},
            "sizes": {names[int(place)]: sizes for place, sizes in found.sizes.items()},
            "vectors": {names[int(place)]: spread for place, spread in found.vectors.items()},
        }
    )


def _look(batches: Iterable[pa.RecordBatch], shapes: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Run in a Python worker, once a partition."""
    found = reduce(Look.__add__, (_look_at_batch(batch, shapes) for batch in batches), Look())
    yield pa.RecordBatch.from_pydict({"look": [found.to_json()]})


def _look_at_batch(batch: pa.RecordBatch, shapes: Sequence[str]) -> Look:
    valid = batch.column(1).to_numpy(zero_copy_only=False).astype(bool)
    train = batch.column(2).to_numpy(zero_copy_only=False).astype(bool) & valid
    labels = batch.column(0).to_numpy(zero_copy_only=False).astype(np.float64)
    weights = batch.column(3).to_numpy(zero_copy_only=False).astype(np.float64)
    known = valid & (np.abs(labels) <= MOST)  # of a NaN, what a null is by now, nothing is true
    weighed = (weights >= 0) & (weights <= MOST)
    seen = labels[known]
    sizes: dict[str, tuple[int, int]] = {}
    vectors: dict[str, Spread] = {}
    for place, shape in enumerate(shapes):
        column = batch.column(4 + place)
        there = column.is_valid().to_numpy(zero_copy_only=False)
        if not (there & valid).any():
            continue
        lengths = _sizes_of(column, shape)[there & valid]
        sizes[str(place)] = (int(lengths.min()), int(lengths.max()))
        if lengths.min() == lengths.max():
            # other rows may be of any size
            vectors[str(place)] = _spread_of(column.filter(pa.array(train & there)), shape, int(lengths[0]))
    return Look(
        num_rows=batch.num_rows,
        num_invalid=int((~valid).sum()),
        num_unlabelled=int((valid & ~known).sum()),
        num_unweighted=int((valid & ~weighed).sum()),
        num_fractions=int((seen != np.floor(seen)).sum()),
        num_training=int(train.sum()),
        lowest=float(seen.min(initial=np.inf)),
        highest=float(seen.max(initial=-np.inf)),
        label=Spread.of(labels[known & train][:, None]),
        sizes=sizes,
        vectors=vectors,
    )


def _spread_of(column: pa.Array, shape: str, size: int) -> Spread:
    found, most = Spread(0, np.zeros(size), np.zeros(size)), rows_at_once(size)
    for start in range(0, len(column), most):
        rows = rows_of(column.slice(start, most), shape, size)
        found += Spread.of(np.where(np.isfinite(rows), rows, 0.0))
    return found


def _sizes_of(column: pa.Array, shape: str) -> NDArray[np.int64]:
    if shape == "array":
        lengths = pc.list_value_length(column)
    else:
        kinds, sizes, _, values = column.flatten()
        lengths = pc.if_else(pc.equal(kinds, 1), pc.list_value_length(values), sizes)
    found: NDArray[np.int64] = lengths.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    return found


def rows_of(column: pa.Array, shape: str, size: int) -> NDArray[np.float64]:
    """Return vectors or arrays of this size, none of them null, as float64 rows [rows, size]."""
    if shape == "vector":
        return dense_rows(column, size)[0]
    numbers: NDArray[np.float64] = column.flatten().cast(pa.float64()).to_numpy(zero_copy_only=False)
    return numbers.reshape(-1, size)
