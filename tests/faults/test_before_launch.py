"""Faults that are found before a gang exists: too few slots (R6), a Task that can't be sent (R46)."""

from __future__ import annotations

import pickle
import sys
import threading
import time
from pathlib import Path
from textwrap import dedent

import pyspark
import pytest
from pyspark.sql import SparkSession

import sparktrain
from sparktrain.config import parse_config
from sparktrain.errors import EXIT_CONFIG, NotEnoughSlots, NotPicklable
from sparktrain.testing import write_tiny_dataset
from tests.fixtures.scripts import run_script

HAS_CONNECT = pyspark.__version__ >= "4"  # Spark 3.5 brings no Connect server in its package

SLOTS = """
    import json, sys, time

    from sparktrain.errors import NotEnoughSlots
    from sparktrain.gang import Gang
    from sparktrain.testing import spark_session

    with spark_session(sys.argv[1]) as spark:
        spark.range(2).count()
        started = time.monotonic()
        try:
            Gang(spark, ranks=4, directory="gang").run(print)
            text = "nobody refused"
        except NotEnoughSlots as error:
            text = str(error)
        print(json.dumps({"text": text, "seconds": time.monotonic() - started}))
"""

ON_THEIR_WAY = """
    import json, os, signal, time
    from pathlib import Path

    from sparktrain.gang import Gang
    from sparktrain.gang.slots import num_slots
    from sparktrain.testing import spark_session

    def executors():
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                ours = os.environ["THIS_TEST"] in (folder / "environ").read_text()
                if ours and "CoarseGrainedExecutorBackend" in (folder / "cmdline").read_text():
                    found.append(int(folder.name))
            except OSError:
                continue
        return found

    os.environ["THIS_TEST"] = str(time.time_ns())
    with spark_session("local-cluster[2,1,1024]") as spark:
        Gang(spark, ranks=2, directory="first").run(abs, -1)  # both are there
        os.kill(executors()[0], signal.SIGKILL)  # Spark starts another one, which takes it seconds
        deadline = time.monotonic() + 20
        while (before := num_slots(spark)) == 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        values = Gang(spark, ranks=2, directory="gang").run(abs, -1)
        print(json.dumps({"before": before, "values": values}))
"""

LOCKED = """
    import threading

    from sparktrain.training.task import BinaryClassification


    class Tokenizer:
        def __init__(self):
            self.cache = {"lock": threading.Lock()}


    class Task(BinaryClassification):
        def __init__(self):
            self.tokenizer = Tokenizer()

        def build_model(self, features):
            raise AssertionError("the task is looked at first")
"""


@pytest.mark.spark
def test_r6_more_ranks_than_slots_is_refused_before_a_run_exists(spark: SparkSession, tmp_path: Path) -> None:
    from pipelines.flight_delays.model import Task

    assert spark.sparkContext.defaultParallelism == 2, "the fault"
    settings = {
        "pipeline": "flight_delays",
        "storage": {"root": tmp_path / "out"},
        "train": {"ranks": 4, "global_batch_size": 64},
    }
    settings["spark"] = {"master": "spark://elsewhere:7077"}  # else the configuration alone would refuse it
    dataset = write_tiny_dataset(tmp_path / "dataset", 400, validation_rows=100)
    started = time.monotonic()
    with pytest.raises(NotEnoughSlots, match="needs 4 slots, the cluster has 2") as refused:
        sparktrain.train(dataset, Task(), parse_config(settings), spark=spark)
    assert time.monotonic() - started < 5
    assert refused.value.exit_code == EXIT_CONFIG
    assert not (tmp_path / "out").exists(), "no run, no files"


@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("mode", ["standalone[2,1,1024]", *(["connect[2]"] if HAS_CONNECT else [])])
def test_r6_more_ranks_than_slots_is_refused_within_5_seconds(mode: str, tmp_path: Path) -> None:
    found = run_script(SLOTS, tmp_path, mode, timeout_seconds=190)
    assert "needs 4 slots, the cluster has 2" in found["text"]
    assert found["seconds"] < 5
    assert not (tmp_path / "gang").exists()


@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.timeout(200)
def test_r6_executors_that_are_on_their_way_are_waited_for(tmp_path: Path) -> None:
    found = run_script(ON_THEIR_WAY, tmp_path, timeout_seconds=190)
    assert found["before"] < 2, "the executors were there already: nothing was tested"
    assert found["values"] == [1, 1]


def test_r46_a_task_that_cannot_be_sent_is_named_before_a_run_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "code" / "locked"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "model.py").write_text(dedent(LOCKED))
    monkeypatch.syspath_prepend(str(package.parent))
    from locked.model import Task  # type: ignore[import-not-found]

    task = Task()
    with pytest.raises(TypeError, match="cannot pickle"):  # the fault
        pickle.dumps(task)
    config = parse_config({"pipeline": "flight_delays", "storage": {"root": tmp_path / "out"}})
    dataset = write_tiny_dataset(tmp_path / "dataset", 400, validation_rows=100)
    with pytest.raises(NotPicklable) as refused:
        sparktrain.train(dataset, task, config)
    text = str(refused.value)
    assert "Task, in its .tokenizer.cache['lock'] (a lock)" in text
    assert "create locks, connections and models inside the function or in build_model()" in text
    assert refused.value.exit_code == EXIT_CONFIG
    assert not (tmp_path / "out").exists(), "no run, no files"
    del sys.modules["locked.model"], sys.modules["locked"]


def test_r46_a_function_is_named_with_the_variable_that_it_holds() -> None:
    from sparktrain.testing import run_ranks

    lock = threading.Lock()
    with pytest.raises(NotPicklable, match=r"function .*lambda.*, in its \.lock \(a lock\)"):
        run_ranks(1, lambda: lock)
