"""Drift: how far a column's distribution is from the one that a model was trained on.

The measure is the population stability index, `sum((p - q) * ln(p / q))` over groups of values, where p and
q are a group's shares of the rows before and after. It is Jeffreys' divergence (H. Jeffreys, Proc. Royal
Society A 186, 1946): zero for equal shares, the same in both directions. Its usual limits, below 0.1 little
change and above 0.25 a large one, come from credit scoring (E. M. Lewis, An Introduction to Credit Scoring,
1994; N. Siddiqi, Credit Risk Scorecards, 2006) and are a convention, no test: chance alone gives about
(groups - 1) * (1/n + 1/m) for n and m rows (B. Yurdakul and J. Naranjo, Journal of Risk Model Validation
14(4), 2020).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from math import log
from typing import Literal

from sparktrain.dataset.manifest import Record
from sparktrain.dataset.statistics import NUM_TOP_VALUES, ColumnStatistics, Statistics
from sparktrain.features import FittedFeatures
from sparktrain.features.sketch import coarser

NUM_GROUPS = 10
MODERATE_PSI = 0.1
LARGE_PSI = 0.25
_SMOOTHING_ROWS = 0.5

Shift = tuple[float, float]
"""A value before and after."""


class ColumnDrift(Record):
    """What became of a raw column from the reference to the new rows.

    Attributes:
        column: its name.
        psi: the population stability index, at least 0.
        null_rate: share of the rows that are null, before and after.
        unknown_rate: share of the rows whose value the vocabulary lacks; None where no vocabulary is.
        mean: of a column of numbers.
    """

    column: str
    psi: float
    null_rate: Shift
    unknown_rate: Shift | None = None
    mean: Shift | None = None

    @property
    def level(self) -> Literal["little", "moderate", "large"]:
        if self.psi > LARGE_PSI:
            return "large"
        return "moderate" if self.psi > MODERATE_PSI else "little"


def compare(
    reference: Statistics, new: Statistics, features: FittedFeatures | None = None
) -> list[ColumnDrift]:
    """Compare the columns that both have, where both have rows; the one with the highest index comes first.

    Columns whose values were not counted (hashed ones, times, vectors, images, texts) are left out.

    Args:
        features: tell which features take which column, for the unknown rates; without them a feature is
            looked for under the column's own name.
    """
    after = {column.column: column for column in new.columns if column.rows}
    found = []
    for before in reference.columns:
        if before.rows and before.column in after and _is_measured(before, after[before.column]):
            names = _vocabularies(before.column, (reference, new), features)
            rates = _shift(unknown_rate(reference, names), unknown_rate(new, names))
            found.append(_drift(before, after[before.column], rates))
    return sorted(found, key=lambda drift: (-drift.psi, drift.column))


def _is_measured(before: ColumnStatistics, after: ColumnStatistics) -> bool:
    """Whether values were counted; of hashes, times and arrays only the missing ones are."""
    both = before, after
    return any(c.values or c.histogram for c in both) or all(_present(c) == 0 for c in both)


def stability_index(before: Sequence[float], after: Sequence[float]) -> float:
    """The index of two lists of rows by group, both of the same length.

    Half a row is added to every group, as Jeffreys' prior has it, so that an empty one has a share above
    zero: it counts the more, the more rows there are that could have fallen into it.
    """
    p, q = _shares(before), _shares(after)
    # A difference of logarithms, not the logarithm of a quotient: exactly the same in both directions.
    return sum((x - y) * (log(x) - log(y)) for x, y in zip(p, q, strict=True))


def unknown_rate(statistics: Statistics, features: Sequence[str]) -> float | None:
    """The highest share of the training rows that one of the features' vocabularies lacks."""
    codes = statistics.codes.get("train")
    if codes is None or not codes.rows:
        return None
    # A feature that knew every value is not among the counts.
    return max((codes.unknown.get(name, 0) / codes.rows for name in features), default=None)


def _vocabularies(
    column: str, both: tuple[Statistics, Statistics], features: FittedFeatures | None
) -> Sequence[str]:
    """Names of the features that take a column as categorical."""
    if features is not None:
        return [f.name for f in features.features if f.column == column and f.kind == "categorical"]
    return [column] if any(column in s.codes["train"].unknown for s in both if "train" in s.codes) else []


def _drift(before: ColumnStatistics, after: ColumnStatistics, unknown: Shift | None) -> ColumnDrift:
    if before.values and (after.values or not _present(after)):
        groups = _by_value(before, after)
    elif before.histogram and (after.histogram or not _present(after)):
        groups = _by_size(before, after)
    else:  # all of one side is missing
        groups = [float(_present(before))], [float(_present(after))]
    return ColumnDrift(
        column=before.column,
        psi=stability_index(
            [*groups[0], before.rows - _present(before)], [*groups[1], after.rows - _present(after)]
        ),
        null_rate=(before.nulls / before.rows, after.nulls / after.rows),
        unknown_rate=unknown,
        mean=_shift(before.mean, after.mean),
    )


def _by_size(before: ColumnStatistics, after: ColumnStatistics) -> tuple[list[float], list[float]]:
    """Rows by group of neighbouring buckets, each about a tenth of the reference's rows.

    The outer groups are open: whatever is smaller or larger than all of the reference falls into them.
    """
    bits = min(before.histogram_bits, after.histogram_bits)
    old, new = (coarser(dict(c.histogram), c.histogram_bits, bits) for c in (before, after))
    total = sum(old.values())
    starts: list[int] = []  # the first bucket of each group
    seen, last = 0, -1
    for bucket, rows in sorted(old.items()):
        group = min(int(NUM_GROUPS * (seen + rows / 2) / total), NUM_GROUPS - 1)
        if group != last:
            starts.append(bucket)
        seen, last = seen + rows, group
    counts = []
    for sketch in (old, new):
        by_group = [0.0] * len(starts)
        for bucket, rows in sketch.items():
            by_group[max(bisect_right(starts, bucket) - 1, 0)] += rows
        counts.append(by_group)
    return counts[0], counts[1]


def _by_value(before: ColumnStatistics, after: ColumnStatistics) -> tuple[list[float], list[float]]:
    """Rows of each of the reference's most frequent values, and of all others.

    Only the most frequent values of the new rows are known too. One that is missing there may have any number
    of rows up to that of the last one listed: it gets the number closest to its share in the reference.
    """
    found = dict(after.values)
    most = after.values[-1][1] if len(after.values) >= NUM_TOP_VALUES else 0
    growth = after.rows / before.rows
    counts = [float(rows) for _, rows in before.values]
    new_counts = [float(found.get(value, min(rows * growth, most))) for value, rows in before.values]
    others = [
        max(_present(column) - sum(known), 0.0) for column, known in ((before, counts), (after, new_counts))
    ]
    return [*counts, others[0]], [*new_counts, others[1]]


def _shares(rows: Sequence[float]) -> list[float]:
    total = sum(rows) + _SMOOTHING_ROWS * len(rows)
    return [(count + _SMOOTHING_ROWS) / total for count in rows]


def _present(column: ColumnStatistics) -> int:
    return column.rows - column.nulls - column.nans - column.infinities


def _shift(before: float | None, after: float | None) -> Shift | None:
    return None if before is None or after is None else (before, after)
