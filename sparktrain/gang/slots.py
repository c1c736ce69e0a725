"""Slots: how many Spark tasks can run at once, and how long to wait for executors that are on their way."""

from __future__ import annotations

import logging
import re
import time
from fractions import Fraction

from pyspark.resource import ResourceProfile, ResourceProfileBuilder, TaskResourceRequests
from pyspark.sql import SparkSession

from sparktrain.errors import NotEnoughSlots

logger = logging.getLogger(__name__)

_FIRST_EXECUTOR_SECONDS = 20.0  # on a busy machine they took 8 to register
_ON_THEIR_WAY_SECONDS = 120.0  # a container may have to be found, and its image pulled


def check_slots(
    spark: SparkSession,
    ranks: int,
    profile: ResourceProfile | None = None,
    *,
    quiet_seconds: float = 3.0,
) -> None:
    """Refuse what Spark would wait for in silence: more ranks than slots.

    What was asked for can be too little, which needs no waiting. Else executors may still be on their way: as
    many as are missing of a number that was asked for, otherwise as long as new ones keep coming.

    Args:
        ranks: how many slots are needed at once.
        profile: what each rank takes; Spark's default, `spark.task.cpus`, if None.
        quiet_seconds: how long no new slot may come, where nobody knows how many will. More is wise when an
            executor was just lost and is being replaced.

    Raises:
        NotEnoughSlots: at once, or after `quiet_seconds` without a new slot.
    """
    most = most_slots(spark, profile)
    if most is not None and most < ranks:
        raise NotEnoughSlots(ranks, most)
    started = newest = time.monotonic()
    before = 0
    while (slots := num_slots(spark, profile)) is not None and slots < ranks:
        now = time.monotonic()
        if slots != before:
            before, newest = slots, now
        if most is not None and not _is_standalone(spark):  # so many were asked for, and will come
            patience = _ON_THEIR_WAY_SECONDS - (now - started)
        else:
            patience = (quiet_seconds if slots else _FIRST_EXECUTOR_SECONDS) - (now - newest)
        if patience < 0 or is_local(spark):
            raise NotEnoughSlots(ranks, slots)
        time.sleep(0.1)


def num_slots(spark: SparkSession, profile: ResourceProfile | None = None) -> int | None:
    """Tasks that can run at once on all executors there are; None over Spark Connect, which does not tell."""
    context = getattr(spark, "_sc", None)
    if context is None:
        return None
    scala = context._jsc.sc()
    wanted = scala.resourceProfileManager().defaultResourceProfile()
    if profile is not None:
        wanted = profile._java_resource_profile
        scala.resourceProfileManager().addResourceProfile(wanted)  # it may be the profile's first use
    return int(scala.maxNumConcurrentTasks(wanted))


def most_slots(spark: SparkSession, profile: ResourceProfile | None = None) -> int | None:
    """Slots that there will be when all executors have come that were asked for; None if nobody knows."""
    master = setting(spark, "spark.master")
    cores_per_task = cores_of_task(spark, profile)
    if match := re.fullmatch(r"local(?:\[(\d+)(?:,\d+)?\])?", master):
        return int(match[1] or 1) // cores_per_task
    if match := re.fullmatch(r"local-cluster\[\s*(\d+)\s*,\s*(\d+)\s*,\s*\d+\s*\]", master):
        return int(match[1]) * (int(match[2]) // cores_per_task)
    if setting(spark, "spark.dynamicAllocation.enabled", "false") == "true":
        return None
    if master.startswith(("yarn", "k8s")):
        executors = int(setting(spark, "spark.executor.instances", "2"))
        return executors * (int(setting(spark, "spark.executor.cores", "1")) // cores_per_task)
    if _is_standalone(spark) and (cores := setting(spark, "spark.cores.max")):
        return int(cores) // cores_per_task  # it gives what it has, but no more than this
    return None


def profile_of_rank(spark: SparkSession, cpus: int, gpus: int) -> ResourceProfile | None:
    """What each rank takes of its executor, for the gang's stage alone; None where Spark's settings hold.

    Those hold in local mode, which knows no such profiles, before Spark 4, whose DataFrames take none, and
    wherever they say the same.
    """
    same = cpus == cores_of_task(spark)
    same = same and gpus == float(setting(spark, "spark.task.resource.gpu.amount", "0"))
    if same or is_local(spark) or int(spark.version.partition(".")[0]) < 4:
        return None
    wanted = TaskResourceRequests().cpus(cpus)
    if gpus:
        wanted = wanted.resource("gpu", gpus)
    profile: ResourceProfile = ResourceProfileBuilder().require(wanted).build
    return profile


def cores_of_task(spark: SparkSession, profile: ResourceProfile | None = None) -> Fraction:
    """What a task takes of its executor's cores, which may be a part of one; exact, as 1 // 0.1 is 9."""
    if profile is not None and (request := profile.taskResources.get("cpus")) is not None:
        return Fraction(str(request.amount))
    return Fraction(setting(spark, "spark.task.cpus", "1"))


def is_local(spark: SparkSession) -> bool:
    """Whether the driver is the only executor, so that no other can come."""
    return re.match(r"local(\[|$)", setting(spark, "spark.master")) is not None


def _is_standalone(spark: SparkSession) -> bool:
    return setting(spark, "spark.master").startswith("spark:")


def setting(spark: SparkSession, name: str, default: str = "") -> str:
    """A property of Spark's, the cluster's own included; over Spark Connect those that the server tells."""
    return spark.conf.get(name, default) or default
