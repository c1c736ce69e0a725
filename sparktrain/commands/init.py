"""`sparktrain init`: a new pipeline from a file or a table, and a table of what was guessed."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sparktrain.outcome import AsJson, outcome_as_exit_code, print_json

if TYPE_CHECKING:
    from sparktrain.new_pipeline import Created

EXAMPLE = "sparktrain init penguins penguins.parquet --target species"


def init(
    name: Annotated[
        str, typer.Argument(help="of the new pipeline, such as house_prices", show_default=False)
    ],
    source: Annotated[
        str,
        typer.Argument(
            help="a Parquet, CSV or JSON file, a folder of them, a glob in quotes, or a table's name",
            show_default=False,
        ),
    ],
    target: Annotated[str, typer.Option(help="the column to predict", show_default=False)],
    into: Annotated[Path, typer.Option(help="folder that gets pipelines/, conf/ and tests/")] = Path("."),
    as_json: AsJson = False,
) -> None:
    """Write a new pipeline for data that nobody prepared for: it runs as it stands.

    One look at the rows guesses what each column is; those that are of no use are left out, with the
    reason. You get four short files to correct: data.py, model.py, a configuration, a test. Nothing is
    overwritten.

    Example: sparktrain init penguins penguins.parquet --target species
    """
    console = Console(stderr=as_json)
    with outcome_as_exit_code(as_json):
        created = _create(name, source, target, into, console)
        _show(created, console)
        if as_json:
            print_json(_result(created))


def _create(name: str, source: str, target: str, into: Path, console: Console) -> Created:
    from sparktrain.new_pipeline import init_pipeline
    from sparktrain.new_pipeline.create import check_new
    from sparktrain.new_pipeline.source import Source

    check_new(name, into)
    Source.of(source)
    from sparktrain.config import Config
    from sparktrain.session import spark_session
    from sparktrain.terminal import log_to

    log_to(console)
    with tempfile.TemporaryDirectory(prefix="sparktrain-init-") as scratch:
        config = Config.model_validate({"pipeline": name, "storage": {"root": scratch}})
        with (
            console.status("looking at the rows"),
            spark_session(config, with_pipelines=False) as spark,
        ):
            return init_pipeline(source, name, target, into=into, spark=spark)


def _show(created: Created, console: Console) -> None:
    from sparktrain.new_pipeline.wording import in_short, told

    guess = created.guess
    table = Table(title=f"{created.name}, from {guess.rows:,} rows", title_justify="left", title_style="bold")
    table.add_column("column", style="cyan", overflow="fold")  # a name is never cut
    table.add_column("is taken as")
    table.add_column("because it holds", overflow="fold")
    features = {feature.source: feature for feature in guess.features}
    for name, seen in guess.columns.items():
        shown = Table.grid()  # a cell that wraps by words
        shown.add_column(overflow="fold")
        if name == guess.target.source:
            shown.add_row(f"[bold green]{escape(in_short(guess.target))}")
        elif name in features:
            shown.add_row(escape(in_short(features[name])))
        else:
            shown.add_row("[dim]left out")
        why = guess.left_out.get(name) or told(seen)
        table.add_row(escape(name), shown, f"[dim]{escape(why)}" if name in guess.left_out else escape(why))
    console.print(table)
    for name, warning in guess.warnings.items():
        console.print(f"Look at `{name}`: {warning}.", style="yellow", highlight=False, markup=False)
    for note in guess.notes:
        if note.startswith(f"`{guess.target.source}`, the target"):
            console.print(f"{note}.", style="yellow", highlight=False, markup=False)
    console.print("\nWritten, for you to correct:", style="bold")
    for file in created.files:
        console.print(f"  {file}", highlight=False, soft_wrap=True, markup=False)
    console.print("\nNext:", style="bold")
    if created.into.resolve() != Path.cwd():
        console.print(f"  cd {created.into}", highlight=False, soft_wrap=True, markup=False)
    for command in created.commands:
        console.print(f"  {command}", highlight=False, soft_wrap=True, markup=False)


def _result(created: Created) -> dict[str, Any]:
    guess = created.guess
    return {
        "status": "finished",
        "pipeline": created.name,
        "files": [str(file) for file in created.files],
        "rows": guess.rows,
        "target": guess.target.model_dump(),
        "features": [feature.model_dump(mode="json") for feature in guess.features],
        "left_out": dict(guess.left_out),
        "warnings": dict(guess.warnings),
        "next": created.commands,
    }
