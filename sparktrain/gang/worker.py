"""What a Spark task of a gang runs: become a rank, call the function, answer."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cloudpickle
import pyarrow as pa
from pyspark import BarrierTaskContext

from sparktrain.errors import NotABarrierStage
from sparktrain.gang.blame import write_error
from sparktrain.gang.spec import GangSpec
from sparktrain.world import World

ANSWER_SCHEMA = "rank int, value binary"


def run_rank(batches: Iterable[pa.RecordBatch], spec: GangSpec) -> Iterator[pa.RecordBatch]:
    """Run one rank inside a barrier task; yields its answer: rank and cloudpickled value."""
    for _ in batches:  # the input only exists to make Spark start this task
        pass
    hosts = _hosts_of_gang(spec)
    rank = BarrierTaskContext.get().partitionId()
    world = World(
        rank=rank,
        size=spec.size,
        local_rank=hosts[:rank].count(hosts[rank]),
        device=_device(spec, hosts, rank),
        attempt=spec.attempt,
    )
    address = "127.0.0.1" if len(set(hosts)) == 1 else hosts[rank]
    with _log_to(spec.log_file(rank)):
        value = call_in_group(spec, world, address)
    yield pa.RecordBatch.from_pydict({"rank": pa.array([rank], pa.int32()), "value": [value]})


def call_in_group(spec: GangSpec, world: World, address: str) -> bytes:
    """Call the payload as a member of the process group; the error of a failed call is written down first."""
    try:
        from sparktrain.gang.rendezvous import process_group  # torch: only now, so that its import errors are ours too

        with process_group(spec, world, address):
            try:
                function, arguments = cloudpickle.loads(spec.payload)
                return cloudpickle.dumps(function(*arguments))
            except BaseException as error:
                write_error(spec, world, error)
                raise
    except BaseException as error:
        if not spec.error_file(world.rank).exists():
            write_error(spec, world, error)
        raise


def _hosts_of_gang(spec: GangSpec) -> Sequence[str]:
    """Host of each rank; refuses to run when Spark silently dropped barrier mode, as some plugins make it do."""
    context = BarrierTaskContext.get()
    infos = context.getTaskInfos() if isinstance(context, BarrierTaskContext) else []
    if len(infos) != spec.size:
        raise NotABarrierStage(spec.size, len(infos))
    return [info.address.rpartition(":")[0] for info in infos]


def _device(spec: GangSpec, hosts: Sequence[str], rank: int) -> str:
    if not spec.gpus_per_rank:
        return "cpu"
    granted = BarrierTaskContext.get().resources().get("gpu")
    # Local masters grant no addresses: there the ranks of a host share its devices in order.
    return f"cuda:{granted.addresses[0] if granted else hosts[:rank].count(hosts[rank])}"


@contextmanager
def _log_to(file: Path) -> Iterator[None]:
    """Send the process' stdout and stderr, C libraries' included, to the rank's log; put both back afterwards."""
    file.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    log = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, descriptor in zip((1, 2), saved, strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.close(log)
