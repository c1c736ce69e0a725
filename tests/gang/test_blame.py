"""Who is to blame, and which lines of a traceback people want to see."""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import sparktrain
from sparktrain.errors import ExecutorUnfit, NonFiniteLoss, RankFailed, RankLost, SparkFailed, StepFailed
from sparktrain.gang.blame import diagnose, is_own_file, is_victim, user_lines, write_error
from sparktrain.gang.spec import GangSpec
from sparktrain.world import World

CLOSED = (
    "[/__w/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer "
    "[127.0.0.1]:16298. This is typically caused by a remote worker crashing."
)


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        if cause is None:
            raise error
        raise error from cause
    except BaseException as caught:
        return caught


def spec_in(directory: Path, size: int = 3) -> GangSpec:
    spec = GangSpec(directory=directory, size=size, token="t", payload=b"")
    spec.create_folders()
    return spec


def fail(spec: GangSpec, rank: int, error: BaseException) -> None:
    write_error(spec, World(rank=rank, size=spec.size), raised(error))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(CLOSED),
        RuntimeError(
            "[../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 2000ms"
        ),
        RuntimeError("Gloo connectFullMesh failed with [..]"),
        RuntimeError("[gloo/transport/tcp/pair.cc:144] writev [127.0.0.1]:12: Broken pipe"),
        dist.DistBackendError("NCCL communicator was aborted"),
        dist.DistNetworkError("failed to recv, got 0 bytes"),
    ],
)
def test_who_lost_a_peer_is_a_victim(error: BaseException) -> None:
    assert is_victim(error)
    assert is_victim(raised(ValueError("training failed"), cause=error))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("peer review score is missing"),
        RuntimeError("connection closed by the feature store"),
        RuntimeError("Timed out waiting for a lock"),
        RuntimeError("[enforce fail at gloo/gloo/allreduce.cc:12] op.nbytes == 8. 4 vs 8"),
        ConnectionResetError("connection reset by peer"),
        ValueError(CLOSED),
    ],
)
def test_who_only_speaks_of_peers_is_no_victim(error: BaseException) -> None:
    assert not is_victim(error)


def test_errors_that_are_their_own_cause_end_the_search() -> None:
    error = ValueError("round and round")
    assert not is_victim(raised(error, cause=error))


def test_the_first_rank_that_raised_on_its_own_account_is_the_culprit(tmp_path: Path) -> None:
    spec = spec_in(tmp_path)
    fail(spec, 0, RuntimeError(CLOSED))
    fail(spec, 2, KeyError("mine"))
    fail(spec, 1, KeyError("later"))
    found = diagnose(spec, "Job aborted")
    assert isinstance(found, RankFailed)
    assert (found.rank, found.message) == (2, "KeyError: 'mine'")


def test_a_silent_rank_is_lost_when_all_others_are_victims(tmp_path: Path) -> None:
    spec = spec_in(tmp_path)
    fail(spec, 0, RuntimeError(CLOSED))
    fail(spec, 2, RuntimeError(CLOSED))
    found = diagnose(spec, "Caused by: java.io.EOFException: gone\n\tat somewhere")
    assert isinstance(found, RankLost)
    assert "rank 1 ended without an error of its own (Caused by: java.io.EOFException: gone)" in str(found)
    assert (tmp_path / "launcher-error.log").read_text().endswith("somewhere")


def test_of_several_silent_ranks_the_one_that_spark_saw_failing_is_named(tmp_path: Path) -> None:
    report = (
        "org.apache.spark.SparkException: Could not recover from a failed barrier ResultStage. Most recent "
        "failure reason: Stage failed because barrier task ResultTask(41, 2) finished unsuccessfully.\n"
        "org.apache.spark.SparkException: Python worker exited unexpectedly (crashed). Consider setting"
    )
    found = diagnose(spec_in(tmp_path), report)
    assert "rank 2 ended without an error of its own (Python worker exited unexpectedly (crashed))" in str(
        found
    )


def test_ranks_that_all_lost_each_other_are_a_failure_of_the_first(tmp_path: Path) -> None:
    spec = spec_in(tmp_path, size=2)
    fail(spec, 1, dist.DistBackendError("NCCL error: invalid usage"))
    fail(spec, 0, dist.DistBackendError("NCCL communicator was aborted"))
    found = diagnose(spec, "")
    assert isinstance(found, RankFailed) and "invalid usage" in found.message


def test_without_any_trace_all_ranks_are_lost_and_a_reason_is_given(tmp_path: Path) -> None:
    assert "rank 0, 1, 2 ended" in str(diagnose(spec_in(tmp_path), ""))
    assert "(Spark gave no reason)" in str(diagnose(spec_in(tmp_path), ""))


UNFIT = """org.apache.spark.SparkException: Could not recover from a failed barrier ResultStage.
org.apache.spark.api.python.PythonException: Traceback (most recent call last):
  File "/opt/worker.py", line 3, in main
ModuleNotFoundError: No module named 'pyarrow'

\tat org.apache.spark.api.python"""


