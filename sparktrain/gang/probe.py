"""What doctor asks of executors: who they are, what they see of the storage, whom of the others they reach.

The functions run where perhaps nothing of ours is installed, and are sent with their code: each Spark task of
the probe needs no more than Spark's own Python, and pyarrow.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import pyarrow as pa
from pyspark import BarrierTaskContext, TaskContext
from pyspark import cloudpickle as sparks_pickle
from pyspark.sql import SparkSession

from sparktrain import versions

_SCHEMA = "answer string"
_CONNECT_SECONDS = 5.0
_START_SECONDS = 60.0


class Probe(NamedTuple):
    """What each Spark task is told.

    Attributes:
        directory: as the driver sees it; holds the file `nonce`.
        nonce: what is in that file.
        gpus: whether to count the GPUs that torch sees.
        checkpoints: another directory like that, or the URI of one in an object store; None: there is none.
    """

    directory: str
    nonce: str
    gpus: bool
    checkpoints: str | None = None


class Answer(NamedTuple):
    """What one Spark task found.

    Attributes:
        address: of its host, as Spark knows it.
        directory: "" if it sees the driver's files and can write; else what is wrong.
        checkpoints: "" if it can write there, or there is none; else what is wrong.
        unreached: ranks that it could not connect to, with the reason.
        own_name: the address to which the host resolves its own name, which is where gloo listens.
        num_gpus: that torch sees; None if nobody asked.
    """

    rank: int
    host: str
    address: str
    python: str
    versions: Mapping[str, str]
    directory: str
    checkpoints: str
    unreached: Mapping[str, str]
    own_name: str
    num_gpus: int | None


class ProbeTimeout(Exception):
    """The Spark tasks did not all start, or did not end."""


def ask_executors(spark: SparkSession, ranks: int, probe: Probe, profile: Any = None) -> list[Answer]:
    """Run a barrier stage with one short Spark task for each rank, and return what they found, by rank.

    Raises:
        ProbeTimeout: after a minute.
        Exception: what Spark raised.
    """
    answers: list[Answer] = []
    errors: list[Exception] = []

    def collect() -> None:
        # range() has as many partitions as ranks: a repartitioned frame can leave one empty, or fold them.
        frame = spark.range(0, ranks, 1, ranks)
        options = {} if profile is None else {"profile": profile}  # Spark 3.5 does not know the word
        modules = (sys.modules[__name__], versions)
        for module in modules:
            sparks_pickle.register_pickle_by_value(module)  # type: ignore[no-untyped-call]
        try:
            rows = frame.mapInArrow(partial(_answer, probe), _SCHEMA, barrier=True, **options).collect()
            answers.extend(Answer(**json.loads(row["answer"])) for row in rows)
        except Exception as error:
            errors.append(error)
        finally:
            for module in modules:
                sparks_pickle.unregister_pickle_by_value(module)  # type: ignore[no-untyped-call]

    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    thread.join(_START_SECONDS)
    if thread.is_alive():
        raise ProbeTimeout(f"{ranks} Spark tasks did not start and end within {_START_SECONDS:g} s")
    if errors:
        raise errors[0]
    return sorted(answers)


def _answer(probe: Probe, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for _ in batches:  # the input only exists to make Spark start this task
        pass
    context = cast(BarrierTaskContext, TaskContext.get())
    rank = context.partitionId()
    hosts = [info.address.rpartition(":")[0] for info in context.getTaskInfos()]
    found = Answer(
        rank=rank,
        host=socket.gethostname(),
        address=hosts[rank],
        python=sys.executable,
        versions=versions.here(),
        directory=_look_at(probe.directory, probe.nonce, rank),
        checkpoints=_look_at_checkpoints(probe, rank),
        unreached=_reach_others(context, hosts, rank),
        own_name=_own_name(),
        num_gpus=_count_gpus() if probe.gpus else None,
    )
    yield pa.RecordBatch.from_pydict({"answer": [json.dumps(found._asdict())]})


def _look_at_checkpoints(probe: Probe, rank: int) -> str:
    if probe.checkpoints is None:
        return ""
    if "://" not in probe.checkpoints:
        return _look_at(probe.checkpoints, probe.nonce, rank)
    try:
        from sparktrain.storage import check_writable, path_of
    except ImportError:
        return ""  # the versions tell that sparktrain is missing
    try:
        check_writable(path_of(probe.checkpoints))
    except Exception as error:
        return f"can't be written ({error})"
    return ""


def _look_at(path: str, nonce: str, rank: int) -> str:
    """Read what the driver wrote, and write something for it."""
    directory = Path(path)
    try:
        if (directory / "nonce").read_text() != nonce:
            return "holds another file than the driver wrote"
        file = directory / f"rank-{rank}"
        # As ranks write: a file that is renamed when it is whole, and a log that grows.
        file.with_suffix(".partial").write_text(nonce)
        file.with_suffix(".partial").replace(file)
        with file.open("a") as log:
            log.write("\n")
    except FileNotFoundError:
        return "does not hold the file that the driver wrote"
    except OSError as error:
        return f"can't be used ({error.strerror})"
    return ""


def _reach_others(context: BarrierTaskContext, hosts: Sequence[str], rank: int) -> dict[str, str]:
    """Listen as ranks do, at a port of the system's choice, and connect to everybody else's."""
    own = "127.0.0.1" if len(set(hosts)) == 1 else hosts[rank]
    listener, problem = None, ""
    try:
        listener = socket.create_server((own, 0), backlog=len(hosts))
        if (bound := listener.getsockname()[0]).startswith("127.") and bound != own:
            problem = f"its host resolves its own name {own} to {bound}, the loopback device"
    except OSError as error:
        problem = f"can't listen at {own} ({error.strerror or error})"
    port = listener.getsockname()[1] if listener else None
    everyone = [json.loads(text) for text in context.allGather(json.dumps([own, port, problem]))]
    unreached = {}
    for other, (host, its_port, why_not) in enumerate(everyone):
        if other != rank:
            reason = why_not or _connect(host, its_port)
            if reason:
                unreached[str(other)] = reason
    context.barrier()  # nobody stops listening before all have tried; the system accepts for us
    if listener:
        listener.close()
    return unreached


def _connect(host: str, port: int) -> str:
    started = time.monotonic()
    try:
        with socket.create_connection((host, port), timeout=_CONNECT_SECONDS):
            return ""
    except OSError as error:
        return f"{error.strerror or error} at {host}:{port} after {time.monotonic() - started:.1f} s"


def _own_name() -> str:
    with suppress(OSError):
        return socket.gethostbyname(socket.gethostname())
    return ""


def _count_gpus() -> int:
    try:
        import torch
    except ImportError:
        return 0
    return torch.cuda.device_count() if os.environ.get("CUDA_VISIBLE_DEVICES") != "" else 0
