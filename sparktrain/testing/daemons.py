"""Spark's own daemons on this machine, for tests: a standalone cluster, a Spark Connect server.

They come from the pip package, listen on loopback alone, at ports that the system gives them, and leave no
process and no file behind.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

# A JVM of a test is over before its best compiler and its parallel collector pay.
QUICK_JVM = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
_MARK = "SPARKTRAIN_TEST_DAEMON"
_START_SECONDS = 120.0


class Daemons:
    """Processes that are started together and end together, with all that they have started themselves.

    A context manager; what they write lies in `directory`, which goes at the end.
    """

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="sparktrain-daemons-"))
        self._mark = uuid.uuid4().hex
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(
        self,
        name: str,
        command: Sequence[str],
        wait_for: str,
        *,
        inside: Sequence[str] = (),
        **environment: str,
    ) -> re.Match[str]:
        """Start a class of Spark's and wait until its log has `wait_for`, a regular expression.

        `inside` is a command that gets the daemon's to run, such as `unshare`.

        Raises:
            RuntimeError: it ended, or the line did not come; with the log's last lines.
        """
        log = self.directory / f"{name}.log"
        env = {k: v for k, v in os.environ.items() if k != "SPARK_REMOTE" and "CONNECT" not in k}
        env |= {
            "SPARK_HOME": str(_spark_home()),
            "SPARK_LOCAL_IP": "127.0.0.1",
            "SPARK_DAEMON_MEMORY": "256m",
        }
        env |= {"SPARK_DAEMON_JAVA_OPTS": QUICK_JVM, "SPARK_LOCAL_DIRS": str(self.directory)}
        env |= {_MARK: self._mark, **environment}
        env.setdefault("PYSPARK_PYTHON", sys.executable)
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*inside, str(_spark_home() / "bin" / command[0]), *command[1:]],
                env=env,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is the test's, which then ends us in order
            )
        self._started.append(process)
        deadline = time.monotonic() + _START_SECONDS
        while (found := re.search(wait_for, text := log.read_text(errors="replace"))) is None:
            if process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"{name} did not start; the end of its log:\n{text[-2000:]}")
            time.sleep(0.05)
        return found

    def processes(self) -> dict[int, str]:
        """Every living process of ours, executors and their Python workers included: command line by pid."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended since
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                # a zombie has no command line
                if command and f"{_MARK}={self._mark}".encode() in (folder / "environ").read_bytes():
                    found[int(folder.name)] = command
        return found

    def kill(self) -> None:
        """End all of it at once: nothing here is worth an orderly goodbye."""
        for process in self._started:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        deadline = time.monotonic() + 20
        while (left := self.processes()) and time.monotonic() < deadline:  # they may start others meanwhile
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        shutil.rmtree(self.directory, ignore_errors=True)


class StandaloneCluster(Daemons):
    """A Master and Workers, as on a cluster, with executors that are processes of the Workers.

    Attributes:
        url: "spark://127.0.0.1:…", for `spark_session`.
        settings: Spark properties that make every Worker give one executor with all its cores.

    Args:
        workers: each has room for one executor.
        cores: of each Worker.
        mebibytes: of memory for each executor.
        environments: further variables of single Workers and their executors, by number of the Worker.
    """

    def __init__(
        self,
        workers: int = 2,
        cores: int = 1,
        mebibytes: int = 1024,
        environments: Mapping[int, Mapping[str, str]] | None = None,
    ) -> None:
        super().__init__()
        self._cores, self._mebibytes, self._num_workers = cores, mebibytes, 0
        self.settings = {"spark.executor.memory": f"{mebibytes}m", "spark.executor.cores": str(cores)}
        self.settings |= {"spark.executor.extraJavaOptions": QUICK_JVM}
        here = ["--host", "127.0.0.1", "--port", "0", "--webui-port", "0"]
        master = ["spark-class", "org.apache.spark.deploy.master.Master", *here]
        self.url = self.start("master", master, r"spark://127\.0\.0\.1:[1-9]\d*")[0]
        for number in range(workers):
            self.add_worker(**(environments or {}).get(number, {}))

    def add_worker(self, inside: Sequence[str] = (), **environment: str) -> None:
        """Start one more Worker, and wait until the Master knows it; arguments as of `start`."""
        name = f"worker-{self._num_workers}"
        self._num_workers += 1
        here = ["--host", "127.0.0.1", "--port", "0", "--webui-port", "0"]
        room = ["--cores", str(self._cores), "--memory", f"{self._mebibytes}m"]
        place = ["--work-dir", str(self.directory / name), self.url]
        command = ["spark-class", "org.apache.spark.deploy.worker.Worker", *here, *room, *place]
        self.start(name, command, r"Successfully registered with master", inside=inside, **environment)

    def executors(self) -> dict[int, str]:
        """The executors' JVMs: command line by pid."""
        return {pid: line for pid, line in self.processes().items() if "CoarseGrainedExecutorBackend" in line}


class ConnectServer(Daemons):
    """A Spark Connect server, a process of its own, as Spark 4 has it in its package.

    Attributes:
        url: "sc://127.0.0.1:…", for `SparkSession.builder.remote`.
    """

    def __init__(self, master: str = "local[2]", settings: Mapping[str, str] | None = None) -> None:
        super().__init__()
        settings = {
            **(settings or {}),
            "spark.connect.grpc.binding.address": "127.0.0.1",
            "spark.connect.grpc.binding.port": "0",
        }
        given = [part for name, value in settings.items() for part in ("--conf", f"{name}={value}")]
        server = ["--class", "org.apache.spark.sql.connect.service.SparkConnectServer", "spark-internal"]
        command = ["spark-submit", "--master", master, *given, *server]
        started = r"Spark Connect server started at: \S+?:([1-9]\d*)"
        found = self.start("connect", command, started, SPARK_DAEMON_MEMORY="1g")
        self.url = f"sc://127.0.0.1:{found[1]}"


def _spark_home() -> Path:
    from pyspark.find_spark_home import _find_spark_home

    return Path(_find_spark_home())
