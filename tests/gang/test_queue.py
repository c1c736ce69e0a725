"""Gangs of one driver take turns for the slots, first come, first served."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import pytest
import torch.distributed as dist

from sparktrain.errors import RankFailed
from sparktrain.gang import Gang
from sparktrain.gang.queue import Queue

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

WHOLE, HALF, QUARTER = Fraction(1), Fraction(1, 2), Fraction(1, 4)


class Gangs:
    """Threads that hold a part of a queue until they are told to let go."""

    def __init__(self) -> None:
        self.queue, self.began, self.held = Queue(), list[str](), Fraction(0)
        self._lock, self._num_left = threading.Lock(), 0
        self._threads: dict[str, tuple[threading.Thread, threading.Event]] = {}

    def start(self, name: str, part: Fraction) -> None:
        end, before = threading.Event(), self._num_seen
        thread = threading.Thread(target=self._hold, args=(name, part, end), daemon=True)
        self._threads[name] = (thread, end)
        thread.start()
        wait_for(lambda: self._num_seen > before)

    @property
    def _num_seen(self) -> int:
        return self._num_left + len(self.queue._waiting) + len(self.began)

    def _hold(self, name: str, part: Fraction, end: threading.Event) -> None:
        with suppress(SystemExit), self.queue.turn(lambda: part):
            with self._lock:
                self.began.append(name)
                self.held += part
                assert self.held <= 1 or self.held == part
            end.wait(30)
            with self._lock:
                self.held -= part

    def interrupt(self, name: str) -> None:
        thread, _ = self._threads[name]
        assert thread.ident is not None
        raised = ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit)
        )
        assert raised == 1
        thread.join(5)
        assert not thread.is_alive()
        self._num_left += 1

    def end(self, name: str) -> None:
        thread, end = self._threads[name]
        end.set()
        thread.join(5)
        assert not thread.is_alive()


def wait_for(condition: Callable[[], bool], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


@pytest.fixture
def gangs() -> Iterator[Gangs]:
    found = Gangs()
    yield found
    for _, end in found._threads.values():
        end.set()


@pytest.mark.timeout(30)
def test_who_comes_first_is_served_first_and_nobody_overtakes(gangs: Gangs) -> None:
    gangs.start("first", HALF)
    gangs.start("large", WHOLE)
    gangs.start("small", QUARTER)  # it would fit beside the first
    time.sleep(0.2)
    assert gangs.began == ["first"]
    gangs.end("first")
    wait_for(lambda: gangs.began == ["first", "large"])
    time.sleep(0.1)
    assert gangs.began == ["first", "large"]
    gangs.end("large")
    wait_for(lambda: gangs.began == ["first", "large", "small"])


@pytest.mark.timeout(30)
def test_what_fits_runs_side_by_side(gangs: Gangs) -> None:
    for name, part in (("half", HALF), ("quarter", QUARTER), ("other", QUARTER), ("fourth", QUARTER)):
        gangs.start(name, part)
    wait_for(lambda: gangs.began == ["half", "quarter", "other"])
    gangs.end("quarter")
    wait_for(lambda: gangs.began[-1] == "fourth")


@pytest.mark.timeout(30)
def test_who_is_interrupted_while_waiting_leaves_its_place(gangs: Gangs) -> None:
    gangs.start("first", WHOLE)
    gangs.start("second", WHOLE)
    gangs.start("third", WHOLE)
    gangs.interrupt("second")
    gangs.end("first")
    wait_for(lambda: gangs.began == ["first", "third"])
    gangs.end("third")
    assert gangs.queue._held == 0


def test_an_interrupt_at_any_line_leaves_nothing_held() -> None:
    code, before, line = Queue.turn.__wrapped__.__code__, sys.gettrace(), 0  # type: ignore[attr-defined]

    def interrupt(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if frame.f_code is code and event == "line":
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return interrupt if frame.f_code is code else None

    has_begun = False
    while not has_begun:
        queue, line = Queue(), line + 1
        left = line
        sys.settrace(interrupt)
        try:
            with suppress(KeyboardInterrupt), queue.turn(lambda: HALF):
                sys.settrace(None)
                has_begun = True
        finally:
            sys.settrace(before)
        assert queue._held == 0 and not queue._waiting, f"interrupted at line {line}"
    assert line > 5


@pytest.mark.timeout(30)
def test_more_than_all_slots_waits_until_nobody_holds_any(gangs: Gangs) -> None:
    gangs.start("first", QUARTER)
    gangs.start("too much", Fraction(3, 2))  # executors were lost: Spark is to say so
    time.sleep(0.1)
    assert gangs.began == ["first"]
    gangs.end("first")
    wait_for(lambda: gangs.began == ["first", "too much"])


def hold(directory: Path, name: str, seconds: float) -> str:
    """Run in a rank: leave when it began and ended."""
    dist.barrier()
    if dist.get_rank() == 0:
        (directory / f"{name}-began").write_text(str(time.time()))
        time.sleep(seconds)
        (directory / f"{name}-ended").write_text(str(time.time()))
    dist.barrier()
    return name


def fail(directory: Path, name: str) -> None:
    hold(directory, name, 0.5)
    raise KeyError(name)


def moment(directory: Path, name: str) -> float:
    return float((directory / name).read_text())


@pytest.mark.spark
@pytest.mark.timeout(240)
def test_two_gangs_that_need_all_slots_run_one_after_the_other(spark: SparkSession, tmp_path: Path) -> None:
    # One would be given up after so long without its ranks: it counts from its turn.
    gang = Gang(spark, ranks=2, start_timeout_seconds=30)
    with ThreadPoolExecutor(3) as threads:
        values = list(threads.map(lambda name: gang.run(hold, tmp_path, name, 1.5), "abc"))
    assert values == [["a", "a"], ["b", "b"], ["c", "c"]]
    spans = sorted((moment(tmp_path, f"{name}-began"), moment(tmp_path, f"{name}-ended")) for name in "abc")
    assert spans[0][1] < spans[1][0] and spans[1][1] < spans[2][0]


@pytest.mark.spark
@pytest.mark.timeout(240)
def test_a_gang_that_fails_gives_its_slots_back(spark: SparkSession, tmp_path: Path) -> None:
    gang = Gang(spark, ranks=2)
    with ThreadPoolExecutor(2) as threads:
        broken = threads.submit(gang.run, fail, tmp_path, "broken")
        wait_for(lambda: (tmp_path / "broken-began").exists(), 60)
        waiting = threads.submit(gang.run, hold, tmp_path, "waiting", 0.1)
        with pytest.raises(RankFailed, match="broken"):
            broken.result()
        assert waiting.result() == ["waiting", "waiting"]


@pytest.mark.spark
@pytest.mark.timeout(240)
def test_gangs_run_side_by_side_where_there_are_slots_for_both(spark: SparkSession, tmp_path: Path) -> None:
    gang = Gang(spark, ranks=1)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda name: gang.run(hold, tmp_path, name, 5), "ab"))
    began = max(moment(tmp_path, f"{name}-began") for name in "ab")
    assert began < min(moment(tmp_path, f"{name}-ended") for name in "ab")
