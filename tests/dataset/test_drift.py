"""Drift: nothing for the same rows, little for the same distribution, more for a larger shift."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparktrain.dataset.drift import LARGE_PSI, MODERATE_PSI, ColumnDrift, compare, stability_index
from sparktrain.dataset.statistics import NUM_TOP_VALUES, CodeCounts, ColumnStatistics, Statistics
from sparktrain.features import FittedCategorical
from sparktrain.features.sketch import COARSE_BITS
from tests.fixtures.sketches import sketch
from tests.fixtures.tiny_model import FEATURES


def numbers(values: Any, name: str = "x", nulls: int = 0, bits: int = COARSE_BITS) -> ColumnStatistics:
    """Statistics of a column of numbers, as preparation counts them."""
    values = np.asarray(values, dtype=np.float64)
    finite = values[np.isfinite(values)]
    return ColumnStatistics(
        column=name,
        input_type="double",
        rows=len(values) + nulls,
        nulls=nulls,
        nans=int(np.isnan(values).sum()),
        infinities=int(np.isinf(values).sum()),
        mean=float(np.nan_to_num((finite / len(finite)).sum())) if len(finite) else None,
        histogram=tuple(sorted(sketch(finite, bits).items())),
        histogram_bits=bits,
    )


def texts(counts: dict[str, int], name: str = "x", nulls: int = 0) -> ColumnStatistics:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ColumnStatistics(
        column=name,
        input_type="string",
        rows=sum(counts.values()) + nulls,
        nulls=nulls,
        values=tuple(ordered[:NUM_TOP_VALUES]),
        distinct=len(counts),
    )


def statistics(*columns: ColumnStatistics, unknown: dict[str, int] | None = None) -> Statistics:
    codes = {"train": CodeCounts(rows=columns[0].rows, nulls={}, unknown=unknown or {})}
    return Statistics(columns=columns, codes=codes, targets=())


def psi(before: ColumnStatistics, after: ColumnStatistics) -> float:
    (drift,) = compare(statistics(before), statistics(after))
    return drift.psi


counts = st.lists(st.integers(0, 10**9), min_size=1, max_size=60)
floats = st.lists(st.floats(), min_size=1, max_size=200)  # NaN, infinities, subnormals, everything
words = st.dictionaries(st.text(max_size=3), st.integers(1, 10**6), min_size=1, max_size=80)


@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)), min_size=1, max_size=60))
def test_the_index_is_the_same_in_both_directions_and_never_negative(pairs: list[tuple[int, int]]) -> None:
    before, after = [a for a, _ in pairs], [b for _, b in pairs]
    assert stability_index(before, after) == stability_index(after, before)
    assert stability_index(before, after) >= 0
    assert stability_index(before, before) == 0


def test_the_index_is_that_of_the_textbook_where_there_are_many_rows() -> None:
    p, q = [0.2, 0.3, 0.5], [0.3, 0.3, 0.4]
    expected = sum((a - b) * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert stability_index([a * 1e9 for a in p], [b * 1e9 for b in q]) == pytest.approx(expected, rel=1e-6)
    # Half a row in each group, by hand: shares 1.5/2 and .5/2 against .5/2 and 1.5/2.
    assert stability_index([1, 0], [0, 1]) == pytest.approx(2 * 0.5 * math.log(3))


@given(floats, st.integers(0, 5))
def test_identical_numbers_have_not_drifted_at_all(values: list[float], nulls: int) -> None:
    column = numbers(values, nulls=nulls)
    assert psi(column, column) == 0


@given(words, st.integers(0, 5))
def test_identical_values_have_not_drifted_at_all(values: dict[str, int], nulls: int) -> None:
    column = texts(values, nulls=nulls)
    assert psi(column, column) == 0


@given(floats, floats)
def test_any_two_columns_of_numbers_can_be_compared(before: list[float], after: list[float]) -> None:
    assert 0 <= psi(numbers(before), numbers(after)) < math.inf


@given(words, words, st.integers(0, 5))
def test_any_two_columns_of_text_can_be_compared(
    before: dict[str, int], after: dict[str, int], nulls: int
) -> None:
    assert 0 <= psi(texts(before), texts(after, nulls=nulls)) < math.inf


@pytest.mark.parametrize("draw", ["normal", "lognormal", "integers", "rare"])
def test_two_samples_of_one_distribution_hardly_differ(draw: str) -> None:
    random = np.random.default_rng(0)
    draws = {
        "normal": lambda: random.normal(5, 2, 20_000),
        "lognormal": lambda: random.lognormal(0, 3, 20_000),
        "integers": lambda: random.integers(1, 13, 20_000),
        "rare": lambda: random.random(20_000) < 0.01,
    }
    # Chance gives about 10 * (1/20000 + 1/20000).
    assert psi(numbers(draws[draw]()), numbers(draws[draw]())) < 0.005


def test_a_larger_shift_has_a_larger_index() -> None:
    sample = np.random.default_rng(0).normal(0, 1, 20_000)
    found = [psi(numbers(sample), numbers(sample + shift)) for shift in (0, 0.1, 0.25, 0.5, 1, 2)]
    assert found == sorted(found) and found[0] == 0
    # For two normal distributions it is the square of the shift; ten groups see most of it.
    assert found[1:5] == pytest.approx([0.01, 0.0625, 0.25, 1], rel=0.15)


@pytest.mark.parametrize(("before_bits", "after_bits"), [(10, 10), (10, 8), (8, 10)])
def test_values_close_together_are_told_apart_by_a_finer_histogram(before_bits: int, after_bits: int) -> None:
    """Air pressure: with the coarse histogram nearly all of it is one bucket, and no shift can be seen."""
    sample = np.random.default_rng(0).normal(990, 5, 20_000)
    assert psi(numbers(sample), numbers(sample + 5)) < MODERATE_PSI
    before, after = numbers(sample, bits=before_bits), numbers(sample + 5, bits=after_bits)
    assert psi(before, after) > 2 * LARGE_PSI
    assert psi(before, numbers(sample, bits=after_bits)) == 0


def test_more_missing_rows_are_drift_whatever_is_missing() -> None:
    whole = np.arange(1.0, 1001.0)
    found = [
        psi(numbers(whole), numbers(whole, nulls=250)),
        psi(numbers(whole), numbers([*whole, *[math.nan] * 250])),
        psi(numbers(whole), numbers([*whole, *[math.inf, -math.inf] * 125])),
    ]
    assert found[0] > LARGE_PSI and len(set(found)) == 1


def test_a_column_that_is_all_null_can_be_compared() -> None:
    whole, nothing = numbers(np.arange(100.0)), numbers([], nulls=100)
    assert psi(whole, nothing) > LARGE_PSI and psi(nothing, whole) > LARGE_PSI
    assert psi(nothing, nothing) == 0


def test_a_new_value_and_a_lost_one_are_drift() -> None:
    before = texts({"UA": 500, "AA": 500})
    assert psi(before, texts({"UA": 500, "AA": 490, "ZZ": 10})) < MODERATE_PSI
    assert psi(before, texts({"UA": 500, "AA": 250, "ZZ": 250})) > LARGE_PSI
    assert psi(before, texts({"UA": 1000})) > LARGE_PSI
    # Values are told apart even where their sizes are the same.
    assert psi(before, texts({"UA": 700, "AA": 300})) == pytest.approx(0.2 * math.log(7 / 3), rel=0.01)


def test_values_below_the_list_of_the_most_frequent_are_no_drift_by_chance() -> None:
    """4,000 equally frequent values: which 50 of them are listed is chance."""
    before = texts({f"{i:04d}": 100 + (i < 50) for i in range(4000)})
    after = texts({f"{i:04d}": 100 + (i >= 3950) for i in range(4000)})
    assert not dict(before.values).keys() & dict(after.values).keys()
    assert psi(before, after) < 0.01


def test_a_frequent_value_that_left_the_list_has_drifted() -> None:
    before = texts({"UA": 10_000, **{f"{i:04d}": 10 for i in range(1000)}})
    after = texts({f"{i:04d}": 20 for i in range(1000)})
    assert psi(before, after) > LARGE_PSI


def test_columns_are_sorted_by_their_index_and_tell_before_and_after() -> None:
    random = np.random.default_rng(0)
    sample = random.normal(0, 1, 1000)
    before = statistics(numbers(sample, "still"), numbers(sample, "moved"), numbers(sample, "gone"))
    after = statistics(
        numbers(sample, "still"), numbers(sample + 3, "moved", nulls=250), numbers([1.0], "new")
    )
    moved, still = compare(before, after)
    assert (moved.column, still.column) == ("moved", "still")
    assert moved.level == "large" and still.level == "little" and still.psi == 0
    assert moved.null_rate == (0, 0.2)
    assert moved.mean is not None and moved.mean[1] - moved.mean[0] == pytest.approx(3)
    assert moved.unknown_rate is None


def test_unknown_rates_are_found_through_the_features_of_a_column() -> None:
    before = statistics(texts({"1": 100}, "month"), unknown={"month": 0, "month_category": 1})
    after = statistics(texts({"1": 100}, "month"), unknown={"month": 2, "month_category": 30})
    assert compare(before, after)[0].unknown_rate == (0, 0.02)
    nothing = statistics(texts({"1": 100}, "month"))  # a feature that knew every value is not counted
    assert compare(nothing, after)[0].unknown_rate == (0, 0.02)
    assert compare(nothing, nothing)[0].unknown_rate is None
    renamed = FittedCategorical(
        name="month_category", column="month", input_type="long", vocabulary=("1", "2", "12")
    )
    features = FEATURES.model_copy(update={"features": (renamed,)})
    assert compare(before, after, features)[0].unknown_rate == (0.01, 0.3)
    assert compare(nothing, nothing, features)[0].unknown_rate == (0, 0)


def test_columns_without_rows_are_left_out() -> None:
    assert compare(statistics(numbers([])), statistics(numbers([1.0]))) == []
    assert compare(statistics(numbers([1.0])), statistics(numbers([]))) == []


@pytest.mark.parametrize(
    ("value", "level"), [(0.1, "little"), (0.11, "moderate"), (0.25, "moderate"), (9, "large")]
)
def test_the_level_follows_the_usual_limits(value: float, level: str) -> None:
    assert ColumnDrift(column="x", psi=value, null_rate=(0, 0)).level == level


@given(counts)
def test_groups_of_any_size_can_be_empty_on_one_side(rows: Sequence[int]) -> None:
    assert 0 <= stability_index(rows, [0] * len(rows)) < math.inf


def test_a_column_whose_values_were_not_counted_is_left_out() -> None:
    hashed = ColumnStatistics(column="x", input_type="string", rows=100, nulls=3)
    assert compare(statistics(hashed), statistics(hashed)) == []
