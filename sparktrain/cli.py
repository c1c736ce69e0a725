"""The terminal face: `sparktrain prepare|append|train|score|run|doctor CONFIG [section.key=value …]`.

`sparktrain check DATASET` and `sparktrain replay RUN_DIR` stand beside them, as do `init` and `runs`, which
lie in `commands/`: they take no configuration.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from sparktrain.commands import runs
from sparktrain.commands.completion import (
    complete_config,
    complete_dataset,
    complete_override,
    complete_run_dir,
)
from sparktrain.commands.init import init
from sparktrain.config import Config, TrainConfig, load_config
from sparktrain.errors import EXIT_DATA, EXIT_INFRASTRUCTURE, ConfigError, NotPublished, SparktrainError
from sparktrain.outcome import AsJson, outcome_as_exit_code, print_json
from sparktrain.storage import writable_directory
from sparktrain.terminal import log_to

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from sparktrain.dataset import Dataset


@dataclass(frozen=True)
class Work:
    """What a command does with a Spark session.

    Attributes:
        stages: of "prepare", "append", "train", "score", those that it goes through.
        do: gets the session, None without Spark; returns what --json prints.
    """

    stages: tuple[str, ...]
    do: Callable[[Config, Any, Console], dict[str, Any]]


class _Group(TyperGroup):
    """Commands whose help fills the terminal; Typer keeps a docstring's line ends, but for the first one."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        groups = [command for command in self.commands.values() if isinstance(command, TyperGroup)]
        for command in [*self.commands.values(), *(c for group in groups for c in group.commands.values())]:
            paragraphs = (command.help or "").split("\n\n")
            command.help = "\n\n".join(" ".join(paragraph.splitlines()) for paragraph in paragraphs)


BEGIN, STEPS, LOOK = "Begin", "From rows to a model", "Look and mend"

app = typer.Typer(
    name="sparktrain",
    cls=_Group,
    help="Take a Spark DataFrame to a trained, registered PyTorch model.\n\n"
    "DataFrame → prepare → dataset → train → MLflow run → model → score → DataFrame\n\n"
    "New here? Two commands, with a Parquet file of yours and the name of the column to predict:\n\n"
    "  sparktrain init penguins penguins.parquet --target species\n\n"
    "  sparktrain run conf/penguins.yaml\n\n"
    "Commands that take CONFIG, a YAML file, take changes to it, too: "
    "sparktrain run conf/flight_delays.yaml train.epochs=2 storage.root=/tmp/try. "
    "Completion of files, keys, values and runs: sparktrain --install-completion",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

ConfigPath = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG",
        help="YAML file, such as conf/flight_delays.yaml",
        autocompletion=complete_config,
        show_default=False,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[SECTION.KEY=VALUE]...",
        help="changes to the file, such as train.ranks=4 resume=true",
        autocompletion=complete_override,
    ),
]


app.command(rich_help_panel=BEGIN)(init)


