"""The Spark session of our commands: settings that make gangs safe, logs in a file, a word about Java."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyspark import SparkContext
from pyspark.sql import SparkSession

from sparktrain.config import Config
from sparktrain.errors import JavaMissing, SparkFailed
from sparktrain.gang.launch import find_session
from sparktrain.gang.shipping import ship_package
from sparktrain.storage import writable_directory

OLDEST_JAVA = 17

_LOG4J = """\
rootLogger.level = warn
rootLogger.appenderRef.file.ref = file
appender.file.type = File
appender.file.name = file
appender.file.fileName = {file}
appender.file.append = true
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = %d{{yyyy-MM-dd HH:mm:ss}} %p %c{{1}}: %m%n%ex
"""


def find_java() -> int:
    """Return the major version of the Java that Spark will use.

    Raises:
        JavaMissing: none, or older than 17.
    """
    home = os.environ.get("JAVA_HOME")
    program = str(Path(home) / "bin" / "java") if home else "java"
    where = f"in JAVA_HOME={home}" if home else "on PATH"
    try:
        # `java -version` writes to stderr, by tradition.
        text = subprocess.run(
            [program, "-version"], capture_output=True, text=True, timeout=30, check=False
        ).stderr
    except (OSError, subprocess.TimeoutExpired):
        raise JavaMissing(f"no Java {where}") from None
    match = re.search(r'version "(?:1\.)?(\d+)', text)
    if not match:
        raise JavaMissing(f"something {where} that does not tell its version")
    if int(match[1]) < OLDEST_JAVA:
        raise JavaMissing(f"Java {match[1]} {where}")
    return int(match[1])


@contextmanager
def spark_session(config: Config, *, with_pipelines: bool = True) -> Iterator[SparkSession]:
    """Start Spark as `start_spark` does, and stop it at the end, unless it was there before."""
    # A platform's own session, which serves the job's next task as well, may not be active in this thread.
    is_ours = find_session() is None and "DATABRICKS_RUNTIME_VERSION" not in os.environ
    spark = start_spark(config, with_pipelines=with_pipelines)
    try:
        yield spark
    finally:
        if is_ours:
            spark.stop()


def start_spark(config: Config, *, with_pipelines: bool = True) -> SparkSession:
    """Start Spark as `config` says, with the pipelines sent to the executors, if wanted.

    Where there is a session already (spark-submit, a managed notebook) that one is used, settings and all.

    Raises:
        JavaMissing: before anything is started.
        StorageUnwritable: before anything is started.
        SparkFailed: Spark did not start.
    """
    root = writable_directory(config.storage.root)
    log = writable_directory(root / "logs") / "spark.log"
    submitted = "PYSPARK_GATEWAY_PORT" in os.environ
    spark = find_session()
    if spark is None:
        spark = _start(config, None if submitted else log)
    if submitted and isinstance(spark, SparkSession):  # only a classic one can be told how much to log
        # What goes wrong in a rank or a Spark task is told by our own errors, the whole stack is in a file.
        spark.sparkContext.setLogLevel("FATAL")
    if with_pipelines:
        ship_package(spark, "pipelines")
    return spark


def is_connect(config: Config) -> bool:
    """Whether Spark is reached by Spark Connect: a server has the Java, and the settings."""
    return config.spark.master.startswith("sc://")


def _start(config: Config, log: Path | None) -> SparkSession:
    """Start a session; without `log` spark-submit has made all settings already."""
    builder = SparkSession.builder.appName(config.spark.app_name)
    if is_connect(config):
        builder = builder.remote(config.spark.master).config("spark.sql.session.timeZone", "UTC")
        for name, value in config.spark.conf.items():
            if name.startswith("spark.sql."):  # the server runs already, with all others
                builder = builder.config(name, value)
    elif log is not None:
        find_java()
        # Without it Spark's workers take the first `python3` on the PATH, not this environment's.
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        for name, value in {**_settings(config, log), **config.spark.conf}.items():
            builder = builder.config(name, value)
    try:
        return builder.getOrCreate()
    except KeyboardInterrupt:
        # A JVM that is told to end while it builds its context waits for itself, for ever.
        if (gateway := SparkContext._gateway) is not None:
            gateway.proc.kill()
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        path = str(log) if log is not None and log.exists() else None
        raise SparkFailed("Spark did not start", lines[0], path) from None


def _settings(config: Config, log: Path) -> dict[str, str]:
    settings = log.with_name("log4j2.properties")
    settings.write_text(_LOG4J.format(file=log), encoding="utf-8")
    ours = {
        "spark.master": config.spark.master,
        "spark.ui.showConsoleProgress": "false",
        "spark.ui.enabled": "false",
        "spark.sql.session.timeZone": "UTC",  # what a timestamp means must not depend on the machine
        "spark.sql.warehouse.dir": str(log.parent.parent / "spark-warehouse"),
        # As a URI: a space in the path would end the option.
        "spark.driver.extraJavaOptions": f"-Dlog4j2.configurationFile={settings.as_uri()}",
    }
    if config.spark.master.startswith("local"):
        ours |= {"spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}
        ours["spark.python.daemon.module"] = "sparktrain.gang.daemon"  # its executors have what we have
    return ours
