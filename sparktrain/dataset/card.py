"""The data card: what a dataset holds, as one page for people (card.html) and as JSON (card.json).

Of the configuration it shows only what is named here: the arguments of a source may hold passwords.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from sparktrain.dataset.card_page import page_of
from sparktrain.dataset.card_plot import Bars, bars_of
from sparktrain.dataset.drift import ColumnDrift
from sparktrain.dataset.manifest import Manifest, Part, Record
from sparktrain.dataset.statistics import QUANTILES, ColumnStatistics, Statistics, TargetStatistics
from sparktrain.features import FittedFeatures
from sparktrain.storage import AnyPath, commit_bytes, to_json

CARD_FILE = "card.json"
CARD_PAGE = "card.html"
NUM_VALUES = 10
_MAX_TEXT = 60
_SETTINGS = ("split", "num_parts", "rows_per_row_group", "compression", "max_quarantined_fraction", "seed")


class SplitCard(Record):
    """A split; `bytes_per_row` is of its files, compressed."""

    name: str
    rows: int
    parts: int
    row_groups: int
    size_bytes: int
    bytes_per_row: float | None


class FeatureCard(Record):
    """A feature of a column; rates are shares of a split's rows, by split."""

    name: str
    kind: str
    null_rate: dict[str, float]
    unknown_rate: dict[str, float]


class ColumnCard(Record):
    """A raw column, over the training rows; the rates are shares of them.

    Attributes:
        features: that are made of it.
        quantiles: values by quantile, such as "0.5".
        values: the most frequent ones with their rows, long texts cut.
        bars: of the plot.
    """

    column: str
    input_type: str
    rows: int
    null_rate: float
    nan_rate: float
    infinity_rate: float
    features: tuple[FeatureCard, ...]
    distinct: int | None
    mean: float | None
    deviation: float | None
    smallest: float | None
    largest: float | None
    quantiles: dict[str, float]
    values: tuple[tuple[str, int], ...]
    bars: Bars | None

    @property
    def unknown_rate(self) -> float | None:
        """The highest one of any feature in any split."""
        rates = (rate for feature in self.features for rate in feature.unknown_rate.values())
        return max(rates, default=None)


class Card(Record):
    """What card.json holds.

    Attributes:
        layout: "columns" or "blocks", see `Manifest`.
        stored: types of the stored columns, by name.
        settings: of the preparation, without its source.
        drift: from an earlier dataset to this one, if they were compared.
    """

    format: Literal["sparktrain.card/1"] = "sparktrain.card/1"
    name: str
    fingerprint: str
    rows_in: int
    rows_kept: int
    quarantined: dict[str, int]
    splits: tuple[SplitCard, ...]
    layout: str
    stored: dict[str, str]
    settings: dict[str, Any]
    columns: tuple[ColumnCard, ...]
    targets: tuple[TargetStatistics, ...]
    drift: tuple[ColumnDrift, ...]
    versions: dict[str, str]

    @classmethod
    def load(cls, directory: AnyPath) -> Card | None:
        """Read a dataset's card; None where there is none that this version reads."""
        try:
            return cls.model_validate_json((directory / CARD_FILE).read_bytes())
        except (OSError, ValidationError):
            return None

    def most_often_null(self, num_columns: int = 5) -> list[ColumnCard]:
        """The columns with the highest null rates above zero."""
        holed = [column for column in self.columns if column.null_rate > 0]
        return sorted(holed, key=lambda column: (-column.null_rate, column.column))[:num_columns]


def write_card(
    directory: Path,
    manifest: Manifest,
    features: FittedFeatures,
    statistics: Statistics,
    drift: Sequence[ColumnDrift] = (),
) -> None:
    """Write card.json and card.html into `directory`; equal input gives equal bytes."""
    card = describe(manifest, features, statistics, drift)
    commit_bytes(directory / CARD_FILE, to_json(card.model_dump(mode="json")).encode())
    commit_bytes(directory / CARD_PAGE, page_of(card).encode())


def describe(
    manifest: Manifest,
    features: FittedFeatures,
    statistics: Statistics,
    drift: Sequence[ColumnDrift] = (),
) -> Card:
    """Gather what the card shows."""
    takers: dict[str, list[FeatureCard]] = {}
    for feature in features.features:
        card = _feature(feature.name, feature.kind, statistics)
        takers.setdefault(feature.column, []).append(card)
    return Card(
        name=manifest.name,
        fingerprint=manifest.fingerprint,
        rows_in=manifest.rows_in,
        rows_kept=manifest.rows_kept,
        quarantined=manifest.quarantined,
        splits=tuple(_split(name, split.rows, split.parts) for name, split in manifest.splits.items()),
        layout=manifest.layout,
        stored={field.name: str(field.type) for field in manifest.schema},
        settings={key: manifest.prepare[key] for key in _SETTINGS if key in manifest.prepare},
        columns=tuple(_column(column, takers.get(column.column, ())) for column in statistics.columns),
        targets=statistics.targets,
        drift=tuple(drift),
        versions=manifest.versions,
    )


def _split(name: str, rows: int, parts: Sequence[Part]) -> SplitCard:
    size = sum(part.size_bytes for part in parts)
    return SplitCard(
        name=name,
        rows=rows,
        parts=len(parts),
        row_groups=sum(len(part.row_groups) for part in parts),
        size_bytes=size,
        bytes_per_row=size / rows if rows else None,
    )


def _feature(name: str, kind: str, statistics: Statistics) -> FeatureCard:
    codes = {split: counts for split, counts in statistics.codes.items() if counts.rows}
    # What never happened is not among the counts; only a categorical feature can fail to know a value.
    unknown = {split: c.unknown.get(name, 0) / c.rows for split, c in codes.items()}
    return FeatureCard(
        name=name,
        kind=kind,
        null_rate={split: c.nulls.get(name, 0) / c.rows for split, c in codes.items()},
        unknown_rate=unknown if kind == "categorical" else {},
    )


def _column(column: ColumnStatistics, features: Sequence[FeatureCard]) -> ColumnCard:
    rows = max(column.rows, 1)
    return ColumnCard(
        column=column.column,
        input_type=column.input_type,
        rows=column.rows,
        null_rate=column.nulls / rows,
        nan_rate=column.nans / rows,
        infinity_rate=column.infinities / rows,
        features=tuple(features),
        distinct=column.distinct,
        mean=column.mean,
        deviation=column.deviation,
        smallest=column.smallest,
        largest=column.largest,
        quantiles={str(q): value for q, value in zip(QUANTILES, column.quantiles, strict=False)},
        values=tuple((_cut(value), rows) for value, rows in column.values[:NUM_VALUES]),
        bars=bars_of(column),
    )


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"