def test_an_executor_that_can_run_no_rank_is_not_taken_for_a_lost_one(tmp_path: Path) -> None:
    found = diagnose(spec_in(tmp_path), UNFIT)
    assert isinstance(found, ExecutorUnfit) and not found.is_transient
    assert "No module named 'pyarrow'" in str(found) and "tat org" not in str(found)


def end(spec: GangSpec, rank: int, status: str) -> None:
    told = {"rank": rank, "host": "h", "pid": 7, "status": status, "step": None, "time": float(rank)}
    spec.end_file(rank).write_text(json.dumps(told))


def test_values_that_spark_did_not_bring_are_no_loss_of_ranks(tmp_path: Path) -> None:
    spec = spec_in(tmp_path, size=2)
    for rank in range(2):
        end(spec, rank, "exit code 0")
    found = diagnose(spec, "Caused by: java.lang.Exception: bigger than spark.driver.maxResultSize")
    assert isinstance(found, SparkFailed) and not found.is_transient
    assert "bigger than spark.driver.maxResultSize" in str(found)


def test_who_leaves_without_a_value_is_named_and_who_gave_one_is_not(tmp_path: Path) -> None:
    spec = spec_in(tmp_path, size=2)
    for rank in range(2):
        end(spec, rank, "exit code 0")
    found = diagnose(spec, "", answered={0})
    assert "rank 1 ended without an error of its own (process 7 on h: exit code 0)" in str(found)


def test_the_step_and_the_exit_code_come_along(tmp_path: Path) -> None:
    spec = spec_in(tmp_path, size=1)
    error = raised(StepFailed(17), cause=NonFiniteLoss(17, float("nan")))
    write_error(spec, World(), error)
    found = diagnose(spec, "")
    assert isinstance(found, RankFailed)
    assert (found.step, found.exit_code) == (17, NonFiniteLoss.exit_code)
    assert "at step 17 failed: The loss became nan by step 17" in str(found)


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text for you")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError("no file \udcff\udcfe"), "OSError: no file \\udcff\\udcfe"),
        (Unprintable(), "Unprintable: (its message can't be shown)"),
        (ValueError("résumé \x00 \r\n 你好"), "ValueError: résumé \x00 \r\n 你好"),
    ],
    ids=["surrogates", "unprintable", "odd characters"],
)
def test_any_message_reaches_the_driver(tmp_path: Path, error: BaseException, message: str) -> None:
    spec = spec_in(tmp_path, size=1)
    fail(spec, 0, error)
    found = diagnose(spec, "stack with \udcff")
    assert isinstance(found, RankFailed) and found.message == message
    str(found).encode()


STANDARD_LIBRARY = sysconfig.get_path("stdlib")


@pytest.mark.parametrize(
    "filename",
    [
        "/home/ann/venv/project/train.py",
        "/home/ann/lib/python3.11/project/train.py",
        "/home/ann/sparktrain/training/mine.py",
        "/tmp/spark-1/userFiles-2/pipelines.zip/pipelines/flights/model.py",
        "/venv/lib/python3.11/site-packages/our_pipelines/model.py",
        "<command-1234>",
        "<stdin>",
    ],
)
def test_these_files_are_the_users(filename: str) -> None:
    assert is_own_file(filename)


@pytest.mark.parametrize(
    "filename",
    [
        torch.__file__,
        f"{Path(sparktrain.__file__).parent}/training/loop.py",
        f"{STANDARD_LIBRARY}/contextlib.py",
        "/opt/spark/python/lib/pyspark.zip/pyspark/worker.py",
        "/venv/lib/python3.11/site-packages/pyspark/worker.py",
        "/usr/lib/python3/dist-packages/numpy/core.py",
        "<frozen importlib._bootstrap>",
        "<string>",
    ],
)
def test_these_files_are_not_the_users(filename: str) -> None:
    assert not is_own_file(filename)


def test_the_users_lines_leave_out_ours_and_torchs() -> None:
    lines = user_lines(error_of(lambda: torch.nn.Linear(2, 2)(torch.ones(3))))
    assert len(lines) == 2
    assert all("test_blame.py" in line for line in lines)
    assert lines[1].endswith("torch.nn.Linear(2, 2)(torch.ones(3))))")


def test_without_a_line_of_the_users_the_innermost_is_shown() -> None:
    code = compile("raise ValueError('inside')", f"{STANDARD_LIBRARY}/made_up.py", "exec")
    error = error_of(lambda: exec(code))
    error.__traceback__ = error.__traceback__.tb_next.tb_next  # type: ignore[union-attr]
    assert user_lines(error) == [f'  File "{STANDARD_LIBRARY}/made_up.py", line 1, in <module>']


def test_an_endless_recursion_does_not_fill_the_screen() -> None:
    def deeper() -> None:
        deeper()

    lines = user_lines(error_of(deeper))
    assert len(lines) == 9
    assert lines[2].endswith("more lines")


def error_of(function: Callable[[], object]) -> BaseException:
    try:
        function()
    except Exception as error:
        return error
    raise AssertionError("it did not raise")