@app.command(rich_help_panel=STEPS)
def prepare(config: ConfigPath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Clean, fit, shuffle and write the pipeline's data as a dataset for streaming.

    The dataset lies under <storage.root>/datasets/<pipeline>/<fingerprint>; rows that broke a rule lie in its
    quarantine/. The same input and configuration give the same fingerprint.

    Example: sparktrain prepare conf/flight_delays.yaml prepare.source.fraction=0.03
    """
    run_command(config, overrides or [], as_json, prepare_work)


@app.command(rich_help_panel=STEPS)
def append(config: ConfigPath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Add new rows to the dataset that was prepared last, as a new version; the old one stays.

    The rows are what the pipeline's read() gives for prepare.source. Features keep the statistics that they
    were fitted with; how far the new rows are from these is reported. Rows that are there already are not
    added again, if the pipeline named a KEY.

    Example: sparktrain append conf/flight_delays.yaml prepare.source.directory=/data/2014-01
    """
    run_command(config, overrides or [], as_json, append_work)


@app.command(rich_help_panel=STEPS)
def train(config: ConfigPath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Train on the dataset that was prepared last, log the run to MLflow, register the model.

    resume=true continues the newest run that did not finish, from its newest valid checkpoint.

    Example: sparktrain train conf/flight_delays.yaml train.ranks=4 spark.master=local[4]
    """
    run_command(config, overrides or [], as_json, train_work)


@app.command(rich_help_panel=STEPS)
def score(config: ConfigPath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Score the pipeline's raw rows with the registered model; write Parquet with prediction and probability.

    score.model picks another model than the champion, score.source other rows, score.output another folder.

    Example: sparktrain score conf/flight_delays.yaml score.model=models:/flight_delays/1
    """
    run_command(config, overrides or [], as_json, score_work)


@app.command(rich_help_panel=BEGIN)
def run(config: ConfigPath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Do all of it: prepare, train, register, score.

    Everything is written under storage.root; <run_dir>/result.json holds what --json prints.

    Example: sparktrain run conf/flight_delays.yaml train.epochs=2 storage.root=/tmp/try
    """
    run_command(config, overrides or [], as_json, run_work)


@app.command(rich_help_panel=LOOK)
def doctor(config: ConfigPath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Look for what would make a run fail, before one is started; each finding names its way out.

    Java, storage, MLflow, the pipeline's code, Spark's slots and settings, the executors' versions.

    Example: sparktrain doctor conf/flight_delays.yaml train.ranks=4 spark.master=local[4]
    """
    console = Console(stderr=as_json)
    with outcome_as_exit_code(as_json):
        from sparktrain.doctor import examine
        from sparktrain.terminal import findings_table

        findings = examine(read_config(config, overrides or []))
        console.print(findings_table(findings))
        failed = any(finding["level"] == "error" for finding in findings)
        if as_json:
            print_json({"status": "failed" if failed else "finished", "findings": findings})
        if failed:
            raise typer.Exit(EXIT_INFRASTRUCTURE)


app.add_typer(runs.app, rich_help_panel=LOOK)

_DEFAULTS = TrainConfig()
_USUAL_RANKS = (1, 2, 4, 8)


@app.command(rich_help_panel=LOOK)
def check(
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="DATASET",
            help="a dataset's directory, or plain Parquet",
            autocompletion=complete_dataset,
            show_default=False,
        ),
    ],
    global_batch_size: Annotated[
        int, typer.Option(min=1, help="rows of a step over all ranks")
    ] = _DEFAULTS.global_batch_size,
    num_lanes: Annotated[
        int, typer.Option(min=1, help="places of the epoch's order that each batch mixes")
    ] = _DEFAULTS.num_lanes,
    ranks: Annotated[
        list[int] | None,
        typer.Option(min=1, help="size of a gang to tell about; may be repeated (default: 1, 2, 4, 8)"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tell from footers alone how a dataset will train: steps, mixing, memory, faults of its layout.

    DATASET is what prepare wrote, or the folder above it for the newest one; or any folder of Parquet files,
    for its steps and its layout only. No row is read. Each finding names its way out; a warning costs speed,
    memory or mixing. Exit code 3 when it can't be trained on; then every damaged file is named.

    Example: sparktrain check out/datasets/flight_delays --global-batch-size 4096 --ranks 2 --ranks 6
    """
    console = Console(stderr=as_json)
    with outcome_as_exit_code(as_json):
        from sparktrain.dataset.check import check_dataset
        from sparktrain.terminal import check_tables

        usual = [size for size in _USUAL_RANKS if size <= global_batch_size]
        report = check_dataset(dataset, global_batch_size, num_lanes, ranks or usual)
        for table in check_tables(report):
            console.print(table)
        if as_json:
            print_json({"status": "failed" if report.errors else "finished", **report.to_dict()})
        if report.errors:
            raise typer.Exit(EXIT_DATA)


@app.command(rich_help_panel=LOOK)
def replay(
    run_dir: Annotated[
        str,
        typer.Argument(
            metavar="RUN_DIR",
            help="of a run that has ended",
            autocompletion=complete_run_dir,
            show_default=False,
        ),
    ],
    tracking_uri: Annotated[
        str | None, typer.Option(help="of an MLflow server (default: where the run was tracked)")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Deliver to MLflow what it lacks of a run, because it was away while the run trained or ended.

    Metrics come from the run directory's events, each step of a key once; a finished run whose model could
    not be registered is published; the run gets the status that result.json says. Needs no Spark, and may be
    repeated. To register a model, the pipeline's code must be in reach: start it where you trained.

    Example: sparktrain replay out/runs/flight_delays-20260101-120000-1a2b3c
    """
    console = Console(stderr=as_json)
    with outcome_as_exit_code(as_json):
        reach_pipelines()
        from sparktrain.runs.replay import replay as replay_run
        from sparktrain.terminal import replay_line

        log_to(console)
        with console.status("delivering"):
            replayed = replay_run(Path(run_dir), tracking_uri).to_dict()
        console.print(replay_line(replayed), highlight=False, soft_wrap=True, markup=False)
        if as_json:
            print_json({"status": "finished", **replayed})


def _prepare_work(config: Config, spark: SparkSession, console: Console) -> dict[str, Any]:
    from sparktrain.stages import dataset_result

    return dataset_result(_prepare(config, spark, console))


def _append_work(config: Config, spark: SparkSession, console: Console) -> dict[str, Any]:
    from sparktrain.dataset.card import Card
    from sparktrain.stages import append_stage, dataset_result
    from sparktrain.terminal import dataset_table, drift_table

    with console.status("appending the data"):
        dataset = append_stage(config, spark)
    console.print(dataset_table(dataset))
    card = Card.load(dataset.path)
    drift = card.drift if card else ()
    console.print(drift_table(drift))
    return {**dataset_result(dataset), "drift": {column.column: column.psi for column in drift}}


def _train_work(config: Config, spark: SparkSession | None, console: Console) -> dict[str, Any]:
    from sparktrain.stages import newest_dataset

    result = _train(config, spark, newest_dataset(config), console)
    _show_run(config, result, console)
    return result


def _score_work(config: Config, spark: SparkSession, console: Console) -> dict[str, Any]:
    from sparktrain.terminal import scored_rows

    result = _score(config, spark, console)
    line = f"{scored_rows(result)}, scored by {result['model_uri']}: {result['output']}"
    console.print(line, highlight=False, soft_wrap=True)
    return {"status": "finished", **result}


def _run_work(config: Config, spark: SparkSession, console: Console) -> dict[str, Any]:
    from sparktrain.stages import write_result

    started = time.monotonic()
    dataset = _prepare(config, spark, console)
    prepared = time.monotonic()
    result = _train(config, spark, dataset, console)
    if result["model_uri"] is None:
        _show_run(config, result, console)
        raise _not_published(result)
    # The version just registered, even if another run has moved the alias since.
    scores = config.score.model_copy(update={"model": config.score.model or result["model_uri"]})
    try:
        scored = _score(config.model_copy(update={"score": scores}), spark, console)
    except SparktrainError as error:  # the training is done, and its model stays
        _show_run(config, result, console)
        error.result = {**result, **error.result, "status": "failed"}
        raise
    result["seconds"] = {"prepare": prepared - started, **result["seconds"], "score": scored.pop("seconds")}
    result["score"] = scored
    write_result(result["run_dir"], result)
    _show_run(config, result, console)
    return result


def _not_published(result: Mapping[str, Any]) -> NotPublished:
    """The champion's scores, an older model's, would be taken for this run's."""
    from sparktrain.runs.directory import RunDirectory

    run = RunDirectory(Path(result["run_dir"]))
    error = NotPublished(
        f"so nothing was scored: {result['unpublished']}", str(run.checkpoints), run.replay_command
    )
    error.result = result
    return error


prepare_work = Work(("prepare",), _prepare_work)
append_work = Work(("append",), _append_work)
train_work = Work(("train",), _train_work)
score_work = Work(("score",), _score_work)
run_work = Work(("prepare", "train", "score"), _run_work)


def _prepare(config: Config, spark: SparkSession, console: Console) -> Dataset:
    from sparktrain.stages import prepare_stage
    from sparktrain.terminal import dataset_table

    with console.status("preparing the data"):
        dataset = prepare_stage(config, spark)
    console.print(dataset_table(dataset))
    return dataset


def _train(config: Config, spark: SparkSession | None, dataset: Dataset, console: Console) -> dict[str, Any]:
    from sparktrain.stages import train_stage
    from sparktrain.terminal import TrainingProgress

    with TrainingProgress(console) as progress:
        return train_stage(config, spark, dataset, progress, progress.show_output).to_dict()


def _score(config: Config, spark: SparkSession, console: Console) -> dict[str, Any]:
    from sparktrain.stages import score_stage

    with console.status("scoring"):
        return score_stage(config, spark)


def _show_run(config: Config, result: Mapping[str, Any], console: Console) -> None:
    from sparktrain.runs.connection import resolve_tracking_uri, without_secrets
    from sparktrain.terminal import run_table, training_table, ui_command

    uri = resolve_tracking_uri(config.tracking, config.storage.root)
    console.print(training_table(result))
    console.print(run_table(result))
    console.print(ui_command(without_secrets(uri)), highlight=False, soft_wrap=True)


def run_command(path: str, overrides: Sequence[str], as_json: bool, work: Work) -> None:
    """Read the configuration, start Spark, work, and end the process with the outcome's exit code."""
    do_work(lambda: read_config(path, overrides), as_json, work)


def do_work(configure: Callable[[], Config], as_json: bool, work: Work) -> None:
    """The same with a configuration that comes from elsewhere."""
    console = Console(stderr=as_json)
    with outcome_as_exit_code(as_json):
        config = configure()
        writable_directory(config.storage.root)
        # Only now: what is wrong up to here is told without pyspark.
        from sparktrain.session import spark_session
        from sparktrain.stages import check_before_spark, check_before_work

        log_to(console)
        if config.spark.is_none and not _is_first_without_spark(config, work.stages):
            return  # the first rank reports for all
        check_before_spark(config, work.stages)
        with spark_session(config) if not config.spark.is_none else nullcontext() as spark:
            # Spark's own handler would first ask the JVM in the middle of another question, and fail at that.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if spark is not None:
                check_before_work(config, work.stages, spark)
            result = work.do(config, spark, console)
        if as_json:
            print_json(result)


def _is_first_without_spark(config: Config, stages: Sequence[str]) -> bool:
    """Whether this process leads a training without Spark; one that does not has trained when this returns.

    Raises:
        ConfigError: the command does more than to train, or there are more or fewer processes than ranks.
    """
    if tuple(stages) != ("train",):
        way_out = "only `sparktrain train` works without Spark, on a dataset that is there already"
        raise ConfigError([f"spark.master: none given; {way_out}"])
    from sparktrain.gang.alone import attend, check_processes
    from sparktrain.world import World

    check_processes(config.train)
    if World.from_environment().is_first:
        return True
    attend(config.train)
    return False


def job(work: Work, description: str | None) -> None:
    """Entry of a spark-submit job: `--config FILE [--json] [section.key=value …]`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", required=True, help="YAML file, such as conf/flight_delays.yaml")
    # spark-submit sends a driver's stderr to its own stdout, so that nothing keeps them apart there.
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line of stdout"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    given = parser.parse_args()
    try:
        run_command(given.config, given.overrides, given.json, work)
    except typer.Exit as ended:
        sys.exit(ended.exit_code)


def read_config(path: str, overrides: Sequence[str]) -> Config:
    """Read the configuration with `pipelines/` of the working directory in reach."""
    reach_pipelines()
    return load_config(path, overrides)


def reach_pipelines() -> None:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def main() -> None:
    app()


if __name__ == "__main__":
    main()
