"""Gangs on Spark: every rank's value, the culprit's name, and nothing left behind in Spark's workers."""

from __future__ import annotations

import os
import pickle
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import FrozenInstanceError
from functools import partial
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
import torch
import torch.distributed as dist

from sparktrain.config import TrainConfig
from sparktrain.errors import (
    EXIT_CONFIG,
    EXIT_DATA,
    AttemptExists,
    DataError,
    NotEnoughSlots,
    NotPicklable,
    RankFailed,
    RankLost,
    ValueUnreadable,
)
from sparktrain.gang import Gang
from sparktrain.gang.blame import diagnose
from sparktrain.gang.rank import RunSpec
from sparktrain.gang.spec import GangSpec
from sparktrain.gang.worker import ANSWER_SCHEMA, run_rank
from sparktrain.world import World
from tests.fixtures.tiny_task import TinyTask

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

spark_test = pytest.mark.spark


@spark_test
def test_values_come_back_by_rank(spark: SparkSession) -> None:
    found = Gang(spark, ranks=2).run(sum_over_ranks, 10.0)
    assert found == [(0, 21.0, World(rank=0, size=2)), (1, 21.0, World(rank=1, size=2, local_rank=1))]


def sum_over_ranks(value: float) -> tuple[int, float, World]:
    total = torch.tensor(value + dist.get_rank())
    dist.all_reduce(total)
    return dist.get_rank(), float(total), World.from_environment()


@spark_test
def test_a_gang_of_one_has_a_process_group_too(spark: SparkSession) -> None:
    assert Gang(spark, ranks=1).run(sum_over_ranks, 1.0) == [(0, 1.0, World())]


@spark_test
def test_no_value_is_none_of_each_rank(spark: SparkSession) -> None:
    assert Gang(spark, ranks=2).run(nothing) == [None, None]


def nothing() -> None:
    pass


@spark_test
def test_the_active_session_is_taken_when_none_is_given(spark: SparkSession) -> None:
    assert Gang(ranks=1).run(nothing) == [None]


@spark_test
def test_a_function_may_leave_the_process_group_by_itself(spark: SparkSession) -> None:
    for _ in range(3):
        assert Gang(spark, ranks=2).run(leave_group) == [0, 1]


def leave_group() -> int:
    rank = dist.get_rank()
    dist.destroy_process_group()
    return rank


@spark_test
def test_ranks_know_who_they_are_and_have_their_threads(spark: SparkSession) -> None:
    found = Gang(spark, ranks=2, cpus_per_rank=3, attempt=7).run(surroundings)
    for rank, here in enumerate(found):
        assert here["threads"] == [3, 3]
        wanted = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "SPARKTRAIN_ATTEMPT": "7"}
        assert {name: here["environment"].get(name) for name in wanted} == wanted
        assert here["environment"]["OMP_NUM_THREADS"] == "3"
        assert not any("TRACKING" in name for name in here["environment"])


