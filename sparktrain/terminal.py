"""What a person sees in the terminal: progress while it runs, tables at the end."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from sparktrain.runs.in_words import news_of, ranks_text

if TYPE_CHECKING:
    from sparktrain.dataset import Dataset
    from sparktrain.dataset import findings as dataset_findings
    from sparktrain.dataset.check import Report
    from sparktrain.dataset.drift import ColumnDrift
    from sparktrain.doctor import Finding

_MAX_LINES = 5  # about columns, in the table of a dataset that may have hundreds
_SOURCES = {"test": "model, test", "reference": "reference, test", "validation": "model, validation"}
_COLOURS = {"little": "default", "moderate": "yellow", "large": "red"}


_STRAGGLER_CAUSES = {
    "data": "It waits for data: look at how it reaches the dataset, or raise data.num_threads.",
    "compute": "It computes longer: look at what else runs on its host, and at its processor.",
}


class TrainingProgress:
    """A bar that follows the ranks' events; use as a context manager, call with each event."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[news]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._task: TaskID | None = None
        self._output = ""  # of rank 0, a line that has not come to its end
        self._news: dict[str, str] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        self._task = self._progress.add_task("starting", total=None, news="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        early = kind is None and self._tell_whole()
        self._progress.stop()
        if early:
            self._progress.console.print(early, highlight=False)

    def _tell_whole(self) -> str | None:
        """Fill the bar of a training that ended before its steps were made, and return what to say of it."""
        bar = self._progress.tasks[0]
        if not bar.total or bar.completed >= bar.total:
            return None
        early = f"stopped early, at step {bar.completed:,.0f} of {bar.total:,.0f}"
        self._progress.update(bar.id, total=bar.completed)
        return early

    def __call__(self, event: Mapping[str, Any]) -> None:
        assert self._task is not None
        if event["kind"] == "phase":
            self._progress.update(self._task, description=event["name"])
        elif event["kind"] == "progress":
            self._progress.update(self._task, completed=event["step"], total=event["num_steps"])
        elif event["kind"] == "masked":
            self._tell_masked(event["rank"], event["row_groups"])
        elif event["kind"] == "checkpoint_failed":
            self._progress.console.print(event["problem"], style="yellow", markup=False)
        elif event["kind"] == "straggler":
            self._tell_straggler(event)
        elif event["kind"] == "metrics":
            self._news |= news_of(event["values"])
            # a line of 80 columns has no room for more
            news = (f"{name.removeprefix('validation ')} {value}" for name, value in self._news.items())
            self._progress.update(self._task, news="  ".join(news))

    def show_output(self, text: str) -> None:
        """Show what rank 0 prints above the bar, line by line; of one that is overwritten, its last state."""
        *lines, self._output = (self._output + text).split("\n")
        for line in lines:
            shown = line.rstrip("\r").rpartition("\r")[2]
            self._progress.console.print(Text.assemble(("rank 0 │ ", "dim"), shown), highlight=False)

    def _tell_masked(self, rank: int, row_groups: Mapping[str, str]) -> None:
        for where, why in row_groups.items():
            self._progress.console.print(
                f"Rank {rank} can't read {where}; its rows have weight 0. {why}", style="yellow", markup=False
            )

    def _tell_straggler(self, event: Mapping[str, Any]) -> None:
        who = f"Rank {event['rank']} on {event['host']}"
        if event["is_over"]:
            text = f"{who} keeps up with the others again."
        else:
            text = (
                f"{who} is slow, and all others wait for it: a step takes it {event['factor']:.1f} times as "
                f"long, {event['seconds']:.3f} s more. {_STRAGGLER_CAUSES[event['cause']]}"
            )
        self._progress.console.print(text, style="yellow", markup=False)


def log_to(console: Console) -> None:
    """Show our own log lines, and everybody's warnings, on `console`."""
    handler = RichHandler(
        console=console, show_path=False, show_level=False, log_time_format="[%X]", markup=False
    )
    # py4j logs whatever it raises, an interrupt even through the root logger: a wall for what takes us a line
    handler.addFilter(lambda record: "/py4j/" not in Path(record.pathname).as_posix())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], format="%(message)s", force=True)
    logging.getLogger("sparktrain").setLevel(logging.INFO)
    # These write a whole JVM stack as JSON for each refused query; our own errors tell what it comes to.
    for name in ("SQLQueryContextLogger", "DataFrameQueryContextLogger"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def dataset_table(dataset: Dataset) -> Table:
    """Rows in, kept, and quarantined by rule, and where they went; what stands out in the dataset's card."""
    from sparktrain.dataset.card import CARD_PAGE, Card  # a command that fails at once should not wait for it

    manifest = dataset.manifest
    table = _table("dataset", manifest.name)
    rows_in = manifest.rows_in
    table.add_row("rows in", f"{rows_in:,}")
    for rule, count in manifest.quarantined.items():
        table.add_row(f"  quarantined by `{rule}`", f"{count:,} ({count / rows_in:.2%})")
    table.add_row("rows kept", f"{manifest.rows_kept:,}")
    for split, content in manifest.splits.items():
        table.add_row(f"  {split}", f"{content.rows:,}")
    table.add_row("fingerprint", manifest.fingerprint)
    if (card := Card.load(dataset.path)) is not None:
        for column in card.most_often_null(_MAX_LINES):
            table.add_row(f"nulls in `{escape(column.column)}`", f"{column.null_rate:.2%}")
        _add_drift(table, card.drift)
        table.add_row("card", escape(str(dataset.path / CARD_PAGE)))
    return table


def _add_drift(table: Table, drift: Sequence[ColumnDrift]) -> None:
    moved = [column for column in drift if column.level != "little"]
    for column in moved[:_MAX_LINES]:
        change = f"PSI {column.psi:.2f}, a {column.level} change"
        table.add_row(f"drift of `{escape(column.column)}`", f"[{_COLOURS[column.level]}]{change}[/]")
    if len(moved) > _MAX_LINES:
        table.add_row("", f"and {len(moved) - _MAX_LINES} more columns, see the card")


def drift_table(drift: Sequence[ColumnDrift]) -> Table:
    """How far each column is from an earlier dataset's, the farthest first."""
    table = Table(title="drift", title_justify="left", title_style="bold")
    for name in ("column", "PSI", "change", "null", "unknown", "mean"):
        table.add_column(name, justify="right" if name == "PSI" else "left", overflow="fold")
    for column in drift:
        table.add_row(
            escape(column.column),
            f"{column.psi:.3f}",
            f"[{_COLOURS[column.level]}]{column.level}[/]",
            _change(column.null_rate, ".2%"),
            _change(column.unknown_rate, ".2%"),
            _change(column.mean, ",.4g"),
        )
    return table


def _change(shift: tuple[float, float] | None, form: str) -> str:
    return "" if shift is None else " → ".join(dict.fromkeys(format(value, form) for value in shift))


def training_table(result: Mapping[str, Any]) -> Table:
    """The test metrics beside the reference's, the run, the model, and the seconds."""
    metrics: Mapping[str, float] = result["metrics"]
    given = {key.partition("/")[0] for key, value in metrics.items() if value is not None}
    sources = [source for source in _SOURCES if source in given]  # many a run has no reference
    table = _figures("training", "metric", *(_SOURCES[source] for source in sources))
    names = dict.fromkeys(key.partition("/")[2] for key in metrics)
    for name in names:
        values = (metrics.get(f"{source}/{name}") for source in sources)
        table.add_row(name, *("" if value is None else f"{value:.4f}" for value in values))
    return table


def scored_rows(score: Mapping[str, Any]) -> str:
    """How many rows were scored, and how many of them have a reason in place of a score."""
    refused = score["rows_refused"]
    return f"{score['rows']:,} rows" + (f", {refused:,} of them refused: see score_error" if refused else "")


def run_table(result: Mapping[str, Any]) -> Table:
    """What was done, how long it took, where everything lies."""
    table = _table("run", result["run_id"] or "not in MLflow yet")
    ranks = ranks_text(result["world_size"])
    table.add_row("steps", f"{result['steps']:,}, with {ranks}, attempt {result['attempts']}")
    table.add_row("seconds", ", ".join(f"{name} {value:.1f}" for name, value in result["seconds"].items()))
    table.add_row("run directory", result["run_dir"])
    table.add_row("model", result["model_uri"] or "not registered")
    if result.get("unpublished"):
        table.add_row("not published", escape(result["unpublished"]))
    if score := result.get("score"):
        table.add_row("scores", f"{score['output']} ({scored_rows(score)})")
    return table


def replay_line(replayed: Mapping[str, Any]) -> str:
    """What a replay delivered, in one line."""
    model = f", model {replayed['model_uri']}" if replayed["model_uri"] else ""
    return (
        f"MLflow run {replayed['run_id']} at {replayed['tracking_uri']} is {replayed['run_status']}: "
        f"{replayed['metrics']:,} metric values were new to it{model}"
    )


def ui_command(tracking_uri: str) -> str:
    """What to type to look at the run in a browser, in one line to copy."""
    if tracking_uri.startswith("http"):
        return f"look at it: {tracking_uri}"
    program = shutil.which("mlflow") or str(Path(sys.executable).with_name("mlflow"))
    return f"look at it: {program} ui --backend-store-uri {tracking_uri} --host 127.0.0.1"


def findings_table(findings: Sequence[Finding]) -> Table:
    table = Table(title="doctor", title_justify="left", title_style="bold")
    for column in ("", "what", "found", "way out"):
        table.add_column(column, overflow="fold")
    for f in findings:
        table.add_row(_coloured(f["level"]), f["what"], f["found"], f["way_out"])
    return table


def check_tables(report: Report) -> list[Table]:
    """Figures, then findings; of a dataset that can't be trained on nothing but its errors."""
    if report.errors:
        return [_check_findings(f"{report.path} can't be trained on", report.errors)]
    findings = _check_findings("findings", report.findings)
    return [_splits_table(report), *([_ranks_table(report)] if report.ranks else []), findings]


def _splits_table(report: Report) -> Table:
    of = report.fingerprint or "Parquet without a manifest"
    names = ("split", "parts", "row groups", "rows", "steps per epoch", "rows dropped")
    table = _figures(f"{report.path}\n{of}", *names)
    for s in report.splits:
        numbers = (s.num_parts, s.num_row_groups, s.num_rows, s.steps_per_epoch, s.num_rows_dropped)
        table.add_row(s.name, *(f"{number:,}" for number in numbers))
    return table


def _ranks_table(report: Report) -> Table:
    from sparktrain.dataset.findings import bytes_text  # it loads pyarrow

    title = f"any number of ranks makes the same steps of {report.global_batch_size:,} rows"
    table = _figures(title, "ranks", "rows per rank", "lanes per rank", "memory per rank")
    for r in report.ranks:
        rows = " or ".join(f"{n:,}" for n in sorted({r.min_rows_per_step, r.max_rows_per_step}))
        table.add_row(f"{r.num_ranks:,}", rows, f"{r.num_lanes:,}", bytes_text(r.memory_bytes))
    return table


def _check_findings(title: str, findings: Sequence[dataset_findings.Finding]) -> Table:
    """The way out below what was found: side by side they would be two narrow strips."""
    table = Table(title=escape(title), title_justify="left", title_style="bold")
    for column in ("", "what", "found → way out"):
        table.add_column(column, overflow="fold")
    for f in findings:
        way_out = f"\n[cyan]→ {escape(f.way_out)}[/]" if f.way_out else ""
        table.add_row(_coloured(f.level), escape(f.what), escape(f.found) + way_out)
    return table


def _coloured(level: str) -> str:
    colour = {"ok": "green", "warning": "yellow", "error": "red"}[level]
    return f"[{colour}]{level}[/]"


def _figures(title: str, *names: str) -> Table:
    table = Table(title=escape(title), title_justify="left", title_style="bold")
    for number, name in enumerate(names):
        table.add_column(name, justify="right" if number else "left")
    return table


def _table(title: str, subject: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row(title, subject)
    return table
