"""Spark sessions for tests, on this machine: in this process, on executors of their own, by Spark Connect."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sparktrain.testing.daemons import QUICK_JVM, ConnectServer, StandaloneCluster

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_QUICK = {
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.sql.shuffle.partitions": "4",
    "spark.sql.session.timeZone": "UTC",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.extraJavaOptions": QUICK_JVM,
}


@contextmanager
def spark_session(mode: str = "local[2]", **settings: str) -> Iterator[SparkSession]:
    """Start Spark on this machine with settings that suit small data, and stop it at the end.

    Args:
        mode: where the Spark tasks run:
            "local[2]": in this driver's JVM;
            "local-cluster[2,1,1024]": on 2 executors of 1 core and 1024 MiB, which the driver starts;
            "standalone[2,1,1024]": likewise, on a `StandaloneCluster` of its own;
            "spark://…": on a cluster that is there;
            "connect[2]": by Spark Connect, on a `ConnectServer` with 2 slots. A process that has had such a
            session can't have one of the others any more, nor the other way round.
        settings: further Spark properties, given as `spark_session(**{"spark.sql.ansi.enabled": "false"})`.
    """
    # Without it Spark's workers take the first `python3` on the PATH, not this environment's.
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    if match := re.fullmatch(r"connect\[(\d+)\]", mode):
        with ConnectServer(f"local[{match[1]}]", _QUICK | settings) as server, _connect(server.url) as spark:
            yield spark
    elif match := re.fullmatch(r"standalone\[(\d+),(\d+),(\d+)\]", mode):
        workers, cores, mebibytes = map(int, match.groups())
        cluster = StandaloneCluster(workers, cores, mebibytes)
        with cluster, _classic(cluster.url, cluster.settings | settings) as spark:
            yield spark
    else:
        with _classic(mode, settings) as spark:
            yield spark


@contextmanager
def _classic(master: str, settings: Mapping[str, str]) -> Iterator[SparkSession]:
    from pyspark.sql import SparkSession  # most tests need no Spark

    builder = SparkSession.builder.master(master).appName("tests")
    for name, value in {**_QUICK, **settings}.items():
        builder = builder.config(name, value)
    spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel("OFF")  # tests of failures would fill the screen with stacks
    try:
        yield spark
    finally:
        spark.stop()


@contextmanager
def _connect(url: str) -> Iterator[SparkSession]:
    from pyspark.sql import SparkSession

    spark = SparkSession.builder.remote(url).getOrCreate()
    try:
        yield spark
    finally:
        spark.stop()
