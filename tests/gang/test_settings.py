"""What Spark's settings would do to a gang; property files that do nothing of it."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from sparktrain.config import TrainConfig
from sparktrain.errors import ConfigError, NotEnoughSlots
from sparktrain.gang.settings import check_before_launch, check_settings, harmful_settings
from sparktrain.gang.slots import check_slots, most_slots, profile_of_rank

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "conf" / "spark").glob("*.conf"))
CLUSTER = {"spark.master": "spark://host:7077"}


def session(settings: Mapping[str, str]) -> SparkSession:
    """What the rules ask of a session: its settings, and which Spark it is."""
    return cast("SparkSession", SimpleNamespace(conf=dict(settings), version="3.5.9"))


def harms(settings: Mapping[str, str], **train: Any) -> dict[str, str]:
    found = harmful_settings(session(CLUSTER | settings), TrainConfig(**train))
    return {harm.setting: harm.level for harm in found}


def test_a_plain_cluster_does_no_harm() -> None:
    assert harms({}) == {}


@pytest.mark.parametrize(
    ("settings", "setting", "level"),
    [
        ({"spark.dynamicAllocation.enabled": "true"}, "spark.dynamicAllocation.enabled", "error"),
        (
            {"spark.python.worker.killOnIdleTimeout": "true", "spark.python.worker.idleTimeoutSeconds": "60"},
            "spark.python.worker.killOnIdleTimeout",
            "error",
        ),
        (
            {
                "spark.sql.execution.pyspark.udf.killOnIdleTimeout": "true",
                "spark.sql.execution.pyspark.udf.idleTimeoutSeconds": "60s",
            },
            "spark.sql.execution.pyspark.udf.killOnIdleTimeout",
            "error",
        ),
        ({"spark.executor.pyspark.memory": "2g"}, "spark.executor.pyspark.memory", "warning"),
        (
            {"spark.task.reaper.enabled": "true", "spark.task.reaper.killTimeout": "2s"},
            "spark.task.reaper.killTimeout",
            "warning",
        ),
        ({"spark.python.worker.reuse": "false"}, "spark.python.worker.reuse", "warning"),
        ({"spark.excludeOnFailure.enabled": "true"}, "spark.excludeOnFailure.enabled", "warning"),
        ({"spark.network.crypto.enabled": "true"}, "spark.network.crypto.enabled", "error"),
        ({"spark.ssl.rpc.enabled": "true"}, "spark.ssl.rpc.enabled", "error"),
        ({"spark.io.encryption.enabled": "true"}, "spark.io.encryption.enabled", "warning"),
    ],
)
def test_a_harmful_setting_is_found_with_its_way_out(
    settings: dict[str, str], setting: str, level: str
) -> None:
    assert harms(settings) == {setting: level}
    [harm] = harmful_settings(session(CLUSTER | settings), TrainConfig())
    assert harm.found and harm.way_out


@pytest.mark.parametrize(
    "settings",
    [
        {"spark.python.worker.killOnIdleTimeout": "true"},  # never idle, for there is no timeout
        {"spark.python.worker.idleTimeoutSeconds": "60"},  # which is only logged
        {"spark.task.reaper.enabled": "true"},  # without a timeout it only watches
        {"spark.speculation": "true"},  # not of barrier stages
    ],
)
def test_what_only_looks_harmful_is_not_mentioned(settings: dict[str, str]) -> None:
    assert harms(settings) == {}


def test_one_process_on_one_host_has_no_network() -> None:
    settings = {"spark.network.crypto.enabled": "true", "spark.dynamicAllocation.enabled": "true"}
    assert harms(settings | {"spark.master": "local[4]"}) == {}


def test_plaintext_can_be_allowed_and_one_rank_sends_nothing() -> None:
    encrypted = {"spark.network.crypto.enabled": "true"}
    assert harms(encrypted, allow_plaintext_collectives=True) == {}
    assert harms(encrypted, ranks=1) == {}
    with pytest.raises(ConfigError, match=r"train\.allow_plaintext_collectives=true"):
        check_settings(session(CLUSTER | encrypted), TrainConfig())


def test_every_error_is_told_at_once() -> None:
    settings = {"spark.network.crypto.enabled": "true", "spark.dynamicAllocation.enabled": "true"}
    with pytest.raises(ConfigError, match="2 errors in Spark's settings") as refused:
        check_settings(session(CLUSTER | settings), TrainConfig())
    assert len(refused.value.problems) == 2


def test_gpus_need_executors_that_have_them() -> None:
    amount = {"spark.executor.resource.gpu.amount": "2"}
    assert harms({}, gpus_per_rank=1) == {"spark.executor.resource.gpu.amount": "error"}
    assert harms(amount, gpus_per_rank=1) == {}
    half = {"spark.task.resource.gpu.amount": "0.5"}
    assert harms(amount | half, gpus_per_rank=1) == {"spark.task.resource.gpu.amount": "error"}


def test_more_threads_than_reserved_cores_are_mentioned_where_spark_can_not_be_told() -> None:
    assert harms({}, cpus_per_rank=4) == {"spark.task.cpus": "warning"}
    assert harms({"spark.task.cpus": "4"}, cpus_per_rank=4) == {}
    assert harms({"spark.task.cpus": "0.5"}, cpus_per_rank=4) == {"spark.task.cpus": "warning"}


@pytest.mark.parametrize(
    ("settings", "slots"),
    [
        ({"spark.master": "local"}, 1),
        ({"spark.master": "local[3]"}, 3),
        ({"spark.master": "local[3,2]"}, 3),
        ({"spark.master": "local[*]"}, None),
        ({"spark.master": "local-cluster[2,4,1024]", "spark.task.cpus": "3"}, 2),
        ({"spark.master": "yarn"}, 2),
        ({"spark.master": "yarn", "spark.executor.instances": "4", "spark.executor.cores": "5"}, 20),
        ({"spark.master": "yarn", "spark.dynamicAllocation.enabled": "true"}, None),
        ({"spark.master": "k8s://h", "spark.executor.instances": "3", "spark.task.cpus": "2"}, 0),
        ({"spark.master": "local[2]", "spark.task.cpus": "0.1"}, 20),
        ({"spark.master": "yarn", "spark.executor.cores": "2", "spark.task.cpus": "1.5"}, 2),
        ({"spark.master": "spark://h:1"}, None),
        ({"spark.master": "spark://h:1", "spark.cores.max": "7", "spark.task.cpus": "2"}, 3),
    ],
)
def test_how_many_slots_there_will_be_is_known_from_what_was_asked_for(
    settings: dict[str, str], slots: int | None
) -> None:
    assert most_slots(session(settings)) == slots


def test_too_little_asked_for_is_refused_before_any_executor_has_come() -> None:
    started = time.monotonic()
    with pytest.raises(NotEnoughSlots, match="needs 4 slots, the cluster has 3"):
        check_slots(session({"spark.master": "yarn", "spark.executor.instances": "3"}), 4)
    assert time.monotonic() - started < 0.5


@pytest.mark.spark
def test_a_real_session_is_looked_at_in_milliseconds(spark: SparkSession) -> None:
    check_before_launch(spark, TrainConfig(ranks=2))
    started = time.monotonic()
    check_before_launch(spark, TrainConfig(ranks=2))
    assert time.monotonic() - started < 1
    assert profile_of_rank(spark, 4, 0) is None, "a local master knows no profiles"
    name = "spark.sql.execution.pyspark.udf.killOnIdleTimeout"
    if spark.version >= "4.1":  # the first that has it
        spark.conf.set(name, "true")
        spark.conf.set("spark.sql.execution.pyspark.udf.idleTimeoutSeconds", "5")
        try:
            with pytest.raises(ConfigError, match="killOnIdleTimeout"):
                check_before_launch(spark, TrainConfig(ranks=2))
        finally:
            spark.conf.unset(name)
            spark.conf.unset("spark.sql.execution.pyspark.udf.idleTimeoutSeconds")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_property_file_is_well_formed_and_harmless(file: Path) -> None:
    lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
    pairs = [line.split(maxsplit=1) for line in lines]
    assert all(len(pair) == 2 and re.fullmatch(r"spark\.[\w.]+", pair[0]) for pair in pairs)
    settings = dict(pairs)
    assert len(settings) == len(pairs), "a property is set twice"
    assert harms(settings) == {}
    commented = re.findall(r"^# (spark\.\S+) +(\S+)$", file.read_text(), re.MULTILINE)
    assert harms(settings | dict(commented), gpus_per_rank=int(bool(commented))) in (
        {},
        {"spark.executor.resource.gpu.amount": "error"},  # Databricks sets it by itself
    )


def test_every_place_has_its_property_file() -> None:
    places = {"databricks", "kubernetes", "local", "standalone", "standalone-gpu", "yarn"}
    assert {file.stem for file in FILES} == places
