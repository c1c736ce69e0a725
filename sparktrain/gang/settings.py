"""Settings of Spark that would kill or hurt a gang, known without starting anything on the cluster."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Literal, NamedTuple

from pyspark.sql import SparkSession

from sparktrain.config import TrainConfig
from sparktrain.errors import ConfigError
from sparktrain.gang.slots import check_slots, cores_of_task, is_local, profile_of_rank, setting

logger = logging.getLogger(__name__)

# The reaper's patience, below which it kills executors whose ranks only need a moment to end.
_REAPER_SECONDS = 30
_ENCRYPTION = (
    "spark.network.crypto.enabled",
    "spark.authenticate.enableSaslEncryption",
    "spark.ssl.enabled",
    "spark.ssl.rpc.enabled",
)


class Harm(NamedTuple):
    """A setting, what it does to a gang, and what to do about it."""

    level: Literal["warning", "error"]
    setting: str
    found: str
    way_out: str


def check_before_launch(spark: SparkSession, train: TrainConfig) -> None:
    """Refuse a training that Spark's settings or its size would not let run; warn of what would hurt it.

    No Spark job is started: milliseconds, if all executors are there.

    Raises:
        ConfigError: with every setting that forbids it.
        NotEnoughSlots: fewer slots than ranks.
    """
    check_settings(spark, train)
    check_slots(spark, train.ranks, profile_of_rank(spark, train.cpus_per_rank, train.gpus_per_rank))


def check_settings(spark: SparkSession, train: TrainConfig) -> None:
    """The part of `check_before_launch` that waits for nobody."""
    harms = list(harmful_settings(spark, train))
    for harm in harms:
        if harm.level == "warning":
            logger.warning("%s: %s; %s", harm.setting, harm.found, harm.way_out)
    if errors := [f"{h.setting}: {h.found}; {h.way_out}" for h in harms if h.level == "error"]:
        raise ConfigError(errors, "Spark's settings")


def harmful_settings(spark: SparkSession, train: TrainConfig) -> Iterator[Harm]:
    """Every setting that would kill or hurt a gang of `train.ranks`, with its way out."""
    yield from _killers(spark)
    yield from _slow_ones(spark, train)
    if not is_local(spark):  # one process on one host, whatever is set
        yield from _scheduling(spark)
        yield from _gpus(spark, train)
        yield from _plaintext(spark, train)


def _killers(spark: SparkSession) -> Iterator[Harm]:
    # The names for DataFrames; where they are not set, those of `spark.python.worker.…` show through.
    for prefix in ("spark.sql.execution.pyspark.udf.", "spark.python.worker."):
        seconds = setting(spark, f"{prefix}idleTimeoutSeconds", "0")
        if _is_on(spark, f"{prefix}killOnIdleTimeout") and _seconds(seconds) > 0:
            name = f"{prefix}killOnIdleTimeout"
            found = (
                f"on; it kills a rank that says nothing to Spark for {seconds}, which is all of a training"
            )
            yield Harm("error", name, found, f"set {name}=false")
            break
    if limit := setting(spark, "spark.executor.pyspark.memory"):
        found = (
            f"{limit} for all Python workers of an executor, as a limit on address space, which torch and "
        )
        found += "CUDA reserve far more of than they use: ranks may end with MemoryError"
        way_out = "unset it, and give the room as spark.executor.memoryOverhead"
        yield Harm("warning", "spark.executor.pyspark.memory", found, way_out)
    if not is_local(spark) and _is_on(spark, "spark.task.reaper.enabled"):
        patience = setting(spark, "spark.task.reaper.killTimeout", "-1")
        if 0 <= _seconds(patience) < _REAPER_SECONDS:
            found = f"{patience}; an executor is killed, with all its ranks, when one takes longer to end"
            way_out = f"set spark.task.reaper.killTimeout={_REAPER_SECONDS}s or more"
            yield Harm("warning", "spark.task.reaper.killTimeout", found, way_out)


def _slow_ones(spark: SparkSession, train: TrainConfig) -> Iterator[Harm]:
    for name in ("spark.python.worker.reuse", "spark.python.use.daemon"):
        if not _is_on(spark, name, "true"):
            found = "off; every gang waits for new Python processes, which takes seconds"
            yield Harm("warning", name, found, f"set {name}=true")
    cores = cores_of_task(spark)
    profile = profile_of_rank(spark, train.cpus_per_rank, train.gpus_per_rank)
    if profile is None and not is_local(spark) and cores < train.cpus_per_rank:
        found = f"{float(cores):g}, and train.cpus_per_rank is {train.cpus_per_rank}: ranks share cores"
        way_out = f"set spark.task.cpus={train.cpus_per_rank} when Spark starts, or lower train.cpus_per_rank"
        yield Harm("warning", "spark.task.cpus", found, way_out)


def _scheduling(spark: SparkSession) -> Iterator[Harm]:
    if _is_on(spark, "spark.dynamicAllocation.enabled"):
        name = "spark.dynamicAllocation.enabled"
        found = "on; Spark refuses barrier stages with it"
        yield Harm("error", name, found, f"set {name}=false, and spark.executor.instances to what you need")
    for name in ("spark.excludeOnFailure.enabled", "spark.excludeOnFailure.application.enabled"):
        if _is_on(spark, name):
            found = (
                "on; after a rank's failure its executor is left out, and the next attempt lacks its slots"
            )
            yield Harm("warning", name, found, f"set {name}=false")


def _gpus(spark: SparkSession, train: TrainConfig) -> Iterator[Harm]:
    if not train.gpus_per_rank:
        return
    of_executor, of_task = "spark.executor.resource.gpu.amount", "spark.task.resource.gpu.amount"
    if not setting(spark, of_executor):
        found = f"not set, and train.gpus_per_rank is {train.gpus_per_rank}: Spark's executors have no GPU"
        way_out = (
            f"set it, spark.executor.resource.gpu.discoveryScript and {of_task}=1, or train.gpus_per_rank=0"
        )
        yield Harm("error", of_executor, found, way_out)
    elif 0 < float(setting(spark, of_task, "0")) < 1:
        found = f"{setting(spark, of_task)}; two ranks would get the same GPU, which NCCL refuses"
        yield Harm("error", of_task, found, f"set {of_task}=1")


def _plaintext(spark: SparkSession, train: TrainConfig) -> Iterator[Harm]:
    """Gradients travel unencrypted, whatever Spark does with its own traffic."""
    encrypted = [name for name in _ENCRYPTION if _is_on(spark, name)]
    if encrypted and train.ranks > 1 and not train.allow_plaintext_collectives:
        found = "on; Spark encrypts its network, and what ranks send one another (gradients, weights) is not"
        way_out = (
            "set train.allow_plaintext_collectives=true if the network between executors may carry that, "
            "such as a private subnet; else train with train.ranks=1"
        )
        yield Harm("error", encrypted[0], found, way_out)
    if _is_on(spark, "spark.io.encryption.enabled"):
        found = "on; Spark encrypts its files on disk, and datasets, checkpoints and logs are not"
        yield Harm("warning", "spark.io.encryption.enabled", found, "keep storage.root on an encrypted disk")


def _is_on(spark: SparkSession, name: str, default: str = "false") -> bool:
    return setting(spark, name, default).lower() == "true"


def _seconds(text: str) -> float:
    """Read a duration as Spark does: 10s, 2min, 1h; a bare number is in milliseconds."""
    number = text.rstrip("abcdefghijklmnopqrstuvwxyz ")
    factors = {"": 1e-3, "ms": 1e-3, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
    return float(number) * factors.get(text[len(number) :].strip(), 1)
