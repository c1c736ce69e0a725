"""Rendezvous: on loopback only, in time or not at all, and without a trace."""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pytest
import torch
import torch.distributed as dist

from sparktrain.devices import device_index
from sparktrain.errors import DeviceUnknown, HostIsLoopback, RendezvousTimeout
from sparktrain.gang.blame import attempt_directory
from sparktrain.gang.rendezvous import _interface, _meet, process_group
from sparktrain.gang.spec import GangSpec
from sparktrain.testing import run_ranks
from sparktrain.world import World

LOOPBACK = {"0100007F", "00000000000000000000000001000000"}


@contextmanager
def gang_of_one(directory: Path, token: str = "right") -> Iterator[GangSpec]:
    """This process as a whole gang."""
    spec = GangSpec(directory=directory, size=1, token=token, payload=b"", start_timeout_seconds=5.0)
    with process_group(spec, World(), "127.0.0.1"):
        yield spec


def listening_addresses() -> set[str]:
    """Addresses, as the kernel writes them, on which this process takes connections."""
    files = (os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd"))
    sockets = {file.rpartition("[")[2].rstrip("]") for file in files if "socket:" in file}
    tables = [Path(f"/proc/self/net/{name}").read_text().splitlines() for name in ("tcp", "tcp6")]
    lines = [line.split() for table in tables for line in table]
    return {line[1].partition(":")[0] for line in lines if line[3] == "0A" and line[9] in sockets}


@pytest.mark.ranks
def test_ranks_of_one_host_listen_on_loopback_only() -> None:
    found = run_ranks(3, listening_addresses)
    assert found[0], "rank 0 hosts the store"
    assert set().union(*found) <= LOOPBACK


def test_the_attempts_directory_is_for_its_owner_only(tmp_path: Path) -> None:
    directory = attempt_directory(tmp_path / "run" / "attempt-001")
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    with gang_of_one(directory) as spec:
        assert json.loads(spec.rendezvous_file.read_bytes())["host"] == "127.0.0.1"


def test_a_stranger_cannot_connect_to_the_store_once_all_are_there(tmp_path: Path) -> None:
    with gang_of_one(tmp_path) as spec:
        found = json.loads(spec.rendezvous_file.read_bytes())
        with pytest.raises(TimeoutError):
            socket.create_connection((found["host"], found["port"]), 0.5)
        dist.barrier(dist.new_group([0]))  # the ranks' own connections are left alone


def test_a_stranger_who_comes_before_all_are_there_reads_no_key_without_the_token(tmp_path: Path) -> None:
    spec = GangSpec(directory=tmp_path, size=2, token="right", payload=b"", start_timeout_seconds=20.0)
    ranks = threading.Thread(target=meet, args=(spec,))
    ranks.start()
    while not spec.rendezvous_file.exists():
        time.sleep(0.005)
    found = json.loads(spec.rendezvous_file.read_bytes())
    store = dist.TCPStore(found["host"], found["port"], 2, is_master=False, wait_for_workers=False)
    dist.PrefixStore("right", store).wait(["arrived/0"])
    assert not dist.PrefixStore("wrong", store).check(["arrived/0"])
    assert not store.check(["arrived/0"])
    dist.PrefixStore("right", store).set("arrived/1", "1")
    ranks.join()


def meet(spec: GangSpec) -> None:
    """Be rank 0 until all are there."""
    _meet(spec, World(rank=0, size=2), "127.0.0.1")


def test_gloo_takes_the_device_of_the_address_that_peers_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    assert _interface("127.0.0.1") == {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    for nowhere in ("192.0.2.77", "127.0.1.1", "localhost", "no-such-host.invalid", "x" * 70):
        assert _interface(nowhere) == {}, nowhere
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect(("198.51.100.1", 9))  # sends nothing, but tells which way it would go
        except OSError:
            pytest.skip("this machine has no network")
        ours = asking.getsockname()[0]
    names = [name for _, name in socket.if_nameindex()]
    assert _interface(ours)["GLOO_SOCKET_IFNAME"] in set(names) - {"lo"}
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    assert _interface(ours) == {}, "what the user has set is left alone"


def test_a_rank_that_nobody_waits_for_gives_up_in_time(tmp_path: Path) -> None:
    spec = GangSpec(directory=tmp_path, size=2, token="t", payload=b"", start_timeout_seconds=0.5)
    for rank in range(2):
        started = time.monotonic()
        world = World(rank=rank, size=2)
        spec.rendezvous_file.unlink(missing_ok=True)
        with (
            pytest.raises(RendezvousTimeout, match=rf"Rank {rank} waited 0\.5 s for the gang of 2"),
            process_group(spec, world, "127.0.0.1"),
        ):
            raise AssertionError("it met nobody")
        assert 0.4 < time.monotonic() - started < 10
        assert not dist.is_initialized()


def test_a_name_that_leads_to_its_own_host_alone_is_refused_before_others_wait_for_it(tmp_path: Path) -> None:
    spec = GangSpec(directory=tmp_path, size=2, token="t", payload=b"", start_timeout_seconds=20.0)
    started = time.monotonic()
    with pytest.raises(HostIsLoopback, match=r"localhost resolves its own name to 127\.0\.0\.1.*/etc/hosts"):
        _meet(spec, World(rank=0, size=2), "localhost")
    assert time.monotonic() - started < 10
    assert not spec.rendezvous_file.exists(), "nobody is to come"


def test_an_address_of_another_attempt_is_not_taken(tmp_path: Path) -> None:
    spec = GangSpec(directory=tmp_path, size=2, token="ours", payload=b"", start_timeout_seconds=0.3)
    with socket.create_server(("127.0.0.1", 0)) as other:
        host, port = other.getsockname()
        spec.rendezvous_file.write_text(json.dumps({"host": host, "port": port, "token": "theirs"}))
        used = time.process_time()
        with pytest.raises(RendezvousTimeout, match="rank 0 left no address"):
            process_group(spec, World(rank=1, size=2), "127.0.0.1").__enter__()
        assert time.process_time() - used < 0.2, "it waits without a pause"


@pytest.mark.parametrize("fails", [False, True])
def test_environment_threads_and_files_are_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    monkeypatch.setenv("RANK", "17")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with gang_of_one(attempt_directory(tmp_path / "first")):
        pass  # what a process opens once
    before = state_of_process()
    for number in range(3):
        spec = GangSpec(tmp_path / f"{number}", 1, "t", b"", cpus_per_rank=torch.get_num_threads() + 1)
        attempt_directory(spec.directory)
        try:
            with process_group(spec, World(), "127.0.0.1"):
                assert os.environ["RANK"] == "0"
                assert torch.get_num_threads() == pa.cpu_count() == spec.cpus_per_rank
                if fails:
                    raise KeyError("on purpose")
        except KeyError:
            assert fails
    assert state_of_process() == before
    assert not dist.is_initialized()


def state_of_process() -> list[object]:
    num_files = len(os.listdir("/proc/self/fd"))
    return [dict(os.environ), torch.get_num_threads(), pa.cpu_count(), num_files]


@pytest.mark.parametrize(
    ("address", "visible", "expected"),
    [
        ("0", None, 0),
        ("3", None, 3),
        ("3", "", 3),
        ("3", "2,3", 1),
        ("1", "2,3", 1),
        ("MIG-b", "MIG-a, MIG-b", 1),
    ],
)
def test_a_granted_gpu_gets_the_number_that_cuda_counts_by(
    address: str, visible: str | None, expected: int
) -> None:
    assert device_index(address, visible) == expected


def test_a_granted_gpu_that_cuda_cannot_know_is_refused_in_words() -> None:
    with pytest.raises(DeviceUnknown, match=r"granted the GPU 'MIG-b'.*is 'MIG-a'"):
        device_index("MIG-b", "MIG-a")
