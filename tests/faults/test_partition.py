"""R37: the network parts two ranks: both end in time, neither commits alone, training goes on later."""

from __future__ import annotations

import json
import os
import pickle
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cloudpickle
import pytest

from sparktrain.dataset import Dataset
from sparktrain.gang.blame import diagnose
from sparktrain.gang.spec import GangSpec
from sparktrain.testing import write_tiny_dataset
from sparktrain.training.checkpoint import committed, newest_valid
from tests.fixtures.command import ROOT
from tests.fixtures.rank_on_a_host import SlowTask
from tests.fixtures.tiny_task import TINY_CONFIG, last_save, train_rank, train_tiny

pytestmark = [pytest.mark.ranks, pytest.mark.slow, pytest.mark.timeout(240)]

COLLECTIVE_TIMEOUT = 4.0
ADDRESSES = ("10.213.7.1", "10.213.7.2")
CONFIG = TINY_CONFIG.model_copy(update={"ranks": 2, "checkpoint_every_steps": 4})
NUM_STEPS = 40


@dataclass(frozen=True)
class Hosts:
    """Two network namespaces of this machine, each with one end of a cable."""

    names: Sequence[str]

    def ip(self, host: int, *arguments: str) -> None:
        run("ip", "-n", self.names[host], *arguments)

    def connect(self) -> None:
        for host, address in enumerate(ADDRESSES):
            self.ip(host, "addr", "replace", f"{address}/24", "dev", "cable")
            self.ip(host, "link", "set", "cable", "up")
        wait_until(self.can_reach, 10)

    def pull_the_cable(self) -> None:
        self.ip(1, "link", "set", "cable", "down")

    def lose_packets_one_way(self) -> None:
        self.ip(0, "route", "add", "blackhole", f"{ADDRESSES[1]}/32")

    def mend(self) -> None:
        for host, other in enumerate(reversed(ADDRESSES)):
            subprocess.run(
                ["ip", "-n", self.names[host], "route", "del", "blackhole", f"{other}/32"],
                capture_output=True,
                check=False,
            )
        self.connect()

    def can_reach(self) -> bool:
        """Whether host 0 gets an answer of host 1: that nobody listens is one, too."""
        try_it = f"import socket; socket.create_connection(('{ADDRESSES[1]}', 9), 1)"
        done = subprocess.run(
            ["ip", "netns", "exec", self.names[0], sys.executable, "-c", try_it],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        return "ConnectionRefusedError" in done.stderr

    def start(self, host: int, *command: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(["ip", "netns", "exec", self.names[host], *command], cwd=ROOT)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces take root, and the program ip")
    delete_namespaces_of_the_dead()
    token = secrets.token_hex(3)
    names = [f"sparktrain-{os.getpid()}-{token}-{host}" for host in range(2)]
    if subprocess.run(["ip", "netns", "add", names[0]], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody make network namespaces")
    try:
        run("ip", "netns", "add", names[1])
        ends = [f"st{token}{host}" for host in range(2)]
        run("ip", "link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for end, name in zip(ends, names, strict=True):
            run("ip", "link", "set", end, "netns", name)
            run("ip", "-n", name, "link", "set", end, "name", "cable")
            run("ip", "-n", name, "link", "set", "lo", "up")
        found = Hosts(names)
        found.connect()
        yield found
    finally:
        for name in names:  # the cable goes with them
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def namespaces() -> list[str]:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return [line.split()[0] for line in listed.splitlines() if line.startswith("sparktrain-")]


def delete_namespaces_of_the_dead() -> None:
    """Of tests that were killed: no fixture clears up behind those."""
    for name in namespaces():
        if not Path(f"/proc/{name.split('-')[1]}").exists():
            run("ip", "netns", "del", name)


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=30)


def wait_until(condition: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """20 steps an epoch at 32 rows a step."""
    return write_tiny_dataset(tmp_path_factory.mktemp("partition") / "tiny", 650, validation_rows=50)


class Attempt:
    """One try of a training, a rank on each host."""

    def __init__(self, hosts: Hosts, dataset: Dataset, run: Path, number: int, pause: float) -> None:
        notes = run / f"notes-{number}"
        notes.mkdir(parents=True)
        self.task = SlowTask(dropout=0.2, notes=notes, pause_seconds=pause)
        call = train_rank, (self.task, dataset.path, CONFIG, run / "checkpoints", number)
        self.spec = GangSpec(
            directory=run / f"attempt-{number:03d}",
            size=2,
            token=secrets.token_hex(16),
            payload=cloudpickle.dumps(call),
            attempt=number,
            start_timeout_seconds=60.0,
            collective_timeout_seconds=COLLECTIVE_TIMEOUT,
        )
        self.spec.directory.mkdir(mode=0o700)
        self.spec.create_folders()
        file = self.spec.directory / "spec.pickle"
        file.write_bytes(pickle.dumps(self.spec))
        command = [sys.executable, "-m", "tests.fixtures.rank_on_a_host", str(file)]
        self.ranks = [
            hosts.start(rank, *command, str(rank), address) for rank, address in enumerate(ADDRESSES)
        ]

    def kill(self) -> None:
        for rank in self.ranks:
            rank.kill()
            rank.wait(30)

    def logs(self) -> str:
        files = [self.spec.log_file(rank) for rank in range(2)]
        return "\n".join(file.read_text(errors="replace") for file in files if file.exists())


@pytest.mark.parametrize("fault", [Hosts.pull_the_cable, Hosts.lose_packets_one_way])
def test_both_sides_end_in_time_and_the_training_goes_on_after_the_partition(
    hosts: Hosts, dataset: Dataset, tmp_path: Path, fault: Callable[[Hosts], None]
) -> None:
    saves = tmp_path / "checkpoints"
    saves.mkdir()
    first = Attempt(hosts, dataset, tmp_path, 1, pause=0.1)
    try:
        wait_until(lambda: list(committed(saves)) or has_ended(first), 90)
        assert list(committed(saves)), first.logs()
        fault(hosts)
        parted = time.monotonic()
        assert not hosts.can_reach(), "the fault did not fire"
        codes = [rank.wait(60) for rank in first.ranks]
        seconds = time.monotonic() - parted
    finally:
        first.kill()
    print(f"both ranks ended {seconds:.1f} s after the partition, collectives wait {COLLECTIVE_TIMEOUT:g} s")
    assert 0 not in codes
    assert seconds < COLLECTIVE_TIMEOUT + 10
    errors = [json.loads(first.spec.error_file(rank).read_bytes()) for rank in range(2)]
    assert [error["victim"] for error in errors] == [True, True], errors
    assert diagnose(first.spec, "").is_transient, "nobody is to blame: another attempt may get past it"
    begun = [first.task.num_begun(rank) for rank in range(2)]
    saved = newest_valid(saves)
    assert saved is not None
    assert 0 < saved.step <= min(begun) and max(begun) < NUM_STEPS, "one side went on alone"

    hosts.mend()
    second = Attempt(hosts, dataset, tmp_path, 2, pause=0.0)
    try:
        codes = [rank.wait(60) for rank in second.ranks]
    finally:
        second.kill()
    assert codes == [0, 0], second.logs()
    assert [second.task.num_begun(rank) for rank in range(2)] == [NUM_STEPS - saved.step] * 2
    straight = tmp_path / "straight"
    train_tiny(second.task, dataset, CONFIG, straight, ranks=2)
    assert last_save(saves) == last_save(straight)


def has_ended(attempt: Attempt) -> bool:
    return any(rank.poll() is not None for rank in attempt.ranks)


def test_no_namespace_is_left_by_the_tests_above_nor_by_killed_ones(hosts: Hosts) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    left = f"sparktrain-{int(ended.stdout)}-abc-0"
    run("ip", "netns", "add", left)
    delete_namespaces_of_the_dead()
    found = namespaces()
    assert left not in found
    assert sorted(hosts.names) == sorted(name for name in found if f"-{os.getpid()}-" in name)
