"""Line charts for a run's report, drawn as inline SVG: curves by step on one scale, light or dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from sparktrain.dataset.card_html import Html

Curve = Sequence[tuple[int, float]]

_WIDTH, _HEIGHT = 560, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 12, 12, 26
_MAX_POINTS = 400
_COLOURS = ("var(--bar)", "#d9772b", "#5b9a5b", "#9a6bb5")

CHART_STYLE = """
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(460px,100%),1fr));gap:14px}
p+.charts{margin-top:12px}
figure{margin:0;padding:10px 12px;background:var(--card);border:1px solid var(--line);border-radius:8px}
figcaption{font-weight:600;margin-bottom:4px}figcaption span{font-weight:400;font-size:12px;margin-left:10px}
.chart{width:100%;height:auto}.chart polyline{fill:none;stroke-width:1.7}
.chart line{stroke:var(--line)}.chart .mark{stroke:var(--soft);stroke-dasharray:3 3}
.chart text{fill:var(--soft);font-size:11px}
"""


def chart(title: str, curves: Mapping[str, Curve], marks: Sequence[int] = ()) -> Html:
    """Draw curves by step; nothing where none has a finite value.

    Args:
        curves: [(step, value), ...] by name, in order of steps.
        marks: steps at which the training began again.
    """
    finite = {name: [(s, v) for s, v in curve if math.isfinite(v)] for name, curve in curves.items()}
    known = {name: _thinned(curve) for name, curve in finite.items() if curve}
    if not known:
        return Html()
    steps = [step for curve in known.values() for step, _ in curve]
    values = [value for curve in known.values() for _, value in curve]
    scale = _Scale(min(steps), max(steps), *_range(values))
    lines = [_axes(scale)]
    lines += [
        f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>'
        for s, x in ((s, scale.x(s)) for s in marks)
        if scale.first <= s <= scale.last
    ]
    legend = ""
    for colour, (name, curve) in zip(_COLOURS, known.items(), strict=False):
        points = " ".join(f"{scale.x(s):.1f},{scale.y(v):.1f}" for s, v in curve)
        lines.append(f'<polyline points="{points}" style="stroke:{colour}"/>')
        if len(curve) == 1:  # a line of one point can't be seen
            (s, v) = curve[0]
            lines.append(f'<circle cx="{scale.x(s):.1f}" cy="{scale.y(v):.1f}" r="3" style="fill:{colour}"/>')
        legend += f'<span style="color:{colour}">{escape(name)}</span>' if len(known) > 1 else ""
    drawing = "".join(lines)
    return Html(
        f"<figure><figcaption>{escape(title)}{legend}</figcaption>"
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">'
        f"<title>{escape(title)}</title>{drawing}</svg></figure>"
    )


class _Scale:
    """From steps and values to places in the drawing."""

    def __init__(self, first: int, last: int, low: float, high: float) -> None:
        self.first, self.last, self.low, self.high = first, last, low, high

    def x(self, step: int) -> float:
        share = (step - self.first) / max(self.last - self.first, 1)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return _TOP + (self.high - value) / (self.high - self.low) * (_HEIGHT - _TOP - _BOTTOM)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of the scale; one that begins near zero begins at it."""
    low, high = min(values), max(values)
    if 0 <= low < 0.3 * high:
        low = 0.0
    # Within what a float can add up: losses near 1e308 have been seen.
    low, high = max(low, -1e300), min(high, 1e300)
    margin = (high - low) * 0.05 or max(abs(high) * 0.05, 1e-12)
    return (low if low == 0 else low - margin), high + margin


def _axes(scale: _Scale) -> str:
    bottom = _HEIGHT - _BOTTOM
    found = []
    ticks = _ticks(scale.low, scale.high)
    between = ticks[-1] - ticks[-2]
    for value in ticks:
        y = scale.y(value)
        found.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        found.append(
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(_short(value, between))}</text>'
        )
    for step, anchor in ((scale.first, "start"), (scale.last, "end")):
        found.append(
            f'<text x="{scale.x(step):.1f}" y="{bottom + 16}" text-anchor="{anchor}">{step:,}</text>'
        )
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    found.append(f'<text x="{middle}" y="{bottom + 16}" text-anchor="middle">step</text>')
    return "".join(found)


def _ticks(low: float, high: float) -> list[float]:
    """Round values within a scale, two to six of them: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    size = next(power * n for n in (1, 2, 5, 10) if power * n >= rough * 0.9)
    first, last = math.ceil(low / size - 1e-9), math.floor(high / size + 1e-9)
    return [number * size for number in range(first, last + 1)]


def _short(value: float, between: float) -> str:
    """A value with as many digits as tell it from one that is `between` away."""
    digits = max(3, math.ceil(math.log10(max(abs(value) / between, 1))) + 1)
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size and abs(value) < 1e15:
            return f"{value / (1e3 if unit == 'k' else size):.{digits}g} {unit}"
    return f"{value:,.{max(digits, 4)}g}"


def _thinned(curve: Curve) -> Curve:
    """Average what lies so close that nobody could tell it apart; first and last step stay."""
    if len(curve) <= _MAX_POINTS:
        return curve
    size = math.ceil(len(curve) / _MAX_POINTS)
    parts = [curve[start : start + size] for start in range(0, len(curve), size)]
    return [(part[-1][0], sum(value / len(part) for _, value in part)) for part in parts]
