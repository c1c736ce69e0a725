"""The final figures of a run as one table: by metric, the splits and the reference side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping

from sparktrain.runs.tracking import Tracker

EVALUATION_TABLE = "evaluation.json"
_COLUMNS = {"validation": "validation", "test": "test", "reference": "reference_test"}


def evaluation_rows(metrics: Mapping[str, float]) -> list[dict[str, str | float | None]]:
    """Return a row for each metric: its name, its value by split, the reference's on the test split.

    A value that there is not, or that is no finite number, is None; a column without any value is left out.
    """
    sources = [source for source in _COLUMNS if any(key.startswith(f"{source}/") for key in metrics)]
    names = dict.fromkeys(
        key.partition("/")[2] for key in metrics if key.partition("/")[0] in sources and "/" in key
    )
    return [
        {"metric": name} | {_COLUMNS[source]: _finite(metrics.get(f"{source}/{name}")) for source in sources}
        for name in names
    ]


def log_evaluation_table(tracker: Tracker, metrics: Mapping[str, float]) -> None:
    """Store the table with the run, unless it is there: MLflow would append the rows a second time."""
    if rows := evaluation_rows(metrics):
        columns: dict[str, list[object]] = {name: [row[name] for row in rows] for name in rows[0]}
        tracker.log_table(columns, EVALUATION_TABLE)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
