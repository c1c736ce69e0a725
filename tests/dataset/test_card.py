"""The data card: whole, small, safe to open, and the same for the same dataset."""

from __future__ import annotations

import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparktrain.dataset import Dataset, Manifest
from sparktrain.dataset.card import CARD_FILE, CARD_PAGE, Card, describe, write_card
from sparktrain.dataset.card_html import number, percent
from sparktrain.dataset.card_plot import NUM_BARS, bars_of, draw
from sparktrain.dataset.drift import ColumnDrift
from sparktrain.dataset.statistics import (
    QUANTILES,
    CodeCounts,
    ColumnStatistics,
    Statistics,
    TargetStatistics,
)
from sparktrain.features.sketch import COARSE_BITS, FINE_BITS, quantile
from sparktrain.testing import write_tiny_dataset
from tests.fixtures.sketches import sketch

SPLITS = {"train": 800, "validation": 100, "test": 100}
HOSTILE = "<script>alert('&\"')</script>"


def numbers(
    name: str, values: object, input_type: str = "double", bits: int = COARSE_BITS
) -> ColumnStatistics:
    """Statistics of 1000 rows, of which those without a value are null."""
    array = np.asarray(values, dtype=np.float64)
    found = sketch(array, bits)
    fine, low, high = sketch(array), float(array.min()), float(array.max())
    return ColumnStatistics(
        column=name,
        input_type=input_type,
        rows=1000,
        nulls=1000 - len(array),
        mean=float(array.mean()),
        deviation=float(array.std()),
        smallest=low,
        largest=high,
        quantiles=tuple(quantile(fine, q, FINE_BITS, low, high) for q in QUANTILES),
        histogram=tuple(sorted(found.items())),
        histogram_bits=bits,
    )


def texts(name: str, value: str = "value") -> ColumnStatistics:
    values = tuple((f"{value} {i}", 60 - i) for i in range(50))
    return ColumnStatistics(
        column=name, input_type="string", rows=5000, nulls=5, values=values, distinct=4321
    )


