"""How a person would write it: features, what was seen of a column, values, comments: lines of Python."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sparktrain.preparation.glance import Seen

WIDTH = 110
_FIRST_SECOND, _LAST_SECOND = -62_135_596_800, 253_402_300_799  # of the years 1 and 9999


def declared(feature: Any) -> str:
    """A declaration as a person writes it: what differs from the defaults."""
    options = feature.model_dump(exclude_defaults=True, exclude={"name", "kind"})
    return f"{type(feature).__name__}({', '.join([literal(feature.name), *_options(feature, options)])})"


def in_short(feature: Any) -> str:
    """The same beside the column: its kind, what differs from the defaults, a name of its own."""
    options = feature.model_dump(exclude_defaults=True, exclude={"name", "kind", "column"})
    given = _options(feature, options)
    text = type(feature).__name__ + (f"({', '.join(given)})" if given else "")
    return text if feature.source == feature.name else f"{text}, named {feature.name}"


def _options(feature: Any, options: Mapping[str, Any]) -> list[str]:
    given = []
    if type(feature).__name__ == "Target" and feature.kind != "binary":
        given.append(f'kind="{feature.kind}"')
    for key, value in options.items():
        if value is not None:
            short = value[0] if key == "shape" and len(value) == 1 else value
            given.append(f"{key}={literal(short)}")
    return given


def told(seen: Seen) -> str:
    """What was seen of a column, in a few words."""
    words = []
    if seen.kind in ("long", "double") and seen.low is not None and seen.high is not None:
        words.append(f"{_short(seen.low)} to {_short(seen.high)}")
    if seen.kind in ("timestamp", "date") and seen.low is not None and seen.high is not None:
        words.append(f"{_day(seen.low)} to {_day(seen.high)}")
    if seen.distinct and seen.kind != "boolean":
        about = "about " if seen.distinct > 2000 else ""
        words.append(f"{about}{seen.distinct:,} values")
    if seen.nulls:
        words.append(f"{seen.nulls:,} nulls ({seen.nulls_fraction:.1%})")
    return f"{seen.type}: {', '.join(words)}" if words else seen.type


def _day(seconds: float) -> str:
    """The day in UTC; west of it, the evening of the last of Python's days lies beyond."""
    return datetime.fromtimestamp(min(max(seconds, _FIRST_SECOND), _LAST_SECOND), UTC).date().isoformat()


def _short(number: float) -> str:
    return f"{number:,.0f}" if number == int(number) and abs(number) < 1e15 else f"{number:.4g}"


def rounded(number: float) -> float:
    return float(f"{number:.4g}")


def literal(value: Any) -> str:
    """A value as Python code, with double quotes."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, tuple):
        return f"({', '.join(map(literal, value))}{',' if len(value) == 1 else ''})"
    return repr(value)


def commented(code: str, comment: str) -> list[str]:
    """Code with its comment behind, or above where the line would be too long."""
    line = f"{code}  # {comment}"
    indent = code[: len(code) - len(code.lstrip())]
    return [line] if len(line) <= WIDTH else [*wrapped(comment, f"{indent}# "), code]


def wrapped(text: str, indent: str) -> list[str]:
    clean = " ".join(text.split())
    return textwrap.wrap(
        clean, WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False
    )
