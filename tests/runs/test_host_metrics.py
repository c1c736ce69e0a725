"""Samples of a host, from the thread that takes them to MLflow's history."""

from __future__ import annotations

import socket
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from sparktrain.dataset import Dataset
from sparktrain.runs.events import EventReader, EventWriter
from sparktrain.runs.follow import deliver_all
from sparktrain.runs.host_metrics import HostMetrics
from sparktrain.runs.tracking import Tracker
from tests.fixtures.tiny_model import new_run, tiny_config

HOST = f"system/{socket.gethostname()}"


def test_a_host_is_sampled_and_mlflow_gets_each_second_once(root: Path, dataset: Dataset) -> None:
    run = new_run(root)
    for attempt in (1, 2):
        with EventWriter(run.events, 0, attempt) as emit, HostMetrics(emit, run.began, 1.0):
            until = time.monotonic() + 2.6
            while time.monotonic() < until:  # this process is what keeps a CPU busy
                pass
    samples = EventReader(run.events).poll()
    assert len(samples) >= 3 and {sample["kind"] for sample in samples} == {"system"}
    for sample in samples:
        assert abs(run.began + sample["step"] - sample["time"]) < 2
    values = samples[-1]["values"]
    assert 0 < values[f"{HOST}/cpu_percent"] <= 100
    total = psutil.virtual_memory().total
    assert 0 < values[f"{HOST}/memory_percent"] <= 100 and 0 < values[f"{HOST}/memory_bytes"] < total
    assert values[f"{HOST}/network_received_bytes_per_second"] >= 0
    tracker = Tracker.start(run, tiny_config(root), dataset)
    for _ in range(2):
        deliver_all(run, tracker)
    history = tracker.client.get_metric_history(tracker.run_id, f"{HOST}/cpu_percent")
    assert sorted(m.step for m in history) == sorted({sample["step"] for sample in samples})
    assert max(Counter(m.step for m in history).values()) == 1


def test_what_can_not_be_read_ends_no_training(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise OSError("no /proc")

    events: list[Mapping[str, Any]] = []
    monkeypatch.setattr(psutil, "disk_io_counters", broken)
    monkeypatch.setattr(psutil, "net_io_counters", lambda **_: broken())
    with HostMetrics(events.append, time.time(), 1.0):
        time.sleep(1.5)
    assert {key.rpartition("/")[2] for key in events[0]["values"]} == {
        "cpu_percent",
        "memory_percent",
        "memory_bytes",
    }
    assert len(events) == 2, "one after a second, and one at the end"
    monkeypatch.setattr(psutil, "virtual_memory", broken)
    with HostMetrics(events.append, time.time(), 1.0):
        time.sleep(1.5)
    assert len(events) == 2 and "no more metrics of this host: OSError: no /proc" in caplog.text


def test_a_training_that_is_over_at_once_has_a_look_too() -> None:
    events: list[Mapping[str, Any]] = []
    with HostMetrics(events.append, time.time(), 10.0):
        pass
    [event] = events
    assert any(name.endswith("/cpu_percent") for name in event["values"])


def test_gpus_are_told_by_number_and_one_that_does_not_answer_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No GPU here: the driver's library is played by a module with the calls that are made."""

    class NVMLError(Exception):
        pass

    def rates(device: int) -> SimpleNamespace:
        if device == 1:
            raise NVMLError("not supported on a slice")
        return SimpleNamespace(gpu=42)

    library = {
        "NVMLError": NVMLError,
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda number: number,
        "nvmlDeviceGetMemoryInfo": lambda device: SimpleNamespace(used=1 << 30),
        "nvmlDeviceGetUtilizationRates": rates,
    }
    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(**library))
    events: list[Mapping[str, Any]] = []
    with HostMetrics(events.append, time.time(), 1.0):
        time.sleep(1.5)
    gpus = {key.rpartition("/")[2]: v for key, v in events[0]["values"].items() if "/gpu_" in key}
    assert gpus == {"gpu_0_memory_bytes": 1 << 30, "gpu_0_percent": 42, "gpu_1_memory_bytes": 1 << 30}
