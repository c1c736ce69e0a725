"""run_ranks: a gang without Spark, for tests of rank functions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import pytest
import torch
import torch.distributed as dist

from sparktrain.errors import NotPicklable, RankFailed, RankLost
from sparktrain.testing import run_ranks
from sparktrain.world import World

pytestmark = pytest.mark.ranks


@dataclass(frozen=True)
class Place:
    """A class of this module, which ranks can't import."""

    rank: int
    total: float


def find_place(value: float) -> Place:
    total = torch.tensor(value)
    dist.all_reduce(total)
    return Place(dist.get_rank(), float(total))


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_values_come_back_by_rank(num_ranks: int) -> None:
    expected = [Place(rank, 0.5 * num_ranks) for rank in range(num_ranks)]
    assert run_ranks(num_ranks, find_place, 0.5) == expected


def test_lambdas_and_library_functions_will_do() -> None:
    assert run_ranks(2, dist.get_rank) == [0, 1]
    assert run_ranks(2, lambda: World.from_environment().size) == [2, 2]


def test_ranks_do_not_see_the_drivers_access_to_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:password@127.0.0.1:1")
    assert run_ranks(2, lambda: [name for name in os.environ if name.startswith("MLFLOW_")]) == [[], []]
    assert os.environ["MLFLOW_TRACKING_TOKEN"] == "secret"


def test_ranks_have_the_callers_environment_folder_and_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONLY_NOW", "yes")
    monkeypatch.chdir(tmp_path)
    found = run_ranks(2, surroundings)
    assert found == [("yes", str(tmp_path), 1)] * 2
    monkeypatch.delenv("ONLY_NOW")
    assert run_ranks(1, surroundings)[0][0] is None


def surroundings() -> tuple[str | None, str, int]:
    return os.environ.get("ONLY_NOW"), os.getcwd(), torch.get_num_threads()


def test_a_gang_leaves_nothing_behind(temporary_files: Path) -> None:
    pids = run_ranks(2, os.getpid)
    assert list(temporary_files.iterdir()) == []
    assert not any(is_running(pid) for pid in pids)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def break_one(culprit: int) -> None:
    if dist.get_rank() == culprit:
        raise KeyError("mine")
    dist.barrier()


@pytest.mark.parametrize("culprit", [0, 1, 2])
def test_the_culprit_is_named_with_its_line(culprit: int, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RankFailed) as failed:
        run_ranks(3, break_one, culprit)
    assert (failed.value.rank, failed.value.message) == (culprit, "KeyError: 'mine'")
    assert "test_local.py" in str(failed.value) and 'raise KeyError("mine")' in str(failed.value)
    assert capfd.readouterr() == ("", ""), "what ranks write belongs into their logs"


def test_a_value_that_cannot_be_sent_back_is_the_ranks_error() -> None:
    with pytest.raises(RankFailed, match="cannot pickle"):
        run_ranks(2, threading.Lock)


def test_an_argument_that_cannot_be_sent_is_named() -> None:
    with pytest.raises(NotPicklable, match="can't be pickled: lock"):
        run_ranks(2, find_place, threading.Lock())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_rank_that_dies_is_lost(number: int) -> None:
    with pytest.raises(RankLost, match="rank 1 ended without an error of its own"):
        run_ranks(2, die, number)


def die(number: int) -> None:
    if dist.get_rank() == 1:
        os.kill(os.getpid(), number)
    dist.barrier()


@pytest.mark.parametrize("code", [0, 5])
def test_leaving_without_an_answer_is_an_error(code: int) -> None:
    with pytest.raises(RankFailed, match=f"rank 1 .*SystemExit: {code}"):
        run_ranks(2, leave, code)


def leave(code: int) -> None:
    if dist.get_rank() == 1:
        sys.exit(code)
    dist.barrier()


def test_ranks_that_do_not_end_are_killed(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(RankLost, match=r"rank 1 ended .* still ran after 1\.5 s and was killed"):
        run_ranks(2, sleep_on, tmp_path, timeout_seconds=1.5)
    assert time.monotonic() - started < 10
    assert not is_running(int((tmp_path / "pid").read_text()))


def sleep_on(directory: Path) -> None:
    if dist.get_rank() == 0:
        dist.destroy_process_group()
        return
    (directory / "pid").write_text(str(os.getpid()))
    dist.destroy_process_group()
    time.sleep(100)


def test_who_survives_a_failure_is_not_waited_for(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(RankFailed, match="rank 1 "):
        run_ranks(2, break_while_another_sleeps)
    assert time.monotonic() - started < 20


def break_while_another_sleeps() -> None:
    if dist.get_rank() == 1:
        raise KeyError("mine")
    time.sleep(100)


@pytest.mark.slow
def test_ranks_die_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = """
        import os, sys, time
        from sparktrain.testing import run_ranks

        def sleep_on(folder):
            import torch.distributed as dist
            open(f"{folder}/{dist.get_rank()}", "w").write(str(os.getpid()))
            time.sleep(100)

        if __name__ == "__main__":
            run_ranks(2, sleep_on, sys.argv[1])
    """
    file = tmp_path / "script.py"
    file.write_text(dedent(script))
    pids = tmp_path / "pids"
    pids.mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    parent = subprocess.Popen([sys.executable, str(file), str(pids)], cwd=tmp_path, env=environment)
    try:
        wait_until(lambda: len([path for path in pids.iterdir() if path.read_text()]) == 2, 60)
    finally:
        parent.kill()
        parent.wait()
    ranks = [int(path.read_text()) for path in pids.iterdir()]
    wait_until(lambda: not any(is_running(pid) for pid in ranks), 10)


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)
