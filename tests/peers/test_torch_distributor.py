"""What TorchDistributor does wrong and a gang does right; and that the installed one still does it."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import pytest
import torch.distributed as dist
from pyspark import cloudpickle as spark_cloudpickle

from sparktrain.dataset import open_dataset
from sparktrain.errors import RankFailed
from sparktrain.gang import Gang
from sparktrain.testing import write_tiny_dataset
from sparktrain.world import World
from tests.fixtures.processes import descendants, is_running, listening_addresses

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = [pytest.mark.spark, pytest.mark.timeout(180)]

SCRIPT = """
    import sys, time

    def train():
        raise ValueError("rank's own words")

    for percent in range(0, 100, 25):
        print(f"{percent}%", end="\\r", flush=True)
        time.sleep(0.4)
    train()
"""


class Output:
    """What comes, and when."""

    def __init__(self) -> None:
        self.pieces: list[tuple[float, str]] = []

    def write(self, text: str) -> int:
        self.pieces.append((time.monotonic(), text))
        return len(text)

    def flush(self) -> None:
        pass

    @property
    def text(self) -> str:
        return "".join(text for _, text in self.pieces)

    def when(self, wanted: str) -> float:
        """When all up to the first `wanted` was there."""
        so_far = ""
        for moment, text in self.pieces:
            so_far += text
            if wanted in so_far:
                return moment
        raise AssertionError(f"{wanted!r} did not come: {so_far!r}")


@pytest.fixture
def script(tmp_path: Path) -> Path:
    file = tmp_path / "train.py"
    file.write_text(dedent(SCRIPT))
    return file


def run_script(file: str) -> None:
    runpy.run_path(file, run_name="__main__")


def test_a_script_that_raises_is_an_error_with_its_own_words_and_lines(
    spark: SparkSession, script: Path
) -> None:
    with pytest.raises(RankFailed) as failed:
        Gang(spark, ranks=2).run(run_script, str(script))
    lines = str(failed.value).splitlines()
    assert "ValueError: rank's own words" in lines[0]
    assert any(str(script) in line and "in train" in line for line in lines)
    assert """raise ValueError("rank's own words")""" in str(failed.value)


def test_progress_bars_arrive_as_they_are_drawn(spark: SparkSession, script: Path) -> None:
    output = Output()
    with pytest.raises(RankFailed):
        Gang(spark, ranks=1, on_output=output.write).run(run_script, str(script))
    assert "0%\r25%\r50%\r75%\r" in output.text
    assert output.when("75%\r") - output.when("0%\r") > 0.6, "all came at once, at the end"


def test_values_are_those_of_their_ranks_whoever_ends_last(spark: SparkSession) -> None:
    assert Gang(spark, ranks=2).run(rank_0_ends_first) == [0, 1]


def rank_0_ends_first() -> int:
    rank = int(os.environ["RANK"])
    time.sleep(0.5 * rank)
    return rank


def test_bytes_that_are_no_text_arrive_live_and_end_nothing(spark: SparkSession) -> None:
    output = Output()
    assert Gang(spark, ranks=1, on_output=output.write).run(print_raw_bytes) == ["trained on"]
    ended = time.monotonic()
    assert "before \ufffd after" in output.text
    assert ended - output.when("\ufffd after") > 0.5, "it came at the end"


def print_raw_bytes() -> str:
    os.write(1, b"before \xff after\n")
    time.sleep(1.5)
    return "trained on"


@pytest.mark.parametrize("row_groups", [[[40]], [[40], []], [[30, 10]]])
def test_fewer_row_groups_than_ranks_are_no_reason_to_hang(
    spark: SparkSession, tmp_path: Path, row_groups: list[list[int]]
) -> None:
    dataset = write_tiny_dataset(tmp_path / "tiny", row_groups)
    gang = Gang(spark, ranks=2, collective_timeout_seconds=20)
    (first, first_rows), (second, second_rows) = gang.run(read_all, str(dataset.path))
    assert first == second == 5, "ranks must make equal steps"
    assert sorted(first_rows + second_rows) == list(range(40))


def read_all(path: str) -> tuple[int, list[int]]:
    rows: list[int] = []
    steps = 0
    for batch in open_dataset(Path(path)).stream(
        "train", 8, num_lanes=4, world=World.from_environment(), seed=0, tail="drop"
    ):
        dist.barrier()  # as a step's gradients are waited for
        rows += batch["row_id"].tolist()
        steps += 1
    return steps, rows


def test_a_cancelled_rank_and_all_it_started_are_gone_whatever_they_refuse(
    spark: SparkSession, tmp_path: Path
) -> None:
    def interrupt() -> None:
        wait_until(lambda: len(list(tmp_path.glob("*.pids"))) == 2, 60)
        os.kill(os.getpid(), signal.SIGINT)

    someone = threading.Thread(target=interrupt)
    someone.start()
    with pytest.raises(KeyboardInterrupt):
        Gang(spark, ranks=2).run(refuse_to_end, tmp_path)
    left = time.monotonic()
    someone.join()
    pids = [int(pid) for file in tmp_path.glob("*.pids") for pid in file.read_text().split()]
    assert len(pids) == 6
    wait_until(lambda: not any(is_running(pid) for pid in pids), 10)
    print(f"gone {time.monotonic() - left:.1f} s after run() was left")
    assert Gang(spark, ranks=2).run(rank_0_ends_first) == [0, 1], "the slots must be free again"


def refuse_to_end(directory: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: print("no"))
    threading.Thread(target=time.sleep, args=(600,)).start()
    deaf = "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)]; time.sleep(600)"
    children = [
        subprocess.Popen([sys.executable, "-c", deaf], start_new_session=is_own) for is_own in (False, True)
    ]
    file = directory / f"{dist.get_rank()}.pids"
    text = " ".join(str(pid) for pid in (os.getpid(), *(child.pid for child in children)))
    file.with_suffix(".part").write_text(text)
    file.with_suffix(".part").rename(file)
    while True:
        time.sleep(1)


def test_nobody_of_us_listens_where_strangers_could_come_in(spark: SparkSession, tmp_path: Path) -> None:
    values: list[Any] = []
    gang = threading.Thread(target=lambda: values.extend(Gang(spark, ranks=2).run(wait_for_go, tmp_path)))
    gang.start()
    try:
        wait_until(lambda: len(list(tmp_path.glob("*.pid"))) == 2, 60)
        ranks = [int(file.read_text()) for file in tmp_path.glob("*.pid")]
        family = [os.getpid(), *descendants(os.getpid())]
        assert set(ranks) <= set(family)
        found = {address for pid in family for address in listening_addresses(pid)}
        assert found, "rank 0 hosts a store, at least"
        assert all(address.is_loopback for address in found), found
    finally:
        (tmp_path / "go").touch()
        gang.join()
    assert values == [None, None]


def wait_for_go(directory: Path) -> None:
    (directory / f"{dist.get_rank()}.pid").write_text(str(os.getpid()))
    while not (directory / "go").exists():
        time.sleep(0.02)


def wait_until(condition: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)


# The same of TorchDistributor. Where one of these fails, it has been mended there: good for everybody.


@contextmanager
def captured() -> Iterator[Output]:
    output, before = Output(), sys.stdout
    sys.stdout = output  # type: ignore[assignment]
    try:
        yield output
    finally:
        sys.stdout = before


@pytest.mark.slow
def test_theirs_takes_a_script_that_raised_for_a_success_and_holds_its_progress_back(
    spark: SparkSession, script: Path
) -> None:
    from pyspark.ml.torch.distributor import TorchDistributor

    with captured() as output:
        value = TorchDistributor(num_processes=1, local_mode=True, use_gpu=False).run(str(script))
    assert value is None, "it raised nothing"
    assert "rank's own words" in output.text, "the script did run, and fail"
    assert output.when("75%") - output.when("0%") < 0.1, "1.2 s lie between the two"


@pytest.mark.slow
def test_theirs_ends_a_training_for_a_byte(spark: SparkSession, tmp_path: Path) -> None:
    from pyspark.ml.torch.distributor import TorchDistributor

    file = tmp_path / "train.py"
    mark = tmp_path / "trained-on"
    file.write_text(f"import os, time\nos.write(1, b'\\xff\\n')\ntime.sleep(2)\nopen({str(mark)!r}, 'w')\n")
    with captured(), pytest.raises(RuntimeError, match="UnicodeDecodeError"):
        TorchDistributor(num_processes=1, local_mode=True, use_gpu=False).run(str(file))
    assert not mark.exists()


@pytest.fixture
def code_by_value_for_spark() -> Iterator[None]:
    """Spark has a cloudpickle of its own, which knows nothing of the modules that ours is told to send."""
    module = sys.modules[__name__]
    spark_cloudpickle.register_pickle_by_value(module)
    yield
    spark_cloudpickle.unregister_pickle_by_value(module)


@pytest.mark.slow
@pytest.mark.usefixtures("code_by_value_for_spark")
def test_theirs_hides_the_user_s_words_gives_a_wrong_rank_s_value_and_listens_everywhere(
    spark: SparkSession,
) -> None:
    from pyspark.ml.torch.distributor import TorchDistributor

    distributor = TorchDistributor(num_processes=2, local_mode=True, use_gpu=False)
    with captured():
        assert distributor.run(rank_0_ends_first) == 1, "rank 0's value was wanted"

    errors: list[BaseException] = []

    def run_failing() -> None:
        try:
            TorchDistributor(num_processes=1, local_mode=False, use_gpu=False).run(fail)
        except BaseException as error:
            errors.append(error)

    training = threading.Thread(target=run_failing)
    training.start()
    addresses: Counter[str] = Counter()
    while training.is_alive():
        addresses.update(str(address) for address in listening_addresses(os.getpid()))
        time.sleep(0.1)
    assert "0.0.0.0" in addresses, addresses
    assert errors and "user's own words" not in str(errors[0])


def fail() -> None:
    raise ValueError("user's own words")
