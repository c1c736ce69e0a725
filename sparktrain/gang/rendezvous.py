"""How ranks find each other: by a file in the attempt's directory, over a socket bound beforehand."""

from __future__ import annotations

import ctypes
import fcntl
import json
import logging
import os
import socket
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta

import pyarrow as pa
import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # exported, not by stubs
from torch.torch_version import TorchVersion

from sparktrain import versions
from sparktrain.errors import HostIsLoopback, RendezvousTimeout, first_line
from sparktrain.gang.spec import GangSpec
from sparktrain.storage import commit_json
from sparktrain.world import World

logger = logging.getLogger(__name__)

_DRIVER_ONLY = ("MLFLOW_", "DATABRICKS_TOKEN", "DATABRICKS_PASSWORD", "DATABRICKS_CLIENT_SECRET")
_POLL_SECONDS = 0.005
_SIOCGIFADDR = 0x8915  # of <linux/sockios.h>
_SO_ATTACH_FILTER, _BPF_RET = 26, 6  # of <asm/socket.h>, <linux/filter.h>
# torch's store by libuv refused a socket that listens already before 2.8; the older one takes it
_LIBUV_TAKES_SOCKETS = TorchVersion(torch.__version__) >= "2.8"


@contextmanager
def process_group(spec: GangSpec, world: World, address: str) -> Iterator[None]:
    """Join the gang's process group, and leave it again: quietly after success, at once after an error.

    Args:
        address: IP or name of this rank's host, as its peers reach it; "127.0.0.1" when all are on one host.

    Raises:
        RendezvousTimeout: not all ranks came within `spec.start_timeout_seconds`.
        HostIsLoopback: rank 0's host is a name that leads only to itself.
    """
    variables = {
        "RANK": str(world.rank),
        "WORLD_SIZE": str(world.size),
        "LOCAL_RANK": str(world.local_rank),
        "SPARKTRAIN_ATTEMPT": str(world.attempt),
        "SPARKTRAIN_DEVICE": world.device,
        "OMP_NUM_THREADS": str(spec.cpus_per_rank),
        **_interface(address),
    }
    with _environment(variables), _threads(spec.cpus_per_rank), _device(world.device):
        store = _meet(spec, world, address)
        backend = "nccl" if world.device.startswith("cuda") else "gloo"
        dist.init_process_group(
            backend,
            store=PrefixStore(spec.token, store),
            rank=world.rank,
            world_size=world.size,
            timeout=timedelta(seconds=spec.collective_timeout_seconds),
        )
        try:
            dist.barrier()  # however short the function is, nobody leaves before all are connected
            yield
            if dist.is_initialized():  # many a script leaves the group by itself
                dist.barrier()  # nobody closes a connection that another still uses
        finally:
            # After an error this closes the sockets, which is how the peers hear of it within milliseconds;
            # without it they would wait for Spark, because its Python worker lives on.
            if dist.is_initialized():
                dist.destroy_process_group()


def _meet(spec: GangSpec, world: World, address: str) -> TCPStore:
    """Return the gang's store: rank 0 hosts it and says in a file where, the others wait for that file."""
    timeout = timedelta(seconds=spec.start_timeout_seconds)
    door: socket.socket | None = None  # rank 0's own handle of the store's listening socket
    try:
        if world.is_first:
            listener = socket.create_server((address, 0))  # bound before it is announced: no port race
            host, port = listener.getsockname()[:2]
            if host.startswith("127.") and host != address:
                listener.close()
                raise HostIsLoopback(address, host)
            door = listener.dup()
            store = TCPStore(
                host,
                port,
                world.size,
                is_master=True,
                timeout=timeout,
                wait_for_workers=False,
                master_listen_fd=listener.detach(),
                use_libuv=_LIBUV_TAKES_SOCKETS,
            )
            commit_json(spec.rendezvous_file, {"host": host, "port": port, "token": spec.token})
        else:
            host, port = _wait_for_address(spec)
            store = TCPStore(host, port, world.size, is_master=False, timeout=timeout, wait_for_workers=False)
        _wait_for_all(PrefixStore(spec.token, store), world, spec)
        # NCCL's groups may open connections of their own to the store at any time, gloo's never do.
        if door is not None and not world.device.startswith("cuda"):
            _shut(door)
        return store
    except dist.DistError as error:
        waited = spec.start_timeout_seconds
        raise RendezvousTimeout(world.rank, world.size, waited, first_line(error)) from error
    finally:
        if door is not None:
            door.close()


