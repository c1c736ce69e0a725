"""Port in use (R35): ranks listen at ports of the system's choice, bound before anyone hears of them."""

from __future__ import annotations

import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sparktrain.testing import run_ranks
from tests.fixtures.scripts import run_script

NUM_GANGS = 50
IN_A_NETWORK = ("unshare", "--net", "--", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")

# Few ports, most of them taken: whoever picks one and binds it a moment later, or counts up from one, fails.
SQUATTED = """
    import json, socket, sys
    from contextlib import suppress
    from pathlib import Path

    FIRST, LAST, FREE = 40000, 40199, 60

    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text(f"{FIRST} {LAST}")  # of this namespace alone
    taken = []
    for port in range(FIRST, LAST + 1 - FREE):
        taken.append(socket.create_server(("127.0.0.1", port)))
    refused = 0
    for port in range(FIRST, LAST + 1):
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            refused += 1

    if __name__ == "__main__":
        from sparktrain.testing import run_ranks
        from tests.faults.test_ports import total

        found = [run_ranks(2, total, timeout_seconds=120) for _ in range(10)]
        print(json.dumps({"refused": refused, "found": found}))
"""


def total() -> float:
    import torch
    import torch.distributed as dist

    ones = torch.ones(1)
    dist.all_reduce(ones)
    return float(ones)


def meet_all_gangs(directory: Path, name: str) -> list[str]:
    """Wait until every gang is there, so that all their stores listen at once; return our addresses."""
    value = total()
    (directory / f"{name}-{os.environ['RANK']}-{value:g}").touch()
    deadline = time.monotonic() + 200
    while len(list(directory.iterdir())) < 2 * NUM_GANGS:
        assert time.monotonic() < deadline, f"only {len(list(directory.iterdir()))} ranks came"
        time.sleep(0.1)
    time.sleep(0.5)
    return sorted(listening())


def listening() -> set[str]:
    """Local addresses at which this process listens, as the kernel writes them."""
    inodes = set()
    for entry in os.scandir("/proc/self/fd"):
        try:
            inodes.add(os.readlink(entry.path).removeprefix("socket:[").removesuffix("]"))
        except OSError:
            continue
    rows = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    return {row[1] for row in rows if row[3] == "0A" and row[9] in inodes}


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.timeout(280)
@pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="reads Linux's list of sockets")
def test_r35_fifty_gangs_that_start_at_once_take_no_port_from_one_another(tmp_path: Path) -> None:
    with ThreadPoolExecutor(NUM_GANGS) as pool:
        gangs = [
            pool.submit(run_ranks, 2, meet_all_gangs, tmp_path, f"gang{n}", timeout_seconds=240)
            for n in range(NUM_GANGS)
        ]
        found = [gang.result() for gang in gangs]
    assert {path.name.rpartition("-")[2] for path in tmp_path.iterdir()} == {"2"}
    stores = [address for addresses in found for address in addresses[0]]
    assert len(stores) >= NUM_GANGS, "the fault: they all listened at the same time"
    assert len(set(stores)) == len(stores)
    assert {address.partition(":")[0] for address in stores} == {"0100007F"}, "loopback alone"


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.timeout(280)
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs a network namespace")
def test_r35_gangs_start_where_most_ports_are_taken(tmp_path: Path) -> None:
    found = run_script(SQUATTED, tmp_path, inside=IN_A_NETWORK)
    assert found["refused"] >= 140, "the fault"
    assert found["found"] == [[2.0, 2.0]] * 10