def statistics(*columns: ColumnStatistics) -> Statistics:
    names = [column.column for column in columns]
    codes = {
        split: CodeCounts(rows=rows, nulls=dict.fromkeys(names, 1), unknown={"category_0": rows // 50})
        for split, rows in SPLITS.items()
    }
    targets = tuple(
        TargetStatistics(name="label", split=split, values={"0": rows // 4, "1": rows})
        for split, rows in SPLITS.items()
    )
    return Statistics(columns=columns, codes=codes, targets=targets)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("datasets") / "tiny"
    return write_tiny_dataset(path, SPLITS["train"], validation_rows=100, test_rows=100)


@pytest.fixture(scope="module")
def tiny_statistics() -> Statistics:
    random = np.random.default_rng(0)
    return statistics(
        numbers("numeric_0", random.normal(0, 1, 900)),
        numbers("numeric_1", [1.0] * 1000),
        texts("category_0"),
    )


def changed(dataset: Dataset, **changes: object) -> Manifest:
    return dataset.manifest.model_copy(update=changes)


class Page(HTMLParser):
    """Fails on tags that are not closed in order; keeps all text, tags and attributes."""

    EMPTY = frozenset({"meta", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.texts: list[str] = []
        self.attributes: set[str] = set()
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes |= {name for name, _ in attrs}
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def write(
    directory: Path, manifest: Manifest, dataset: Dataset, counted: Statistics, drift: object = ()
) -> Page:
    directory.mkdir(exist_ok=True)
    write_card(directory, manifest, dataset.features, counted, drift)  # type: ignore[arg-type]
    return Page((directory / CARD_PAGE).read_text(encoding="utf-8"))


def test_the_card_tells_what_was_counted(
    tmp_path: Path, dataset: Dataset, tiny_statistics: Statistics
) -> None:
    manifest = changed(
        dataset, rows_in=1010, quarantined={"has_size": 7, "malformed": 3}, prepare={"compression": "lz4"}
    )
    page = write(tmp_path, manifest, dataset, tiny_statistics)
    card = Card.load(tmp_path)
    assert card == describe(manifest, dataset.features, tiny_statistics)
    assert card is not None
    assert (card.rows_in, card.rows_kept, card.quarantined["has_size"]) == (1010, 1000, 7)
    assert [(s.name, s.rows) for s in card.splits] == list(SPLITS.items())
    train = dataset.manifest.splits["train"]
    assert card.splits[0].size_bytes == sum(part.size_bytes for part in train.parts)
    assert card.splits[0].bytes_per_row == card.splits[0].size_bytes / 800
    assert card.splits[0].row_groups == sum(len(part.row_groups) for part in train.parts)
    numeric, constant, category = card.columns
    assert numeric.null_rate == 0.1 and list(numeric.quantiles) == [str(q) for q in QUANTILES]
    assert numeric.features[0].kind == "numeric" and numeric.unknown_rate is None
    assert constant.smallest == constant.largest == 1
    assert category.unknown_rate == 0.02 and category.distinct == 4321
    assert category.features[0].null_rate == {"train": 1 / 800, "validation": 0.01, "test": 0.01}
    assert card.stored["row_id"] == "int64"
    shown = set(page.texts)
    assert {
        "1,010",
        "has_size",
        "0.69%",
        manifest.fingerprint,
        "numeric_0",
        "10.00%",
        "lz4",
        "4,321",
    } <= shown
    assert page.tags["svg"] == 3
    assert not any("PSI" in text for text in page.texts)


def test_drift_is_shown_where_it_was_measured(
    tmp_path: Path, dataset: Dataset, tiny_statistics: Statistics
) -> None:
    drift = [
        ColumnDrift(column="numeric_0", psi=0.7, null_rate=(0.0, 0.1), mean=(1.0, 2.5)),
        ColumnDrift(column="category_0", psi=0.0, null_rate=(0.5, 0.5), unknown_rate=(0.0, 0.02)),
    ]
    page = write(tmp_path, dataset.manifest, dataset, tiny_statistics, drift)
    assert {"0.700", "large", "0% → 10.00%", "1 → 2.5", "50.00%", "0% → 2.00%"} <= set(page.texts)
    card = Card.load(tmp_path)
    assert card is not None and list(card.drift) == drift


def test_equal_input_gives_equal_bytes(tmp_path: Path, dataset: Dataset, tiny_statistics: Statistics) -> None:
    for name in ("one", "two"):
        write(tmp_path / name, dataset.manifest, dataset, tiny_statistics)
    for name in (CARD_FILE, CARD_PAGE):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_no_name_or_value_gets_into_the_page_as_markup(tmp_path: Path, dataset: Dataset) -> None:
    counted = statistics(numbers(HOSTILE, np.arange(1000)), texts("category_0", HOSTILE))
    counted = counted.model_copy(
        update={
            "targets": (TargetStatistics(name=HOSTILE, split=HOSTILE, values={HOSTILE: 3}),),
        }
    )
    manifest = changed(
        dataset,
        name=HOSTILE,
        quarantined={HOSTILE: 1},
        versions={HOSTILE: HOSTILE},
        prepare={"seed": HOSTILE},
    )
    drift = [ColumnDrift(column=HOSTILE, psi=1, null_rate=(0, 0))]
    page = write(tmp_path, manifest, dataset, counted, drift)
    assert page.tags["script"] == 0
    assert sum(HOSTILE in text for text in page.texts) > 8
    assert "<script" not in (tmp_path / CARD_PAGE).read_text().lower()


def test_the_page_needs_neither_a_script_nor_the_network(
    tmp_path: Path, dataset: Dataset, tiny_statistics: Statistics
) -> None:
    page = write(tmp_path, dataset.manifest, dataset, tiny_statistics)
    text = (tmp_path / CARD_PAGE).read_text()
    assert not page.tags.keys() & {"script", "link", "img", "iframe", "object", "embed"}
    assert not {name for name in page.attributes if name.startswith("on") or name in ("src", "xlink:href")}
    assert (
        set(re.findall(r'href="([^#"][^"]*)', text)) == set() and "://" not in text and "@import" not in text
    )
    assert "prefers-color-scheme:dark" in text and "default-src 'none'" in text


def test_a_source_with_a_password_stays_out_of_the_card(
    tmp_path: Path, dataset: Dataset, tiny_statistics: Statistics
) -> None:
    source = {"url": "jdbc:postgresql://me:hunter2@host/db", "password": "hunter2"}
    manifest = changed(dataset, prepare={"source": source, "seed": 7, "api_key": "hunter2"})
    write(tmp_path, manifest, dataset, tiny_statistics)
    card = Card.load(tmp_path)
    assert card is not None and card.settings == {"seed": 7}
    for name in (CARD_FILE, CARD_PAGE):
        assert "hunter2" not in (tmp_path / name).read_text()


def test_a_card_of_500_columns_stays_small(tmp_path: Path, dataset: Dataset) -> None:
    random = np.random.default_rng(0)
    spread = random.normal(0, 1, 1000) * 10.0 ** random.integers(-9, 9, 1000)
    columns = [numbers(f"a rather long name of a column {i}", spread) for i in range(250)]
    columns += [texts(f"another long name of a column {i}", "a rather long value " * 5) for i in range(250)]
    counted = statistics(*columns)
    template = dataset.features.features[0]
    fitted = tuple(template.model_copy(update={"name": c.column, "column": c.column}) for c in columns)
    features = dataset.features.model_copy(update={"features": fitted})
    shift = (1 / 3, 2 / 3)
    drift = [ColumnDrift(column=c.column, psi=1 / 3, null_rate=shift, mean=shift) for c in columns]
    write_card(tmp_path, dataset.manifest, features, counted, drift)
    Page((tmp_path / CARD_PAGE).read_text())
    assert (tmp_path / CARD_PAGE).stat().st_size < 2_000_000
    assert (tmp_path / CARD_FILE).stat().st_size < 2_000_000


def test_the_columns_most_often_null_are_those_with_any(dataset: Dataset) -> None:
    counted = statistics(*(numbers(f"c{i}", np.arange(1.0, 1001.0 - i % 8)) for i in range(20)))
    found = describe(dataset.manifest, dataset.features, counted).most_often_null()
    assert [(column.column, round(column.null_rate, 3)) for column in found] == [
        ("c15", 0.007),
        ("c7", 0.007),
        ("c14", 0.006),
        ("c6", 0.006),
        ("c13", 0.005),
    ]
    none = statistics(numbers("full", np.arange(1000.0)))
    assert describe(dataset.manifest, dataset.features, none).most_often_null() == []


def test_no_card_and_a_card_that_cannot_be_read_are_none(tmp_path: Path) -> None:
    assert Card.load(tmp_path) is None
    (tmp_path / CARD_FILE).write_text('{"format": "sparktrain.card/9"}')
    assert Card.load(tmp_path) is None


def test_a_column_without_rows_has_a_card(tmp_path: Path, dataset: Dataset) -> None:
    empty = ColumnStatistics(column="numeric_0", input_type="double", rows=0)
    page = write(tmp_path, dataset.manifest, dataset, statistics(empty))
    assert page.tags["svg"] == 0


def test_many_classes_are_cut_and_a_regression_shows_its_moments(tmp_path: Path, dataset: Dataset) -> None:
    classes = TargetStatistics(name="kind", split="train", values={f"k{i:04d}": 1 + i for i in range(1000)})
    amount = TargetStatistics(name="amount", split="train", mean=12.5, deviation=3.25)
    counted = Statistics(columns=(), codes={}, targets=(classes, amount))
    page = write(tmp_path, dataset.manifest, dataset, counted)
    assert {"k0999", "and 980 rarer values", "12.5", "3.25"} <= set(page.texts)
    assert "k0001" not in page.texts


def test_whole_numbers_get_a_bar_each_where_they_are_few() -> None:
    bars = bars_of(numbers("month", [1, 2, 2, 3, 12, 12, 12, 12], "long", FINE_BITS))
    assert bars is not None and (bars.low, bars.high) == (1, 12)
    assert bars.shares == (0.125, 0.25, 0.125, *[0] * 8, 0.5)


def test_bars_follow_the_density() -> None:
    bars = bars_of(numbers("x", np.linspace(0, 1, 1000), bits=FINE_BITS))
    assert bars is not None and len(bars.shares) == NUM_BARS
    # The outer bars hold what lies beyond the first and the last quantile.
    assert bars.shares[1:-1] == pytest.approx([0.98 / NUM_BARS] * (NUM_BARS - 2), rel=0.05)
    assert sum(bars.shares) == pytest.approx(1, abs=1e-3)


@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=50),
    st.sampled_from([0, COARSE_BITS, FINE_BITS]),
)
def test_any_numbers_can_be_drawn(values: list[float], bits: int) -> None:
    array = np.array(values)
    column = ColumnStatistics(
        column="x",
        input_type="double",
        rows=len(values),
        smallest=float(array.min()),
        largest=float(array.max()),
        histogram=tuple(sorted(sketch(array, bits).items())),
        histogram_bits=bits,
    )
    bars = bars_of(column)
    if bars is not None:
        assert sum(bars.shares) == pytest.approx(1, abs=1e-3) and min(bars.shares) >= 0
        json.dumps(bars.model_dump(), allow_nan=False)
        Page(draw(bars.shares, HOSTILE))


@given(st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=50))
def test_any_whole_numbers_can_be_drawn(values: list[int]) -> None:
    bars = bars_of(numbers("x", values, "long").model_copy(update={"nulls": 0}))
    assert bars is not None and sum(bars.shares) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0%"), (1e-6, "<0.01%"), (0.5, "50.00%"), (0.999999, ">99.99%"), (1, "100%"), (None, "")],
)
def test_a_rate_is_never_rounded_to_nothing_or_everything(share: float | None, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (3, "3"),
        (1234567, "1,234,567"),
        (1234.5678, "1,235"),
        (0.000123456, "0.0001235"),
        (12345.67, "12,345.7"),
        (1e300, "1e+300"),
        (-0.5, "-0.5"),
    ],
)
def test_numbers_are_short_to_read(value: float | None, text: str) -> None:
    assert number(value) == text