def _shut(door: socket.socket) -> None:
    """Let nobody connect any more: torch's store asks nobody who they are, and tells and takes everything.

    By a filter that drops all that comes for the listening socket, connections that exist are left alone. A
    socket that is shut down instead makes the store's thread spin, or the process abort.
    """
    if sys.platform != "linux":
        return
    drop_all = ctypes.create_string_buffer(struct.pack("HBBI", _BPF_RET, 0, 0, 0))
    program = struct.pack("HP", 1, ctypes.addressof(drop_all))
    with suppress(OSError):  # a sandbox may not know of filters
        door.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def _wait_for_address(spec: GangSpec) -> tuple[str, int]:
    deadline = time.monotonic() + spec.start_timeout_seconds
    while time.monotonic() < deadline:
        try:
            found = json.loads(spec.rendezvous_file.read_bytes())
            if found["token"] == spec.token:
                return found["host"], found["port"]
        except FileNotFoundError:
            pass
        time.sleep(_POLL_SECONDS)
    raise dist.DistError(f"rank 0 left no address in {spec.rendezvous_file}")


def _wait_for_all(store: PrefixStore, world: World, spec: GangSpec) -> None:
    """Wait here, where the timeout is the start's, for everyone; later collectives may take much longer.

    Raises:
        VersionsDiffer: by rank 0, which looks at all, so that there is one table and not one of each rank.
    """
    here = {"who": f"rank {world.rank} on {socket.gethostname()}", "versions": versions.here()}
    store.set(f"arrived/{world.rank}", json.dumps(here))
    everyone = [f"arrived/{rank}" for rank in range(world.size)]
    store.wait(everyone, timedelta(seconds=spec.start_timeout_seconds))
    if world.is_first and spec.versions:
        arrived = [json.loads(answer) for answer in store.multi_get(everyone)]
        for warning in versions.compare(spec.versions, {a["who"]: a["versions"] for a in arrived}):
            logger.warning(warning)


def _interface(address: str) -> Mapping[str, str]:
    """Let gloo and NCCL use the loopback device if all are on one host, and gloo else the one of `address`.

    Left alone gloo follows the host's own name, which on many a system leads to 127.0.1.1: no way for peers.
    What the user has set is left alone, as is NCCL, which may know of faster devices.
    """
    if address == "127.0.0.1":
        names = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
        return {"GLOO_SOCKET_IFNAME": names[0], "NCCL_SOCKET_IFNAME": names[0]} if names else {}
    device = None if "GLOO_SOCKET_IFNAME" in os.environ else _device_with(address)
    return {"GLOO_SOCKET_IFNAME": device} if device is not None else {}


def _device_with(address: str) -> str | None:
    """Name of the network device that has this address; None where the system does not tell."""
    if sys.platform != "linux":
        return None
    with suppress(OSError, UnicodeError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        number = socket.gethostbyname(address)
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has none
                answer = fcntl.ioctl(asking, _SIOCGIFADDR, struct.pack("256s", name.encode()))
                # A name that leads to this host alone tells nothing about the way to others.
                if socket.inet_ntoa(answer[20:24]) == number and not number.startswith("127."):
                    return name
    return None


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables and put back what was there: Spark's Python workers serve other jobs afterwards.

    A local master's workers inherit the driver's access to MLflow: it is out of a rank's reach meanwhile.
    """
    before = dict(os.environ)
    for name in before:
        if name.startswith(_DRIVER_ONLY):
            del os.environ[name]
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            os.environ.pop(name, None)
        os.environ.update({n: v for n, v in before.items() if n in variables or n.startswith(_DRIVER_ONLY)})


@contextmanager
def _device(device: str) -> Iterator[None]:
    """Make the rank's GPU the current one: NCCL's barriers and object collectives use that one."""
    if not device.startswith("cuda"):
        yield
        return
    with torch.cuda.device(device):
        yield


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Give torch and Arrow the rank's cores: Spark sets OMP_NUM_THREADS to its own `spark.task.cpus`."""
    before = torch.get_num_threads(), pa.cpu_count()
    torch.set_num_threads(number)
    pa.set_cpu_count(number)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        pa.set_cpu_count(before[1])
