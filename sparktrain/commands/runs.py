"""`sparktrain runs`: what was trained under a storage root, from the run directories alone."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from sparktrain.commands.completion import OUT, complete_override, complete_run
from sparktrain.errors import ConfigError
from sparktrain.outcome import AsJson, outcome_as_exit_code, print_json
from sparktrain.runs.directory import FINISHED, RunDirectory
from sparktrain.runs.in_words import duration
from sparktrain.runs.record import (
    RUNNING,
    STALE,
    UNSTARTED,
    RunRecord,
    all_metrics,
    best_of,
    different_settings,
    mark_killed,
    records,
)

if TYPE_CHECKING:
    from sparktrain.config import Config

app = typer.Typer(
    name="runs",
    invoke_without_command=True,
    rich_markup_mode="rich",
)

Root = Annotated[Path, typer.Option(help="storage.root of the runs")]
RunName = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="its name, or as much as is its own",
        autocompletion=complete_run,
        show_default=False,
    ),
]


class Status(StrEnum):
    """How a run stands, as `RunRecord.status` tells it."""

    FINISHED = FINISHED
    FAILED = "failed"
    KILLED = "killed"
    RUNNING = RUNNING
    STALE = STALE
    UNSTARTED = UNSTARTED


_COLOURS = {"finished": "green", "failed": "red", "killed": "yellow", STALE: "yellow", RUNNING: "cyan"}
_NAME = "run, by its start in UTC"
_GAP = 2  # between two columns
_LEFT_OUT_FIRST = ("took", "steps", "model", "best")


def _version(record: RunRecord) -> str:
    version = (record.result.get("model_uri") or "").rpartition("/")[2]
    return version and f"version {version}"


def _best(record: RunRecord) -> str:
    return f"{record.best_metric} {_number(record.best)}" if record.best is not None else ""


_CELLS: Mapping[str, Callable[[RunRecord], str]] = {
    _NAME: lambda record: record.name,
    "status": lambda record: record.status,
    "took": lambda record: duration(record.seconds),
    "steps": lambda record: f"{record.steps:,}",
    "best": _best,
    "model": _version,
}


@app.callback()
def runs(ctx: typer.Context) -> None:
    """List, look at, compare and resume what was trained; alone, it lists. Needs no Spark, no MLflow.

    Example: sparktrain runs compare flights-20260101-120000-1a2b3c flights-20260102-120000-4d5e6f
    """
    if ctx.invoked_subcommand is None:
        list_runs()


@app.command(name="list")
def list_runs(
    pipeline: Annotated[str | None, typer.Option(help="only runs of this pipeline")] = None,
    status: Annotated[Status | None, typer.Option(help="only runs that stand like this")] = None,
    limit: Annotated[int, typer.Option(min=1, help="so many at most, the newest")] = 20,
    root: Root = OUT,
    as_json: AsJson = False,
) -> None:
    """List runs, the newest first: how they stand, how far they came, the best metric, the model.

    Example: sparktrain runs list --pipeline flight_delays --status finished
    """
    console = Console(stderr=as_json)
    with outcome_as_exit_code(as_json):
        found = records(root, pipeline, status)
        shown = found[:limit]
        _list(shown, console, f"no run under {root}")
        if len(found) > limit:
            console.print(f"{len(found) - limit} older ones: --limit {len(found)}", style="dim")
        if as_json:
            print_json({"status": "finished", "runs": [record.to_dict() for record in shown]})


@app.command()
def show(run: RunName, root: Root = OUT, as_json: AsJson = False) -> None:
    """Show one run: settings that differ from the defaults, metrics, phases, attempts, where things lie.

    Example: sparktrain runs show flight_delays-20260101-120000-1a2b3c
    """
    console = Console(stderr=as_json)
    with outcome_as_exit_code(as_json):
        record = RunRecord(RunDirectory.named(root, run))
        _show(record, console)
        if as_json:
            told = {"settings": record.settings, "metrics": record.metrics, "places": record.places}
            phases = {"seconds": record.result.get("seconds") or {}, "error": record.result.get("error")}
            failures = {"failures": {str(number): why for number, why in record.failures.items()}}
            print_json({**record.to_dict(), **told, **phases, **failures})


@app.command()
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN RUN...", help="two or more", autocompletion=complete_run, show_default=False
        ),
    ],
    root: Root = OUT,
    as_json: AsJson = False,
) -> None:
    """Compare runs: the settings that differ, and the metrics; of one pipeline's runs the better has a star.

    Example: sparktrain runs compare flights-20260101-120000-1a2b3c flights-20260102-120000-4d5e6f
    """
    console = Console(stderr=as_json)
    with outcome_as_exit_code(as_json):
        compared = [RunRecord(RunDirectory.named(root, run)) for run in runs]
        if len(compared) < 2:
            raise ConfigError(["one given; give two runs or more"], "the runs to compare")
        settings, metrics = different_settings(compared), all_metrics(compared)
        names = [record.name for record in compared]
        console.print(_beside("setting", names, settings, {}))
        # of other rows, or of another target, a figure says nothing
        is_one = len({record.pipeline for record in compared}) == 1
        best = {key: best_of(key, values) if is_one else None for key, values in metrics.items()}
        console.print(_beside("metric", names, metrics, best))
        if as_json:
            better = {key: None if number is None else names[number] for key, number in best.items()}
            told = {"runs": names, "settings": settings, "metrics": metrics, "better": better}
            print_json({"status": "finished", **told})


@app.command()
def resume(
    run: RunName,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SECTION.KEY=VALUE]...",
            help="changes, such as train.epochs=20",
            autocompletion=complete_override,
        ),
    ] = None,
    root: Root = OUT,
    as_json: AsJson = False,
) -> None:
    """Continue a run that did not finish, by its name, with its own settings, from its newest checkpoint.

    It trains on the dataset that it began with, even if another was prepared since. Start it in the folder
    with pipelines/. `sparktrain train CONFIG resume=RUN` does the same with the settings of a file.

    Example: sparktrain runs resume flight_delays-20260101-120000-1a2b3c train.max_restarts=5
    """
    from sparktrain.cli import do_work, reach_pipelines, train_work

    def configure() -> Config:
        reach_pipelines()
        record = RunRecord(RunDirectory.named(root, run))
        if record.status in (FINISHED, RUNNING, UNSTARTED):
            problem = f"{record.name} is {record.status}; only what broke off can be continued"
            raise ConfigError([problem], "the run to resume")
        return _settings_of(record.run, overrides or [])

    do_work(configure, as_json, train_work)


@app.command()
def stale(
    mark: Annotated[bool, typer.Option("--mark", help="give them the end that they lack: killed")] = False,
    root: Root = OUT,
    as_json: AsJson = False,
) -> None:
    """List runs whose driver is gone and that never got an end; --mark tells so in their result and MLflow.

    A run that was marked can still be resumed. One on another host counts as gone after ten silent minutes.

    Example: sparktrain runs stale --mark
    """
    console = Console(stderr=as_json)
    with outcome_as_exit_code(as_json):
        found = records(root, status=STALE)
        _list(found, console, f"no stale run under {root}")
        untold = {record.name: why for record in found if (why := _end(record, console))} if mark else {}
        if as_json:
            names = [record.name for record in found]
            print_json({"status": "finished", "stale": names, "marked": mark, "mlflow_lacks": untold})


def _end(record: RunRecord, console: Console) -> str | None:
    """Mark a run as killed; returns why MLflow could not be told."""
    from sparktrain.errors import SparktrainError

    if not mark_killed(record):
        console.print(f"{record.name} goes on, or has ended: it is left as it is", highlight=False)
        return None
    if not record.run.mlflow_file.is_file():
        return None
    try:
        from sparktrain.runs.replay import replay

        with console.status(f"telling MLflow of {record.name}"):
            replay(record.run.path)
    except SparktrainError as error:
        console.print(f"MLflow lacks the end of {record.name}: {error}", style="yellow", markup=False)
        return str(error)
    return None


def _settings_of(run: RunDirectory, overrides: Sequence[str]) -> Config:
    """The configuration that a run began with, changed, set to resume it where it lies."""
    from sparktrain.config import apply_overrides, parse_config
    from sparktrain.runs.replay import config_of

    tree = config_of(run).model_dump(mode="json")
    problems = list(apply_overrides(tree, overrides))
    tree["resume"] = run.name
    tree["storage"]["root"] = str(run.root)
    return parse_config(tree, f"the settings of {run.name}", problems)


def _list(found: Sequence[RunRecord], console: Console, nothing: str) -> None:
    if not found:
        console.print(nothing, highlight=False, soft_wrap=True, markup=False)
        return
    columns = {name: [name, *(cell(record) for record in found)] for name, cell in _CELLS.items()}
    left_out = _left_out({name: max(map(cell_len, cells)) for name, cells in columns.items()}, console.width)
    table = Table(box=None, pad_edge=False)
    for name in (name for name in columns if name not in left_out):
        # a name is there to be copied: where even it has no room, it is folded, not cut
        justify: JustifyMethod = "right" if name in ("took", "steps") else "left"
        table.add_column(name, no_wrap=name != _NAME, overflow="fold", justify=justify)
    for number, record in enumerate(found, start=1):
        colours = {"status": _COLOURS.get(record.status, "default")}
        cells = {name: texts[number] for name, texts in columns.items() if name not in left_out}
        table.add_row(*(Text(text, style=colours.get(name, "")) for name, text in cells.items()))
    console.print(table)
    if left_out:
        console.print(f"no room for: {', '.join(left_out)}", style="dim", highlight=False)


def _left_out(widths: Mapping[str, int], room: int) -> list[str]:
    """The columns to leave out so that the others stand whole, those that tell least first."""
    left_out: list[str] = []
    for name in _LEFT_OUT_FIRST:
        shown = [width for column, width in widths.items() if column not in left_out]
        if sum(shown) + _GAP * (len(shown) - 1) <= room:
            break
        left_out.append(name)
    return left_out


def _show(record: RunRecord, console: Console) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")

    def section(title: str, values: Mapping[str, Any]) -> None:
        for number, (key, value) in enumerate(values.items()):
            table.add_row(f"[bold]{title}" if number == 0 else "", f"{escape(key)}  {escape(str(value))}")

    table.add_row("[bold]run", escape(record.name))
    table.add_row("[bold]status", f"[{_COLOURS.get(record.status, 'default')}]{record.status}")
    if error := record.result.get("error"):
        table.add_row("[bold]error", escape(str(error)))
    table.add_row("[bold]started", f"{record.started:%Y-%m-%d %H:%M:%S} UTC, took {duration(record.seconds)}")
    attempts, ranks = record.run.num_attempts, record.result.get("world_size", "?")
    steps = f"{record.steps:,}, attempts: {attempts}, ranks: {ranks}"
    table.add_row("[bold]steps", steps)
    if model := record.result.get("model_uri"):
        table.add_row("[bold]model", escape(model))
    section("metrics", {key: _number(value) for key, value in sorted(record.metrics.items())})
    section("phases", {key: duration(value) for key, value in (record.result.get("seconds") or {}).items()})
    section("failures", {f"attempt {number}": why for number, why in record.failures.items()})
    section("settings", record.settings)
    console.print(table)
    console.print("[bold]where")
    for what, place in record.places.items():
        console.print(f"  {what}: {place}", highlight=False, soft_wrap=True, markup=False)
    if record.status in ("failed", "killed", STALE):
        command = f"sparktrain runs resume {record.name}"
        if record.run.root != OUT.resolve():
            command += f" --root {shlex.quote(str(record.run.root))}"
        console.print(f"continue it: {command}", soft_wrap=True, highlight=False, markup=False)


def _beside(
    title: str, names: Sequence[str], rows: Mapping[str, Sequence[Any]], best: Mapping[str, int | None]
) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(title, style="cyan", no_wrap=True)
    for name in names:
        table.add_column(escape(name), overflow="fold", justify="right" if best else "left")
    for key, values in rows.items():
        told = [_number(value) if isinstance(value, float) else str(value) for value in values]
        cells = ["" if value is None else text for value, text in zip(values, told, strict=True)]
        if (number := best.get(key)) is not None:
            cells[number] = f"★ {cells[number]}"
        table.add_row(escape(key), *(escape(cell) for cell in cells))
    if not rows:
        table.add_row(f"[dim]no {title} differs" if not best else "[dim]none", *["" for _ in names])
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
