"""train: the driver's side of a run. What can fail cheaply fails here, before a gang exists."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyspark.sql import SparkSession

from sparktrain.config import Config
from sparktrain.dataset import Dataset, open_dataset
from sparktrain.errors import (
    EXIT_CONFIG,
    ConfigError,
    NotPublished,
    PipelineFailed,
    ResumeRefused,
    RunUnderWay,
    SparktrainError,
)
from sparktrain.faults import FaultPlan
from sparktrain.gang.alone import Alone, check_processes
from sparktrain.gang.blame import user_lines
from sparktrain.gang.launch import active_session
from sparktrain.gang.pickling import check_picklable
from sparktrain.gang.rank import RunSpec
from sparktrain.gang.restart import Attempts
from sparktrain.gang.settings import check_before_launch
from sparktrain.gang.shipping import ship_code_of
from sparktrain.gang.slots import setting
from sparktrain.runs.describe import flatten, keep_facts, masked
from sparktrain.runs.directory import FINISHED, RunDirectory
from sparktrain.runs.follow import Follower
from sparktrain.runs.in_notebook import progress_in_cell, result_in_cell
from sparktrain.runs.late import LateTracker, Untracked, start_tracking
from sparktrain.runs.publish import Outcome, publish_or_tell, write_and_log_report
from sparktrain.runs.tracking import Tracker
from sparktrain.storage import check_writable, commit_json, read_json
from sparktrain.training.blocks import blocks_of
from sparktrain.training.checkpoint import Checkpoint, newest_valid
from sparktrain.training.ending import is_more_better
from sparktrain.training.step import has_own_step
from sparktrain.training.task import TrainTask
from sparktrain.world import World

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)

# What the steps already done would no longer belong to if it changed.
_FIXED_ON_RESUME = (
    "dataset",
    "storage.checkpoints",
    "data.reader",
    "data.tail",
    "train.global_batch_size",
    "train.num_lanes",
    "train.seed",
    "train.model",
)


@dataclass(frozen=True)
class TrainResult:
    """How a run ended; the same as `<run_dir>/result.json`.

    Attributes:
        status: "finished", "failed" or "killed".
        run_id: MLflow's; None if it was never reached, or is not wanted.
        dataset: path, fingerprint, rows by split, quarantined rows by rule.
        metrics: "validation/…" and "test/…" of the best checkpoint, "reference/…" of the logistic regression.
        model_uri: the registered version, "models:/<name>/<version>"; None if the run did not finish, or if
            its model is of a kind that can't be registered yet.
        unpublished: why MLflow lacks the outcome of a finished run, which `sparktrain replay` delivers.
        seconds: by phase.
    """

    status: str
    run_id: str | None
    run_dir: str
    dataset: Mapping[str, Any]
    world_size: int
    attempts: int
    steps: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    model_uri: str | None = None
    unpublished: str | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def _repr_html_(self) -> str:
        return result_in_cell(self.to_dict())


def train(
    dataset: Dataset,
    task: TrainTask,
    config: Config,
    *,
    spark: SparkSession | None = None,
    on_event: Callable[[Mapping[str, Any]], None] | None = None,
    on_output: Callable[[str], object] | None = None,
    progress: bool = True,
) -> TrainResult:
    """Train `task` on `dataset` with a gang, log the run to MLflow, and register the model.

    Args:
        dataset: on storage that driver and executors see.
        task: sent to the ranks by pickle; its class lives in the `model.py` of a pipeline.
        config: `config.resume` continues the newest unfinished run of the pipeline, if there is one.
        spark: session to use; the active one if None. With `spark.master: none` this process trains, as the
            first of those that torchrun has started.
        on_event: called on the driver, from another thread, with each event of the ranks.
        on_output: likewise, with what rank 0 prints, as it comes; None: it goes to stdout.
        progress: in a notebook, show in the cell how far the training is; elsewhere nothing is shown.

    Raises:
        SparktrainError: of the class that names the reason; see `sparktrain.errors`.
    """
    started = time.monotonic()
    model = check_training(dataset, task, config)
    session = None if config.spark.is_none else spark or active_session()
    if session is not None:
        check_before_launch(session, config.train)
        ship_code_of(session, task)
    else:
        check_processes(config.train)
    run, saved = _run_directory(dataset, config)
    with run.only_reporter() as alone:
        if not alone:
            raise RunUnderWay(str(run.path))
        with progress_in_cell(on_event, progress) as follow:
            return _lead(run, saved, session, dataset, task, config, model, started, follow, on_output)


def _lead(
    run: RunDirectory,
    saved: Checkpoint | None,
    session: SparkSession | None,
    dataset: Dataset,
    task: TrainTask,
    config: Config,
    model: nn.Module,
    started: float,
    on_event: Callable[[Mapping[str, Any]], None] | None,
    on_output: Callable[[str], object] | None,
) -> TrainResult:
    """Train in the run's directory, from `saved` on, through all attempts; publish what comes out."""
    checkpoints = run.checkpoints_in(config.storage.checkpoints)
    check_writable(checkpoints)
    faults = FaultPlan.from_environment(run.faults)
    attempts: Attempts | Alone = Alone(run, config.train)
    if session is not None:
        attempts = Attempts(session, run, config.train, on_output)
        attempts.check()
    keep_facts(run, dataset, model, _spark_tags(session) if session is not None else None)
    tracker = start_tracking(run, config, dataset, model)
    facts: dict[str, Any] = {
        "run_dir": str(run.path),
        "dataset": describe_dataset(dataset),
    }
    spec = RunSpec(
        run.path,
        dataset.path.resolve(),
        task,
        config.train,
        saved.path if saved else None,
        config.data,
        checkpoints,
        faults,
        config.tracking.system_metrics_seconds,
    )
    with _ending(run, tracker, attempts, facts):
        with Follower(run, tracker, on_event):
            found = attempts.run(spec, saved.step if saved else 0)
        trained = time.monotonic()
        outcome = Outcome.of(found, dataset, task, config)
        outcome.commit(run)
        published = publish_or_tell(run, tracker, dataset, outcome)
        result = TrainResult(
            status=FINISHED,
            run_id=tracker.run_id,
            steps=outcome.steps,
            metrics=outcome.metrics,
            model_uri=published.model_uri,
            unpublished=published.problem,
            seconds={"train": trained - started, "publish": time.monotonic() - trained},
            world_size=attempts.ranks,
            attempts=attempts.number,
            **facts,
        )
        run.write_result(result.to_dict())
    write_and_log_report(run, tracker if published.reached else None)
    if published.reached:
        tracker.finish("FINISHED")
    if published.problem and config.tracking.required:
        lost = NotPublished(published.problem, str(outcome.checkpoint(run)), run.replay_command)
        lost.result = result.to_dict()
        raise lost
    if published.problem:
        text = "the model is not registered: %s. Deliver what MLflow lacks, once it is back: %s"
        logger.warning(text, published.problem, run.replay_command)
    return result


