"""What a Spark task of a gang runs: become a rank, call the function, answer."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

import cloudpickle
import pyarrow as pa
from pyspark import BarrierTaskContext, TaskContext

from sparktrain.errors import DeviceUnknown, NotABarrierStage
from sparktrain.gang.blame import write_error
from sparktrain.gang.spec import GangSpec
from sparktrain.world import World

ANSWER_SCHEMA = "rank int, value binary"


def run_rank(batches: Iterable[pa.RecordBatch], spec: GangSpec) -> Iterator[pa.RecordBatch]:
    """Run one rank inside a barrier task; yields its answer: rank and cloudpickled value."""
    for _ in batches:  # the input only exists to make Spark start this task
        pass
    context = TaskContext.get()
    assert context is not None, "outside of a Spark task"
    rank = context.partitionId()
    with log_to(spec.log_file(rank)):
        world, address = _find_place(spec, context, rank)
        value = call_in_group(spec, world, address)
    yield pa.RecordBatch.from_pydict({"rank": pa.array([rank], pa.int32()), "value": [value]})


def _find_place(spec: GangSpec, context: TaskContext, rank: int) -> tuple[World, str]:
    """Return who we are, and this host's address; an error is written down like one of the call."""
    try:
        hosts = _hosts_of_gang(spec, context)
        world = World(
            rank=rank,
            size=spec.size,
            local_rank=hosts[:rank].count(hosts[rank]),
            device=_device(spec, context, hosts, rank),
            attempt=spec.attempt,
        )
    except Exception as error:
        write_error(spec, World(rank=rank, size=max(spec.size, rank + 1)), error)
        raise
    return world, "127.0.0.1" if len(set(hosts)) == 1 else hosts[rank]


def call_in_group(spec: GangSpec, world: World, address: str) -> bytes:
    """Call the payload as a member of the process group; the error of a failed call is written down first."""
    try:
        # It needs torch: only now, so that an error of its import is answered for, too.
        from sparktrain.gang.rendezvous import process_group

        with process_group(spec, world, address):
            try:
                function, arguments = cloudpickle.loads(spec.payload)
                value: bytes = cloudpickle.dumps(function(*arguments))
            except BaseException as error:
                write_error(spec, world, error)
                raise
        return value
    except BaseException as error:
        if not spec.error_file(world.rank).exists():
            write_error(spec, world, error)
        raise


def _hosts_of_gang(spec: GangSpec, context: TaskContext) -> Sequence[str]:
    """Host of each rank; refuses to run when Spark dropped barrier mode, as some plugins make it."""
    infos = context.getTaskInfos() if isinstance(context, BarrierTaskContext) else []
    if len(infos) != spec.size:
        raise NotABarrierStage(spec.size, len(infos))
    return [info.address.rpartition(":")[0] for info in infos]


def _device(spec: GangSpec, context: TaskContext, hosts: Sequence[str], rank: int) -> str:
    if not spec.gpus_per_rank:
        return "cpu"
    granted = context.resources().get("gpu")
    # Local masters grant no addresses: there the ranks of a host share its devices in order.
    address = granted.addresses[0] if granted else str(hosts[:rank].count(hosts[rank]))
    return f"cuda:{device_index(address, os.environ.get('CUDA_VISIBLE_DEVICES'))}"


def device_index(address: str, visible: str | None) -> int:
    """Return the number by which CUDA knows a GPU that Spark knows by its address on the host.

    Args:
        address: a number, or the name of a MIG slice.
        visible: the worker's CUDA_VISIBLE_DEVICES, in whose order CUDA counts.

    Raises:
        DeviceUnknown: a name that is not among the visible ones.
    """
    listed = [entry.strip() for entry in visible.split(",")] if visible else []
    if address in listed:
        return listed.index(address)
    if not address.isdecimal():
        raise DeviceUnknown(address, visible)
    return int(address)


@contextmanager
def log_to(file: Path) -> Iterator[None]:
    """Send the process' stdout and stderr, C libraries' included, to a file; put both back afterwards."""
    file.parent.mkdir(parents=True, exist_ok=True)
    log = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    streams = sys.stdout, sys.stderr
    _flush(*streams)
    saved = os.dup(1), os.dup(2)
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        # Streams of our own: Spark's may lead elsewhere, and keep lines that die with a killed rank.
        sys.stdout, sys.stderr = _text_stream(1), _text_stream(2)
        yield
    finally:
        _flush(sys.stdout, sys.stderr, *streams)
        sys.stdout, sys.stderr = streams
        for number, descriptor in zip((1, 2), saved, strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.close(log)


def _text_stream(descriptor: int) -> TextIO:
    return open(descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


def _flush(*streams: TextIO) -> None:
    for stream in streams:
        with suppress(ValueError, OSError):  # closed by the user's function, say
            stream.flush()
