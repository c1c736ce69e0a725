"""Fifty gangs in a row in one session, some of which fail: nothing piles up, and none hangs."""

from __future__ import annotations

import os
import signal
import statistics
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
import torch.distributed as dist

from sparktrain.errors import RankFailed, RankLost
from sparktrain.gang import Gang
from tests.fixtures.processes import descendants, is_running, resident_bytes

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

NUM_GANGS = 50
WARM_UP = 10
FAILING = {15: "raise", 25: "kill", 35: "exit"}
MAX_GROWTH_BYTES = 24 << 20


def share(step: int) -> tuple[float, int]:
    """Some work, with memory and threads of its own; returns the sum over ranks, and Spark's worker."""
    total = torch.ones(100_000)
    dist.all_reduce(total)
    os.environ[f"LEFT_BY_GANG_{step}"] = "x"
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    return float(total[0]), parent_of(os.getppid())


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def fail(how: str) -> None:
    if dist.get_rank() == 1:
        if how == "raise":
            raise KeyError("on purpose")
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise SystemExit(3)
    dist.barrier()


def state_of_driver() -> dict[str, object]:
    """What must be the same whenever no gang runs."""
    return {
        "files": len(os.listdir("/proc/self/fd")),
        "threads": sorted(thread.name for thread in threading.enumerate() if _is_ours(thread)),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
    }


def _is_ours(thread: threading.Thread) -> bool:
    return thread.name in ("gang-stage", "rank-output")


def state_of_worker(pid: int) -> dict[str, object]:
    process = Path(f"/proc/{pid}")
    return {"files": len(os.listdir(process / "fd")), "threads": len(os.listdir(process / "task"))}


@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_fifty_gangs_in_a_row_leave_no_more_behind_than_ten(
    spark: SparkSession, temporary_files: Path
) -> None:
    seconds: list[float] = []
    workers: set[int] = set()
    before: Mapping[str, object] = {}
    workers_before: dict[int, dict[str, object]] = {}
    bytes_before: dict[int, int] = {}
    family_before: set[int] = set()
    for number in range(1, NUM_GANGS + 1):
        started = time.perf_counter()
        found = Gang(spark, ranks=2, start_timeout_seconds=60).run(share, number)
        seconds.append(time.perf_counter() - started)
        assert [total for total, _ in found] == [2.0, 2.0]
        workers |= {worker for _, worker in found}
        if number in FAILING:
            with pytest.raises((RankFailed, RankLost), match="rank 1 "):
                Gang(spark, ranks=2, start_timeout_seconds=60).run(fail, FAILING[number])
        if number == WARM_UP:
            before, family_before = state_of_driver(), family()
            workers_before = {pid: state_of_worker(pid) for pid in workers if is_running(pid)}
            bytes_before = {pid: resident_bytes(pid) for pid in (os.getpid(), *workers_before)}
    median = statistics.median(seconds[WARM_UP:])
    print(f"{NUM_GANGS} gangs, {len(FAILING)} failing ones: median {median:.2f} s, most {max(seconds):.2f}")

    assert state_of_driver() == before
    settle(family_before)
    stayed = [pid for pid in workers_before if is_running(pid)]
    assert stayed, "no worker served all the gangs: nothing was tested"
    growth = {pid: resident_bytes(pid) - bytes_before[pid] for pid in (os.getpid(), *stayed)}
    print("growth in bytes:", growth)
    assert max(growth.values()) < MAX_GROWTH_BYTES, growth
    assert {pid: state_of_worker(pid) for pid in stayed} == {pid: workers_before[pid] for pid in stayed}
    assert len(list(temporary_files.iterdir())) == len(FAILING), "failed gangs leave what their errors name"


def family() -> set[int]:
    return {pid for pid in descendants(os.getpid()) if is_running(pid)}


def settle(family_before: set[int]) -> None:
    """Wait until no process is left that was not there before; Spark may have replaced a worker."""
    deadline = time.monotonic() + 10
    while len(family()) > len(family_before):
        assert time.monotonic() < deadline, f"{len(family_before)} processes before, now {family()}"
        time.sleep(0.1)
