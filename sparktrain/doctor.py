"""doctor: what would make a run fail, found in seconds before one is launched, each with its way out."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib import metadata
from typing import TypedDict

import pyarrow as pa
from pyspark.sql import SparkSession

from sparktrain.config import Config
from sparktrain.errors import ConfigError, SparktrainError
from sparktrain.gang.launch import check_slots, num_slots
from sparktrain.runs.connection import check_tracking, resolve_tracking_uri, without_secrets
from sparktrain.session import find_java, spark_session
from sparktrain.storage import writable_directory

PACKAGES = ("torch", "pyarrow", "numpy", "pyspark")

_HARMFUL = {
    "spark.dynamicAllocation.enabled": "on; Spark refuses barrier stages with it",
    "spark.python.worker.killOnIdleTimeout": "on; it kills ranks while they train",
}


class Finding(TypedDict):
    """One line of the answer; `level` is "ok", "warning" or "error"."""

    level: str
    what: str
    found: str
    way_out: str


def examine(config: Config) -> list[Finding]:
    """Look at this machine, the storage, MLflow, the pipeline, and at Spark with its executors."""
    findings = [
        _ask("Java", lambda: f"Java {find_java()}"),
        _ask("storage", lambda: f"can write to {writable_directory(config.storage.root)}"),
        _ask("MLflow", partial(_tracking, config)),
        _ask("pipeline", partial(_pipeline, config)),
    ]
    if findings[2]["level"] == "error" and not config.tracking.required:
        findings[2]["level"] = "warning"
    if any(finding["level"] == "error" for finding in findings[:2]):
        return findings  # Spark can't start without either
    try:
        with spark_session(config) as spark:
            return [*findings, *_examine_spark(config, spark)]
    except SparktrainError as error:
        return [*findings, _error("Spark", error)]


def _examine_spark(config: Config, spark: SparkSession) -> Iterator[Finding]:
    yield _ask("slots", partial(_slots, config, spark))
    yield _ask("executors", partial(_executors, config, spark))
    for setting, found in _HARMFUL.items():
        if spark.conf.get(setting, "false") == "true":
            yield {"level": "error", "what": setting, "found": found, "way_out": f"set {setting}=false"}


def _ask(what: str, question: Callable[[], str]) -> Finding:
    try:
        return {"level": "ok", "what": what, "found": question(), "way_out": ""}
    except SparktrainError as error:
        return _error(what, error)


def _error(what: str, error: SparktrainError) -> Finding:
    """Our errors say what is wrong and the way out in one text; the first sentence is what was found."""
    found, _, way_out = str(error).partition(". ")
    return {"level": "error", "what": what, "found": found, "way_out": way_out}


def _tracking(config: Config) -> str:
    uri = resolve_tracking_uri(config.tracking, config.storage.root)
    check_tracking(uri)
    return without_secrets(uri)


def _pipeline(config: Config) -> str:
    from sparktrain.stages import create_task, load

    features = load(config, "data").FEATURES
    return f"{config.pipeline}: {len(features)} features, {type(create_task(config)).__name__}"


def _slots(config: Config, spark: SparkSession) -> str:
    check_slots(spark, config.train.ranks)
    slots = num_slots(spark)
    return f"{config.train.ranks} ranks, {'unknown' if slots is None else slots} slots"


def _executors(config: Config, spark: SparkSession) -> str:
    """Ask as many Spark tasks as there are ranks; all of them must have this driver's versions."""
    ranks = config.train.ranks
    answers = (
        spark.range(0, ranks, 1, ranks).mapInArrow(report_versions, "versions string").distinct().collect()
    )
    here = describe_versions()
    others = sorted({row["versions"] for row in answers} - {here})
    if others:
        raise ConfigError(
            [
                f"the driver has {here}",
                *(f"an executor has {there}" for there in others),
                "give all the same environment",
            ],
            "the executors' versions",
        )
    return here


def report_versions(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Answer with this Python worker's versions; runs on an executor."""
    for _ in batches:
        pass
    yield pa.RecordBatch.from_pydict({"versions": [describe_versions()]})


def describe_versions() -> str:
    versions = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            versions.append(f"no {package}")
    return ", ".join(versions)
