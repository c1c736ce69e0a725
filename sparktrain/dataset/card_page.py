"""card.html: the data card as one page that needs nothing else: no script, no network, light or dark."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING

from sparktrain.dataset.card_html import Html, details, meter, number, page, percent, size, table, tiles
from sparktrain.dataset.card_plot import draw

if TYPE_CHECKING:
    from sparktrain.dataset.card import Card, ColumnCard
    from sparktrain.dataset.statistics import TargetStatistics

_MAX_CLASSES = 20


def page_of(card: Card) -> str:
    """The whole page."""
    sections = {
        "Rows": _rows(card),
        "Splits": _splits(card),
        "Target": _targets(card),
        "Drift": _drift(card),
        "Columns": _columns(card),
        "Layout": _layout(card),
        "Versions": table(["library", "version"], card.versions.items()),
    }
    about = Html(f'<p class="soft">data card of <code>{escape(card.fingerprint)}</code></p>')
    return page(card.name, f"{card.name}: data card", about, sections)


def _rows(card: Card) -> Html:
    rows_in = max(card.rows_in, 1)
    figures = {
        "rows in": number(card.rows_in),
        "kept": number(card.rows_kept),
        "quarantined": number(sum(card.quarantined.values())),
        "raw columns": number(len(card.columns)),
        "on disk": size(sum(split.size_bytes for split in card.splits)),
    }
    rules = [
        (rule, rows, percent(rows / rows_in), meter(rows / rows_in))
        for rule, rows in card.quarantined.items()
    ]
    by_rule = table(["quarantined by rule", "rows", "of the rows in", ""], rules, "names") if rules else ""
    return Html(tiles(figures) + by_rule)


def _splits(card: Card) -> Html:
    kept = max(card.rows_kept, 1)
    rows = [(s.name, s.rows, percent(s.rows / kept), meter(s.rows / kept)) for s in card.splits]
    return table(["split", "rows", "of the rows kept", ""], rows, "names")


def _targets(card: Card) -> Html:
    names = dict.fromkeys(target.name for target in card.targets)
    return Html("".join(_target([t for t in card.targets if t.name == name]) for name in names))


def _target(splits: Sequence[TargetStatistics]) -> Html:
    """A target's values, or its mean and deviation, side by side for the splits."""
    title = f"<h3>{escape(splits[0].name)}</h3>"
    if not any(target.values for target in splits):
        moments = [(target.split, target.mean, target.deviation) for target in splits]
        return Html(title + table(["split", "mean", "deviation"], moments, "names"))
    rows_by_value: dict[str, int] = {}
    for target in splits:
        for value, rows in target.values.items():
            rows_by_value[value] = rows_by_value.get(value, 0) + rows
    frequent = sorted(rows_by_value, key=lambda value: (-rows_by_value[value], value))[:_MAX_CLASSES]
    lines = []
    for value in frequent:
        line: list[object] = [value]
        for target in splits:
            rows = target.values.get(value, 0)
            share = rows / max(sum(target.values.values()), 1)
            line += [rows, percent(share), meter(share)]
        lines.append(line)
    heads = [head for target in splits for head in (target.split, "", "")]
    rest = len(rows_by_value) - len(frequent)
    more = f'<p class="soft">and {rest:,} rarer values</p>' if rest else ""
    return Html(title + table(["value", *heads], lines, "names") + more)


def _drift(card: Card) -> Html:
    if not card.drift:
        return Html()
    rows = [
        (
            d.column,
            Html(f'<span class="{d.level}">{d.psi:.3f}</span>'),
            d.level,
            _change(d.null_rate, percent),
            _change(d.unknown_rate, percent),
            _change(d.mean, number),
        )
        for d in card.drift
    ]
    note = (
        '<p class="soft">PSI: the population stability index of the training rows against an earlier '
        "dataset's. Above 0.1 is a moderate change, above 0.25 a large one, by convention.</p>"
    )
    return Html(note + table(["column", "PSI", "change", "null", "unknown", "mean"], rows, "names"))


