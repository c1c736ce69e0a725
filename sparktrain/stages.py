"""The stages of a configuration, as both the terminal and the jobs call them."""

from __future__ import annotations

import importlib
import inspect
import logging
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from sparktrain.config import Config
from sparktrain.dataset import Dataset, open_dataset
from sparktrain.errors import (
    EXIT_CONFIG,
    EXIT_DATA,
    ConfigError,
    DataError,
    DatasetInvalid,
    ModelNotFound,
    OutputExists,
    PipelineFailed,
    SparkFailed,
    SparktrainError,
)
from sparktrain.features import SCORE_ERROR
from sparktrain.gang.blame import user_lines
from sparktrain.gang.settings import check_settings
from sparktrain.gang.slots import check_slots, is_local
from sparktrain.gang.supervise import TrainResult, check_metric, check_training, describe_dataset, train
from sparktrain.preparation import append, prepare
from sparktrain.runs.connection import check_tracking, resolve_tracking_uri, sqlite_file
from sparktrain.runs.directory import RunDirectory
from sparktrain.runs.package import IMPORTING
from sparktrain.storage import read_json
from sparktrain.training.task import TrainTask

logger = logging.getLogger(__name__)

_DEFINES = {"data": ("read", "FEATURES", "TARGET", "RULES", "KEY"), "model": ("Task",)}

OnEvent = Callable[[Mapping[str, Any]], None]


def check_before_spark(config: Config, stages: Collection[str]) -> None:
    """Refuse now what would otherwise fail after minutes, in the last of the stages that are to come.

    Args:
        stages: of "prepare", "append", "train" and "score".

    Raises:
        SparktrainError: of the class that the stage itself would raise.
    """
    data = load(config, "data")
    if "prepare" in stages or "append" in stages:
        _check_source(config, data, config.prepare.source)
    if "append" in stages:
        newest_dataset(config)
    if "train" in stages:
        task = create_task(config)
        check_metric(task, config)
        if "prepare" not in stages:
            check_training(newest_dataset(config), task, config)
        if config.tracking.required and not config.tracking.is_none:
            check_tracking(resolve_tracking_uri(config.tracking, config.storage.root))
    if "score" in stages:
        _check_source(config, data, config.score.source or config.prepare.source)
        output_path(config)
        if "train" not in stages:
            check_model(config)


def check_before_work(config: Config, stages: Collection[str], spark: SparkSession) -> None:
    """Refuse before the data is prepared what would stop the training: settings, and too few slots.

    Slots only where their number is known for sure; elsewhere executors may still be on their way, and the
    gang counts again.
    """
    if "train" in stages:
        check_settings(spark, config.train)
        if is_local(spark):
            check_slots(spark, config.train.ranks)


def prepare_stage(config: Config, spark: SparkSession) -> Dataset:
    """Read the pipeline's source and make a dataset of it."""
    data = load(config, "data")
    with spark_errors("Preparing the data failed", config):
        return prepare(
            _read(config, data, spark, config.prepare.source),
            data.FEATURES,
            data.TARGET,
            config.prepare,
            name=config.pipeline,
            root=config.storage.root,
            rules=data.RULES,
            key=data.KEY,
            weight=getattr(data, "WEIGHT", None),
        )


def append_stage(config: Config, spark: SparkSession) -> Dataset:
    """Read the pipeline's source and add its rows to the newest dataset, as a new version."""
    data = load(config, "data")
    dataset = newest_dataset(config)
    with spark_errors("Appending the data failed", config):
        rows = _read(config, data, spark, config.prepare.source)
        return append(dataset, rows, rules=data.RULES)


