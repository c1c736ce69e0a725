"""statistics.json: what was counted, put together for the dataset's card and for a later look at drift."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from sparktrain.dataset.statistics import (
    NUM_TOP_VALUES,
    QUANTILES,
    CodeCounts,
    ColumnStatistics,
    Statistics,
    TargetStatistics,
)
from sparktrain.features import FittedFeatures
from sparktrain.features.sketch import CARD_BITS, COARSE_BITS, Sketch, coarser
from sparktrain.preparation.counting import Numbers
from sparktrain.preparation.spooling import PLAIN, Wanted
from sparktrain.preparation.survey import Survey
from sparktrain.preparation.write import Written

_MAX_BUCKETS = 200


def statistics_of(
    found: Survey, wanted: Sequence[Wanted], features: FittedFeatures, written: Mapping[str, Written]
) -> Statistics:
    """Put together what the survey counted of the raw columns and the writers of the features."""
    rows = found.split_rows.get("train", 0)
    codes = {
        split: CodeCounts(rows=w.rows, nulls=dict(w.nulls), unknown=dict(w.unknown))
        for split, w in written.items()
    }
    targets = [
        _target(target.name, split, content)
        for target in features.targets
        for split, content in written.items()
        if content.rows
    ]
    columns = tuple(_column(w, found, rows) for w in wanted)
    return Statistics(columns=columns, codes=codes, targets=tuple(targets))


def _column(wanted: Wanted, found: Survey, rows: int) -> ColumnStatistics:
    counted: dict[str, object] = {"nulls": found.train_nulls[wanted.column]}
    if (numbers := found.numbers.get((wanted.column, PLAIN))) is not None:
        counted |= _numbers(numbers)
    if (values := found.values.get(wanted.column)) is not None and not wanted.all_splits:
        counted |= {"values": values.counts[:NUM_TOP_VALUES], "distinct": values.distinct}
    return ColumnStatistics.model_validate(
        {"column": wanted.column, "input_type": wanted.input_type, "rows": rows, **counted}
    )


def _numbers(numbers: Numbers) -> dict[str, object]:
    counted: dict[str, object] = {"nans": numbers.train_nans, "infinities": numbers.train_infinities}
    if numbers.count:
        bits, histogram = _histogram(numbers.in_buckets(CARD_BITS).buckets)
        counted |= {
            "mean": numbers.mean(),
            "deviation": numbers.deviation(),
            "smallest": numbers.train_smallest,
            "largest": numbers.train_largest,
            "quantiles": tuple(numbers.quantile(q, CARD_BITS) for q in QUANTILES),
            "histogram": tuple(sorted(histogram.items())),
            "histogram_bits": bits,
        }
    return counted


def _histogram(buckets: Sketch) -> tuple[int, Sketch]:
    """As fine as a plot and a comparison can use: values that lie close together need finer buckets."""
    for bits in range(CARD_BITS, COARSE_BITS, -1):
        if len(found := coarser(buckets, CARD_BITS, bits)) <= _MAX_BUCKETS:
            return bits, found
    return COARSE_BITS, coarser(buckets, CARD_BITS, COARSE_BITS)


def _target(name: str, split: str, content: Written) -> TargetStatistics:
    if name in content.classes:
        values = dict(sorted(content.classes[name].items()))
        return TargetStatistics(name=name, split=split, values=values)
    plain, squares = content.sums.get(name, (0.0, 0.0))
    mean = plain / content.rows
    deviation = math.sqrt(max(squares / content.rows - mean * mean, 0.0))
    return TargetStatistics(name=name, split=split, mean=mean, deviation=deviation)