def _change(shift: tuple[float, float] | None, show: Callable[[float], str]) -> str:
    if shift is None:
        return ""
    before, after = map(show, shift)
    return f"{before} → {after}" if before != after else before


def _columns(card: Card) -> Html:
    heads = ["column", "distribution of the training rows", "null", "unknown"]
    heads += ["mean", "deviation", "smallest", "median", "largest", "distinct", ""]
    return table(heads, map(_column, card.columns), "names")


def _column(c: ColumnCard) -> list[object]:
    taken_by = ", ".join(
        feature.kind if feature.name == c.column else f"{feature.kind} {feature.name}"
        for feature in c.features
    )
    kinds = " · ".join(filter(None, (c.input_type, taken_by)))
    missing: list[str] = [percent(c.null_rate)]
    missing += [f"{percent(c.nan_rate)} NaN"] if c.nan_rate else []
    missing += [f"{percent(c.infinity_rate)} infinite"] if c.infinity_rate else []
    return [
        Html(f"{escape(c.column)}<small>{escape(kinds)}</small>"),
        _plot(c),
        missing[0] if len(missing) == 1 else Html("<br>".join(map(escape, missing))),
        percent(c.unknown_rate),
        *(c.mean, c.deviation, c.smallest, c.quantiles.get("0.5"), c.largest, c.distinct),
        _more(c),
    ]


def _plot(c: ColumnCard) -> Html:
    present = max(c.rows * (1 - c.null_rate - c.nan_rate - c.infinity_rate), 1)
    if c.bars:
        ends = f"{number(c.bars.low)} to {number(c.bars.high)}"
        return Html(draw(c.bars.shares, f"{c.column}, {ends}") + f"<small>{escape(ends)}</small>")
    if c.values:
        first = " · ".join(f"{value} {percent(rows / present)}" for value, rows in c.values[:3])
        return Html(
            draw([rows / present for _, rows in c.values], f"{c.column}, its most frequent values")
            + f"<small>{escape(first)}</small>"
        )
    return Html()


def _more(c: ColumnCard) -> Html:
    """All quantiles, the most frequent values, and each feature's rates by split, folded away."""
    content = ""
    if c.quantiles:
        quantiles = [(f"{float(q):.0%}", value) for q, value in c.quantiles.items()]
        content += table(["quantile", ""], quantiles)
    if c.values:
        content += table(["value", "rows"], c.values)
    rates = [
        (feature.name, split, percent(rate), percent(feature.unknown_rate.get(split)))
        for feature in c.features
        for split, rate in feature.null_rate.items()
        if rate or feature.unknown_rate.get(split)
    ]
    if rates:
        content += table(["feature", "split", "null", "unknown"], rates)
    return details("more", content) if content else Html()


def _layout(card: Card) -> Html:
    files = table(
        ["split", "parts", "row groups", "size", "bytes per row"],
        [(s.name, s.parts, s.row_groups, size(s.size_bytes), s.bytes_per_row) for s in card.splits],
        "names",
    )
    known = {"layout": card.layout, **card.settings}
    settings = table(
        ["setting", ""],
        [(key, _setting(value)) for key, value in known.items()],
    )
    stored = details(
        f"{len(card.stored):,} stored columns", table(["name", "type"], card.stored.items(), "names")
    )
    return Html(f"{files}<p></p>{settings}<p></p>{stored}")


def _setting(value: object) -> str:
    """What was set, in words; of several options those that are used."""
    if not isinstance(value, dict):
        return value if isinstance(value, str) else json.dumps(value)
    used = {name: one for name, one in value.items() if one not in (None, {}, [])}
    return ", ".join(
        f"{name} {one if isinstance(one, str) else json.dumps(one)}" for name, one in used.items()
    )
