"""Samples of a host, from the thread that takes them to MLflow's history."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
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
    monkeypatch.setattr(psutil, "virtual_memory", broken)
    with HostMetrics(events.append, time.time(), 1.0):
        time.sleep(1.5)
    assert len(events) == 1 and "no more metrics of this host: OSError: no /proc" in caplog.text