def surroundings() -> dict[str, Any]:
    threads = [torch.get_num_threads(), pa.cpu_count()]
    return {"environment": dict(os.environ), "threads": threads, "worker": parent_of(os.getppid())}


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def inspect_worker(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """An ordinary Spark task: what the worker is like between gangs."""
    for _ in batches:
        pass
    time.sleep(0.3)  # both workers shall get a task
    here = {
        "environment": sorted(os.environ.items()),
        "threads": [torch.get_num_threads(), pa.cpu_count()],
        "num_files": len(os.listdir("/proc/self/fd")),
        "num_threads": len(os.listdir("/proc/self/task")),
        "streams": [type(sys.stdout).__name__, sys.stdout.fileno(), sys.stderr.fileno()],
        "folder": os.getcwd(),
    }
    yield pa.RecordBatch.from_pydict({"pid": [os.getpid()], "here": [pickle.dumps(here)]})


def workers_now(spark: SparkSession) -> dict[int, dict[str, Any]]:
    looks = spark.range(0, 2, 1, 2).mapInArrow(inspect_worker, "pid long, here binary")
    # Idle workers take turns, and other tests of this session may have left more than two.
    return {row["pid"]: pickle.loads(row["here"]) for _ in range(4) for row in looks.collect()}


@spark_test
def test_ten_gangs_leave_spark_s_workers_as_they_were(spark: SparkSession) -> None:
    Gang(spark, ranks=2).run(sum_over_ranks, 1.0)
    before = workers_now(spark)
    pids = set()
    for _ in range(10):
        pids |= {here["worker"] for here in Gang(spark, ranks=2, cpus_per_rank=2).run(surroundings)}
    after = workers_now(spark)
    assert pids & before.keys() & after.keys(), "no worker was used again: nothing was tested"
    for pid in pids & before.keys() & after.keys():
        assert after[pid] == before[pid]


@spark_test
def test_more_ranks_than_slots_is_refused_at_once(spark: SparkSession) -> None:
    started = time.monotonic()
    with pytest.raises(NotEnoughSlots, match="needs 5 slots, the cluster has 2") as refused:
        Gang(spark, ranks=5).run(nothing)
    assert time.monotonic() - started < 2
    assert refused.value.exit_code == EXIT_CONFIG


@spark_test
def test_an_argument_that_cannot_be_sent_is_named(spark: SparkSession) -> None:
    with pytest.raises(NotPicklable, match="can't be pickled: lock") as refused:
        Gang(spark, ranks=2).run(take, 1, threading.Lock())
    assert "inside the function" in str(refused.value)


def take(*values: Any) -> int:
    return len(values)


@spark_test
def test_whatever_is_printed_lands_in_the_rank_s_log(spark: SparkSession, tmp_path: Path) -> None:
    assert Gang(spark, ranks=2, directory=tmp_path / "gang").run(print_wildly) == ["done", "done"]
    for rank in range(2):
        log = (tmp_path / "gang" / "logs" / f"rank-{rank:03d}.log").read_bytes()
        expected = [
            b"r\xc3\xa9sum\xc3\xa9",
            b"\\udcff",
            b"\xff\xfe\x00raw",
            b"10%\r20%\r",
            b"of a child",
            b"to stderr",
        ]
        assert [text for text in expected if text not in log] == []
        assert f"rank {rank}".encode() in log


def print_wildly() -> str:
    print(f"rank {dist.get_rank()}: résumé \udcff")
    for percent in (10, 20):
        print(f"{percent}%", end="\r")
    sys.stdout.flush()
    os.write(1, b"\xff\xfe\x00raw\n")
    print("to stderr", file=sys.stderr)
    subprocess.run(["echo", "of a child"], check=True)
    return "done"


@spark_test
def test_only_the_owner_may_look_into_the_gang_s_directory(spark: SparkSession, tmp_path: Path) -> None:
    directory = tmp_path / "runs" / "attempt-001"
    Gang(spark, ranks=2, directory=directory).run(nothing)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert (directory / "rendezvous.json").exists()
    assert stat.S_IMODE((directory / "logs" / "rank-000.log").stat().st_mode) == 0o600


@spark_test
def test_a_directory_serves_one_attempt(spark: SparkSession, tmp_path: Path) -> None:
    gang = Gang(spark, ranks=1, directory=tmp_path / "gang")
    gang.run(nothing)
    with pytest.raises(AttemptExists, match="exists already"):
        gang.run(nothing)


@spark_test
def test_the_culprit_is_named_and_not_its_victim(spark: SparkSession) -> None:
    started = time.monotonic()
    with pytest.raises(RankFailed) as failed:
        Gang(spark, ranks=2).run(break_one, 1)
    assert time.monotonic() - started < 20
    assert failed.value.rank == 1
    assert failed.value.message == "KeyError: 'no such thing'"
    lines = str(failed.value).splitlines()
    assert "test_gang.py" in lines[1] and "break_one" in lines[1]
    assert "pyspark" not in "\n".join(lines).partition("Full logs")[0]
    assert failed.value.__context__ is None, "the JVM's stack would cover the screen"


def break_one(culprit: int) -> None:
    if dist.get_rank() == culprit:
        raise KeyError("no such thing")
    dist.barrier()


@spark_test
def test_a_temporary_directory_goes_after_success_and_stays_after_failure(
    spark: SparkSession, temporary_files: Path
) -> None:
    Gang(spark, ranks=1).run(nothing)
    assert list(temporary_files.iterdir()) == []
    with pytest.raises(RankFailed) as failed:
        Gang(spark, ranks=1).run(find_bad_data)
    assert failed.value.exit_code == EXIT_DATA, "it is to be that of the rank's error"
    (directory,) = temporary_files.iterdir()
    logs = [line.removeprefix("  - ") for line in str(failed.value).splitlines() if line.startswith("  - ")]
    assert len(logs) == 2
    assert all(Path(log).is_file() and Path(log).is_relative_to(directory) for log in logs)


def find_bad_data() -> None:
    raise DataError("bad rows")


@spark_test
def test_leaving_by_sys_exit_is_an_error_even_with_code_0(spark: SparkSession) -> None:
    with pytest.raises(RankFailed, match=r"rank 1 .*SystemExit: 0"):
        Gang(spark, ranks=2).run(exit_one)


def exit_one() -> None:
    if dist.get_rank() == 1:
        sys.exit(0)
    dist.barrier()


@spark_test
def test_ranks_that_leave_without_a_value_are_lost(spark: SparkSession) -> None:
    with pytest.raises(RankLost, match=r"process \d+ on \S+: exit code 0"):
        Gang(spark, ranks=1).run(os._exit, 0)


@spark_test
def test_who_shows_the_output_can_neither_fail_nor_stop_a_gang(spark: SparkSession) -> None:
    def show(text: str) -> None:
        raise OSError("the terminal is gone")

    assert Gang(spark, ranks=2, on_output=show).run(print_wildly) == ["done", "done"]


@spark_test
def test_a_value_that_the_driver_cannot_read_is_told(spark: SparkSession) -> None:
    with pytest.raises(
        ValueUnreadable, match=r"rank 0 returned can't be read on the driver \(ModuleNotFound"
    ):
        Gang(spark, ranks=1).run(value_of_a_module_of_its_own)


def value_of_a_module_of_its_own() -> object:
    import types

    module = types.ModuleType("only_here")
    exec("class Value: pass", module.__dict__)
    sys.modules["only_here"] = module
    return module.Value()


@spark_test
def test_ranks_end_also_where_the_wish_that_they_do_cannot_be_written(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GangSpec, "stop_file", property(lambda spec: spec.directory / "no folder" / "stop"))
    interrupt = threading.Timer(6, os.kill, (os.getpid(), signal.SIGINT))
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        Gang(spark, ranks=2, directory=tmp_path / "gang").run(time.sleep, 600)
    ended = [tmp_path / "gang" / "ranks" / f"rank-{rank:03d}-ended.json" for rank in range(2)]
    assert all(file.exists() for file in ended), "ranks live on"


@spark_test
@pytest.mark.parametrize("peers_wait", [True, False], ids=["in_a_collective", "elsewhere"])
def test_a_killed_rank_is_lost_and_named_and_its_last_lines_kept(
    spark: SparkSession, tmp_path: Path, peers_wait: bool
) -> None:
    started = time.monotonic()
    with pytest.raises(
        RankLost, match=r"rank 1 ended without an error of its own \(process \d+ on \S+: killed by SIGKILL"
    ):
        Gang(spark, ranks=2, directory=tmp_path / "gang").run(kill_one, peers_wait)
    assert time.monotonic() - started < 20
    assert "last words" in (tmp_path / "gang" / "logs" / "rank-001.log").read_text()


def kill_one(peers_wait: bool) -> None:
    if dist.get_rank() == 1:
        print("last words")
        os.kill(os.getpid(), signal.SIGKILL)
    if peers_wait:
        dist.barrier()
    time.sleep(60)


@spark_test
def test_a_rank_that_hangs_is_named_after_the_collective_timeout(spark: SparkSession) -> None:
    started = time.monotonic()
    with pytest.raises(RankLost, match="rank 1 ended"):
        Gang(spark, ranks=2, collective_timeout_seconds=2).run(hang_one)
    assert 2 < time.monotonic() - started < 30


def hang_one() -> None:
    if dist.get_rank() == 1:
        time.sleep(120)
    dist.barrier()


@spark_test
def test_ranks_that_are_no_barrier_tasks_are_refused(spark: SparkSession, tmp_path: Path) -> None:
    spec = GangSpec(directory=tmp_path, size=2, token="t", payload=b"")
    ordinary = spark.range(0, 2, 1, 2).mapInArrow(partial(run_rank, spec=spec), ANSWER_SCHEMA)
    with pytest.raises(Exception, match="dropped barrier mode") as refused:
        ordinary.collect()
    assert "Spark started 0 barrier tasks, the gang needs 2" in str(diagnose(spec, str(refused.value)))


@spark_test
def test_a_gang_starts_after_all_those_failures(spark: SparkSession) -> None:
    assert Gang(spark, ranks=2).run(nothing) == [None, None]


@spark_test
@pytest.mark.slow
def test_ranks_on_executors_of_their_own_meet(tmp_path: Path) -> None:
    script = """
        import os, sys
        from pathlib import Path
        from sparktrain.gang import Gang
        from sparktrain.testing import spark_session

        def who(number):
            import torch, torch.distributed as dist
            total = torch.ones(1)
            dist.all_reduce(total)
            return dist.get_rank(), float(total), number, os.getppid()

        with spark_session("local-cluster[2,1,1024]") as spark:
            found = Gang(spark, ranks=2, directory=Path("gang")).run(who, 5)
        assert [value[:3] for value in found] == [(0, 2.0, 5), (1, 2.0, 5)], found
        assert found[0][3] != found[1][3], "one executor ran both"
        print("met")
    """
    done = subprocess.run(
        [sys.executable, "-c", dedent(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.stdout.endswith("met\n"), done.stderr
    assert len(list((tmp_path / "gang" / "logs").iterdir())) == 2


@pytest.mark.parametrize(
    "spec",
    [
        GangSpec(directory=Path("/gang"), size=2, token="secret", payload=b"call"),
        RunSpec(Path("/run"), Path("/dataset"), TinyTask(), TrainConfig(), None),
    ],
    ids=["GangSpec", "RunSpec"],
)
def test_specs_are_frozen_and_survive_pickling(spec: Any) -> None:
    assert pickle.loads(pickle.dumps(spec)) == spec
    with pytest.raises(FrozenInstanceError):
        spec.attempt = 2


def test_a_spec_does_not_show_its_secret() -> None:
    assert "secret" not in repr(GangSpec(directory=Path("/gang"), size=2, token="secret", payload=b"secret"))


def test_a_gang_without_ranks_is_refused() -> None:
    with pytest.raises(ValueError, match="ranks is 0; a gang has at least 1"):
        Gang(ranks=0)