def newest_dataset(config: Config) -> Dataset:
    """The dataset that was prepared last for this pipeline; of a run that is resumed by name, its own."""
    home = config.storage.root / "datasets" / config.pipeline
    if isinstance(config.resume, str):
        run = RunDirectory.named(config.storage.root, config.resume)
        if run.spec_file.is_file():
            fingerprint = str(read_json(run.spec_file)["dataset"])
            home /= fingerprint
            if not home.exists():
                problem = f"the dataset {fingerprint} that {run.name} trained on is gone"
                raise DatasetInvalid(str(home), problem, "bring it back, or train anew with resume=false")
    if not home.exists():
        raise DatasetInvalid(
            str(home), "nothing was prepared yet", "run `sparktrain prepare` with this configuration first"
        )
    return open_dataset(home)


def check_model(config: Config) -> None:
    """Refuse to score with a model that nobody has trained yet; asks a server, but makes no new database.

    Raises:
        ModelNotFound: with the models that there are.
        TrackingUnavailable: the server does not answer.
    """
    from sparktrain.scoring.lookup import find_model

    uri = resolve_tracking_uri(config.tracking, config.storage.root)
    file = sqlite_file(uri)
    if file is not None and not file.is_file():
        raise ModelNotFound(config.model_uri, uri, {})  # before the first training there is no database
    find_model(config.model_uri, uri)


def train_stage(
    config: Config,
    spark: SparkSession | None,
    dataset: Dataset,
    on_event: OnEvent | None = None,
    on_output: Callable[[str], object] | None = None,
) -> TrainResult:
    """Train the pipeline's Task on a dataset."""
    return train(dataset, create_task(config), config, spark=spark, on_event=on_event, on_output=on_output)


def score_stage(config: Config, spark: SparkSession) -> dict[str, Any]:
    """Score the pipeline's raw rows with the registered model; write Parquet.

    Returns:
        {"output": path, "rows": number, "rows_refused": of these, number without a score,
        "model_uri": the model, "seconds": duration}
    """
    from sparktrain.scoring import score

    started = time.monotonic()
    output = output_path(config)
    with spark_errors("Scoring failed", config):
        raw = _read(config, load(config, "data"), spark, config.score.source or config.prepare.source)
        uri = resolve_tracking_uri(config.tracking, config.storage.root)
        scored = score(raw, config.model_uri, tracking_uri=uri)
        scored.write.parquet(str(output))
        counts = F.count(F.lit(1)).alias("rows"), F.count(SCORE_ERROR).alias("refused")
        written = spark.read.parquet(str(output)).agg(*counts).head()
    assert written is not None
    return {
        "output": str(output),
        "rows": written["rows"],
        "rows_refused": written["refused"],
        "model_uri": config.model_uri,
        "seconds": time.monotonic() - started,
    }


def output_path(config: Config) -> Path:
    """Where the scores go; never over what is there already.

    Raises:
        OutputExists: `score.output` is taken.
    """
    if config.score.output is None:
        started = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
        return (config.storage.root / "scores" / f"{config.pipeline}-{started}").resolve()
    if config.score.output.exists():
        raise OutputExists(str(config.score.output))
    return config.score.output.resolve()


def create_task(config: Config) -> TrainTask:
    """Make the pipeline's Task with the arguments under `train.model`.

    Raises:
        ConfigError: unknown arguments, with those there are.
        PipelineFailed: model.py or the Task refuses in its own words.
    """
    task = getattr(load(config, "model"), "Task", None)
    if not (isinstance(task, type) and issubclass(task, TrainTask)):
        raise ConfigError(
            [f"pipeline: pipelines/{config.pipeline}/model.py must define Task, a subclass of TrainTask"]
        )
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in config.train.model.items()}
    known = ", ".join(inspect.signature(task).parameters) or "none"
    try:
        inspect.signature(task).bind(**arguments)
    except TypeError as error:
        raise ConfigError([f"train.model: {error}; the Task of {config.pipeline} takes: {known}"]) from error
    with pipeline_errors(f"Task of pipelines/{config.pipeline}/model.py", EXIT_CONFIG):
        return task(**arguments)


