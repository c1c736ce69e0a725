"""What the benchmarks share: their size, medians of rounds that take turns, and tables of ratios."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from rich.console import Console
from rich.table import Table

T = TypeVar("T")

_FULL_ROWS = 4_000_000
ROWS = int(os.environ.get("SPARKTRAIN_BENCH_ROWS", _FULL_ROWS))


def scaled(full: int) -> int:
    """What SPARKTRAIN_BENCH_ROWS leaves of a number that is meant for the full size."""
    return max(full * ROWS // _FULL_ROWS, 1)


def take_turns(contestants: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Run each contestant once per round, in turns, so that a busy moment of the machine hits all of them."""
    found: dict[str, list[T]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, contestant in contestants.items():
            found[name].append(contestant())
    return found


class Reading(NamedTuple):
    rows: int
    seconds: float


def timed(read: Callable[[], int]) -> Callable[[], Reading]:
    """Make a contestant of a function that reads rows and says how many."""

    def contestant() -> Reading:
        started = time.perf_counter()
        rows = read()
        return Reading(rows, time.perf_counter() - started)

    return contestant


def median_rates(contestants: Mapping[str, Callable[[], Reading]], rounds: int = 5) -> dict[str, float]:
    """Rows per second of contestants that need not read equally many; a first round warms caches."""
    take_turns(contestants, 1)
    readings = take_turns(contestants, rounds)
    return {name: statistics.median(r.rows / r.seconds for r in values) for name, values in readings.items()}


def median_seconds(contestants: Mapping[str, Callable[[], object]], rounds: int = 5) -> dict[str, float]:
    def seconds(contestant: Callable[[], object]) -> float:
        started = time.perf_counter()
        contestant()
        return time.perf_counter() - started

    turns = take_turns({name: lambda c=c: seconds(c) for name, c in contestants.items()}, rounds)
    return {name: statistics.median(values) for name, values in turns.items()}


def print_figures(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table whose first column is text and whose others are figures."""
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(header):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    Console(width=110).print(table)


def print_table(title: str, seconds: Mapping[str, float], yardstick: str, rows: int | None = None) -> None:
    """Print seconds, rows/s if `rows` were read, and how many times as fast as `yardstick` each one was."""
    header = ["", "seconds", *(["M rows/s"] if rows else []), f"times as fast as {yardstick}"]
    figures = []
    for name, value in seconds.items():
        rate = [f"{rows / value / 1e6:.2f}"] if rows else []
        figures.append([name, f"{value:.3f}", *rate, f"{seconds[yardstick] / value:.2f}"])
    print_figures(title, header, figures)


def print_rates(title: str, rates: Mapping[str, float], row_bytes: int, yardsticks: Sequence[str]) -> None:
    """Print rows/s and bytes/s, and how many times as fast as each yardstick every contestant was."""
    header = ["", "M rows/s", "MB/s", *(f"/ {yardstick}" for yardstick in yardsticks)]
    figures = []
    for name, rate in rates.items():
        ratios = [f"{rate / rates[yardstick]:.3g}" for yardstick in yardsticks]
        figures.append([name, f"{rate / 1e6:.3g}", f"{rate * row_bytes / 1e6:,.0f}", *ratios])
    print_figures(title, header, figures)
