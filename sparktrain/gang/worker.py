"""What a Spark task of a gang runs: become a rank, call the function, answer."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import cloudpickle
import pyarrow as pa
from pyspark import BarrierTaskContext, SparkFiles, TaskContext

from sparktrain.devices import device_index
from sparktrain.errors import NotABarrierStage, RankEnded
from sparktrain.gang.blame import write_error
from sparktrain.gang.process import call_in_process
from sparktrain.gang.spec import GangSpec
from sparktrain.world import World

ANSWER_SCHEMA = "rank int, value binary"


def run_rank(batches: Iterable[pa.RecordBatch], spec: GangSpec) -> Iterator[pa.RecordBatch]:
    """Run one rank from inside a barrier task; yields its answer: rank and cloudpickled value."""
    for _ in batches:  # the input only exists to make Spark start this task
        pass
    context = TaskContext.get()
    assert context is not None, "outside of a Spark task"
    rank = context.partitionId()
    value: bytes | None = None  # a rank that failed has none
    try:
        world, address = _find_place(spec, context, rank)
        for module in spec.preload:  # here, where the next gang finds them imported already
            importlib.import_module(module)
        value = call_in_process(partial(_call_as_rank, spec, world, address), spec, world)
    except RankEnded:
        # No error of Spark's: it would kill the Python workers of all ranks, and the next attempt would have
        # to wait for new ones. The driver knows from files.
        pass
    except Exception as error:
        write_error(spec, World(rank=rank, size=max(spec.size, rank + 1)), error)
        raise
    yield pa.RecordBatch.from_pydict(
        {"rank": pa.array([rank], pa.int32()), "value": pa.array([value], pa.binary())}
    )


def _find_place(spec: GangSpec, context: TaskContext, rank: int) -> tuple[World, str]:
    """Return who we are, and this host's address."""
    hosts = _hosts_of_gang(spec, context)
    world = World(
        rank=rank,
        size=spec.size,
        local_rank=hosts[:rank].count(hosts[rank]),
        device=_device(spec, context, hosts, rank),
        attempt=spec.attempt,
    )
    return world, "127.0.0.1" if len(set(hosts)) == 1 else hosts[rank]


def _call_as_rank(spec: GangSpec, world: World, address: str) -> bytes:
    """In the rank's own process; a worker has its working directory in front of what the driver sent."""
    sent = SparkFiles.getRootDirectory()
    ours = [entry for entry in sys.path if Path(entry).is_relative_to(sent)]
    sys.path[:] = ours + [entry for entry in sys.path if entry not in ours]
    return call_in_group(spec, world, address)


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
