"""What the benchmarks share: medians of rounds that take turns, and a table of ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

from rich.console import Console
from rich.table import Table


def median_seconds(contestants: Mapping[str, Callable[[], object]], rounds: int = 5) -> dict[str, float]:
    """Run each contestant once per round, in turns, so that a busy moment of the machine hits all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, contestant in contestants.items():
            started = time.perf_counter()
            contestant()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def print_table(title: str, seconds: Mapping[str, float], yardstick: str, rows: int | None = None) -> None:
    """Print seconds, rows/s if `rows` were read, and how many times as fast as `yardstick` each one was."""
    table = Table(title=title, title_justify="left")
    for column in ("", "seconds", *(["M rows/s"] if rows else []), f"times as fast as {yardstick}"):
        table.add_column(column, justify="left" if not column else "right")
    for name, value in seconds.items():
        rate = [f"{rows / value / 1e6:.2f}"] if rows else []
        table.add_row(name, f"{value:.3f}", *rate, f"{seconds[yardstick] / value:.2f}")
    Console(width=110).print(table)