def _spark_tags(session: SparkSession) -> dict[str, str]:
    """Where to find the training in Spark's own pages and logs."""
    names = {
        "spark.app_id": "spark.app.id",
        "spark.app_name": "spark.app.name",
        "spark.master": "spark.master",
    }
    found = {tag: setting(session, name) for tag, name in names.items()}
    return {tag: value for tag, value in found.items() if value} | {"spark.version": session.version}


def describe_dataset(dataset: Dataset) -> dict[str, Any]:
    return {
        "path": str(dataset.path),
        "fingerprint": dataset.fingerprint,
        "rows": {split: dataset.num_rows(split) for split in dataset.manifest.splits},
        "quarantined": dict(dataset.manifest.quarantined),
    }


def check_training(dataset: Dataset, task: TrainTask, config: Config) -> nn.Module:
    """Refuse what could not work, before a run or a gang exists; return the model, built to see if it can be.

    Raises:
        DatasetInvalid: naming every part that is not what the manifest says.
        TooFewRows: an epoch would have no step.
        NotPicklable: the Task can't be sent to the ranks; names what in it is the reason.
        ConfigError: the Task's class or its metrics don't fit, or the reader can't serve so many ranks.
        BlocksUnknown: the model has no modules as `train.blocks` names them.
        PipelineFailed: the model or its optimizers can't be built, with a dropout of 2 for instance.
    """
    _check_class(task)
    check_picklable(task)
    dataset.verify(config.data.on_bad_data)
    dataset.steps_per_epoch("train", config.train.global_batch_size, config.data.tail)
    if config.data.reader == "petastorm":
        _check_shards(dataset, config)
    check_metric(task, config)
    problems = []
    if config.train.micro_batch_size is not None and has_own_step(task):
        way_out = "leave it empty, and let train_step pass over parts of its batch"
        problems.append(f"train.micro_batch_size: the task has a train_step of its own; {way_out}")
    if config.train.early_stopping_evaluations is not None and not dataset.num_rows("validation"):
        way_out = "leave it empty, or set prepare.split.validation"
        problems.append(f"train.early_stopping_evaluations: the validation split is empty; {way_out}")
    if problems:
        raise ConfigError(problems)
    with _told_as(task, "build_model"):
        model = task.build_model(dataset.features)
    blocks_of(model, config.train.blocks)
    with _told_as(task, "optimizers"):
        optimizers = task.optimizers(model, config.train)
    several = isinstance(optimizers, Mapping) and len(optimizers) > 1
    if several and config.train.strategy == "ddp" and config.train.ddp.compression == "powersgd":
        problem = "the task has several optimizers, and powersgd keeps one error for all gradients of a step"
        raise ConfigError([f"train.ddp.compression: {problem}; set it to fp16 or none"])
    return model