def _read(config: Config, data: ModuleType, spark: SparkSession, source: Mapping[str, Any]) -> DataFrame:
    _check_source(config, data, source)
    workspace = config.storage.root.resolve() / "source"
    with pipeline_errors(f"read() of pipelines/{config.pipeline}/data.py", EXIT_DATA):
        frame = data.read(spark, workspace, **source)
    if not isinstance(frame, DataFrame):
        where, given = f"pipelines/{config.pipeline}/data.py", type(frame).__name__
        raise ConfigError([f"read() gave {given}; it must return a Spark DataFrame"], where)
    return frame


def _check_source(config: Config, data: ModuleType, source: Mapping[str, Any]) -> None:
    signature = inspect.signature(data.read)
    try:
        signature.bind(None, None, **source)
    except TypeError as error:
        known = ", ".join(list(signature.parameters)[2:]) or "none"
        raise ConfigError(
            [f"prepare.source: {error}; read() in pipelines/{config.pipeline}/data.py takes: {known}"]
        ) from error


def load(config: Config, part: str) -> ModuleType:
    """Import `data` or `model` of the configured pipeline.

    Raises:
        PipelineFailed: the module can't be imported.
        ConfigError: it does not define what such a module defines.
    """
    with pipeline_errors(f"Importing pipelines/{config.pipeline}/{part}.py", EXIT_CONFIG), IMPORTING:
        module = importlib.import_module(f"pipelines.{config.pipeline}.{part}")
    if missing := [name for name in _DEFINES[part] if not hasattr(module, name)]:
        file = f"pipelines/{config.pipeline}/{part}.py"
        raise ConfigError(
            [f"{file} lacks {', '.join(missing)}; it defines {', '.join(_DEFINES[part])}"], file
        )
    return module


@contextmanager
def pipeline_errors(what: str, exit_code: int) -> Iterator[None]:
    """Tell what the pipeline's own code raises, with its own lines; our errors and Spark's pass through."""
    try:
        yield
    except SparktrainError:
        raise
    except Exception as error:
        if _is_sparks(error):
            raise
        raise PipelineFailed(what, error, user_lines(error), exit_code) from error


def _is_sparks(error: Exception) -> bool:
    # py4j's own exception is no subclass of PySpark's
    return isinstance(error, PySparkException) or type(error).__name__ == "Py4JJavaError"


@contextmanager
def spark_errors(what: str, config: Config) -> Iterator[None]:
    """Turn Spark's errors into ours: the line that matters on the screen, the whole stack in a file."""
    try:
        yield
    except Exception as error:
        if not _is_sparks(error):
            raise
        text = str(error)
        log = config.storage.root.resolve() / "logs" / f"spark-error-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(text, encoding="utf-8")
        # An error that we raised in a Spark task arrives as the last line of a Python traceback within the
        # JVM's.
        if own := re.search(r"^sparktrain\.errors\.(\w*): (.+)$", text, re.MULTILINE):
            raise DataError(f"{own[2]}\nThe whole stack is in {log}") from None
        raise SparkFailed(what, _telling_line(text), str(log), exit_code=DataError.exit_code) from None


def _telling_line(text: str) -> str:
    """The line of a Spark error that says most."""
    if python := re.findall(r"^(\w[\w.]*(?:Error|Exception): .+)$", text, re.MULTILINE):
        return str(python[-1] if "Traceback" in text else python[0])[:500]
    return next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")[:500]


def write_result(run_dir: str, result: Mapping[str, Any]) -> None:
    """Replace a run's result.json by one that knows about the stages around the training, too."""
    RunDirectory(Path(run_dir)).write_result(result)


def dataset_result(dataset: Dataset) -> dict[str, Any]:
    """What `prepare` answers; the same keys as in a run's result."""
    manifest = dataset.manifest
    return {
        "status": "finished",
        "dataset": {
            **describe_dataset(dataset),
            "rows_in": manifest.rows_in,
            "rows_kept": manifest.rows_kept,
        },
    }
