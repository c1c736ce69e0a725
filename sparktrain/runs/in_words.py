"""A run's figures as people read them: in a terminal, in a notebook, in a report."""

from __future__ import annotations

import re
from collections.abc import Mapping

_PREFERRED = ("auroc", "accuracy", "r2", "mae")


def ranks_text(number: int) -> str:
    return f"{number} rank{'s' * (number != 1)}"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def news_of(values: Mapping[str, float]) -> dict[str, str]:
    """What a line of progress tells of an event's metrics: the loss, the speed, one metric of validation."""
    news = {}
    if "train/loss" in values:
        news["loss"] = f"{values['train/loss']:.4f}"
    if "train/rows_per_second" in values:
        news["rows/s"] = f"{values['train/rows_per_second']:,.0f}"
    validation = {
        key.removeprefix("validation/"): value
        for key, value in values.items()
        if key.startswith("validation/")
    }
    if validation:
        name = _telling(list(validation))
        news[f"validation {name}"] = f"{validation[name]:.4f}"
    return news


def _telling(names: list[str]) -> str:
    """Of a metric's names the one that people know best; of several targets, the first one's."""
    for wanted in _PREFERRED:
        for name in names:
            if re.search(rf"(^|[/_]){wanted}$", name):
                return name
    return next((name for name in names if name != "loss"), names[0])