@contextmanager
def _told_as(task: TrainTask, method: str) -> Iterator[None]:
    try:
        yield
    except SparktrainError:
        raise
    except Exception as error:
        what = f"{type(task).__module__}.{type(task).__name__}.{method}()"
        raise PipelineFailed(what, error, user_lines(error), EXIT_CONFIG) from error


def check_metric(task: TrainTask, config: Config) -> None:
    """Refuse to pick the best checkpoint by a metric that the Task lacks, or that says not what is better.

    Raises:
        ConfigError, MetricWithoutDirection
    """
    best, known = config.train.best_metric, [*task.metrics(), "loss"]
    if best not in known:
        names = ", ".join(known)
        raise ConfigError([f"train.best_metric: the task has no metric {best!r}; it has: {names}"])
    is_more_better(task, best)


def _check_shards(dataset: Dataset, config: Config) -> None:
    """Refuse a split that Petastorm can't share among the ranks; a stream that is not read opens no file."""
    read = open_dataset(dataset.path, reader=config.data.reader)
    for split in dataset.manifest.splits:
        if dataset.num_rows(split):
            world = World(size=config.train.ranks)
            read.stream(split, config.train.global_batch_size, world=world, **config.data.stream_options)


def _check_class(task: TrainTask) -> None:
    """Refuse a Task that the registered model could not find again after the training."""
    module, name = type(task).__module__, type(task).__qualname__
    if "." not in module or module.rpartition(".")[2] != "model" or name != "Task":
        way_out = "define the class as Task in the model.py of a package, such as pipelines/flights/"
        raise ConfigError([f"{module}.{name} was given; {way_out}"], "the task to train")


def _run_directory(dataset: Dataset, config: Config) -> tuple[RunDirectory, Checkpoint | None]:
    """Return the run's directory and the checkpoint to start from: of the run to resume, or new."""
    # Without secrets: the file stays, and what differs from it on a resume is told.
    spec = {"dataset": dataset.fingerprint, **masked(config.model_dump(mode="json"))}
    if config.resume:
        run = _run_to_resume(config.storage.root, config.pipeline, config.resume)
        if run is not None:
            _compare(run, read_json(run.spec_file), spec)
            saved = newest_valid(run.checkpoints_in(config.storage.checkpoints))
            where = f"step {saved.step}" if saved else "the start: it has no checkpoint yet"
            logger.info("resuming %s from %s", run.path, where)
            return run, saved
        logger.info("no unfinished run of %s to resume: starting a new one", config.pipeline)
    run = RunDirectory.create(config.storage.root, config.pipeline)
    commit_json(run.spec_file, spec)
    return run, None


def _run_to_resume(root: Path, pipeline: str, wanted: bool | str) -> RunDirectory | None:
    """The run of the name that was given, or the newest one that was not finished.

    Raises:
        RunUnknown: no run has this name.
        ConfigError: it is of another pipeline, or has come to its end.
    """
    if isinstance(wanted, bool):
        return RunDirectory.newest_unfinished(root, pipeline)
    run = RunDirectory.named(root, wanted)
    if not run.spec_file.is_file() or read_json(run.spec_file).get("pipeline") != pipeline:
        way_out = f"name one of {pipeline}, or give that pipeline's configuration"
        raise ConfigError([f"resume: {run.name} is no run of {pipeline}; {way_out}"])
    if run.is_finished:
        raise ConfigError([f"resume: {run.name} has finished; leave resume empty to train anew"])
    return run


def _compare(run: RunDirectory, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse a resume that changes the run's meaning; mention every other difference."""
    old, new = flatten(before), flatten(now)
    different = {
        key: (old.get(key), new.get(key))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    }
    different.pop("resume", None)
    breaking = {key: pair for key, pair in different.items() if key.startswith(_FIXED_ON_RESUME)}
    if breaking:
        raise ResumeRefused(str(run.path), breaking)
    for key, (was, is_now) in different.items():
        logger.warning("resuming with another %s: was %r, now %r", key, was, is_now)


@contextmanager
def _ending(
    run: RunDirectory,
    tracker: Tracker | LateTracker | Untracked,
    attempts: Attempts | Alone,
    facts: Mapping[str, Any],
) -> Iterator[None]:
    """However the run fails, leave its result and its status behind."""
    try:
        yield
    except BaseException as error:
        killed = isinstance(error, KeyboardInterrupt | SystemExit)
        status = "killed" if killed else "failed"
        text = str(error) or type(error).__name__
        result = TrainResult(
            status=status,
            run_id=tracker.run_id,
            error=text,
            world_size=attempts.ranks,
            attempts=attempts.number,
            **facts,
        ).to_dict()
        run.write_result(result)
        if isinstance(error, SparktrainError | KeyboardInterrupt):
            error.result = result  # type: ignore[union-attr]  # for the command, which tells where the run lies
        is_there = tracker.finish("KILLED" if killed else "FAILED")
        write_and_log_report(run, tracker if is_there else None)
        raise
