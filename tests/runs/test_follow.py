from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from sparktrain.runs import follow
from sparktrain.runs.directory import RunDirectory
from sparktrain.runs.events import EventWriter
from sparktrain.runs.follow import Follower


class Recorder:
    """Takes metrics, except while it is down."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.is_down = False
        self.num_failures = 0
        self.blocked_until: threading.Event | None = None

    def log_events(self, events: Sequence[Mapping[str, Any]]) -> None:
        if self.blocked_until is not None:
            self.blocked_until.wait(30)
        if self.is_down:
            self.num_failures += 1
            raise ConnectionError("Connection refused")
        self.steps += [event["step"] for event in events]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path, "flights")


def write(run: RunDirectory, *steps: int, attempt: int = 1) -> None:
    with EventWriter(run.events, 0, attempt) as writer:
        for step in steps:
            writer({"kind": "metrics", "step": step, "values": {"loss": 0.5}})
            writer({"kind": "progress", "step": step, "num_steps": 9, "epoch": 0})


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited 20 s in vain"
        time.sleep(0.01)


def follower(run: RunDirectory, tracker: Recorder, seen: list[dict[str, Any]] | None = None) -> Follower:
    on_event = None if seen is None else seen.append
    return Follower(run, tracker, on_event, interval_seconds=0.01)


def test_metrics_reach_the_tracker_and_every_event_the_callback(run: RunDirectory) -> None:
    tracker, seen = Recorder(), list[dict[str, Any]]()
    with follower(run, tracker, seen):
        write(run, 1, 2)
        wait_for(lambda: tracker.steps == [1, 2] and len(seen) == 4)
        write(run, 3)
        wait_for(lambda: tracker.steps == [1, 2, 3])
    assert [event["kind"] for event in seen] == ["metrics", "progress"] * 3


def test_stopping_delivers_what_came_last(run: RunDirectory) -> None:
    tracker, seen = Recorder(), list[dict[str, Any]]()
    watcher = Follower(run, tracker, seen.append, interval_seconds=60).start()
    write(run, 1, 2)
    watcher.stop()
    assert tracker.steps == [1, 2]
    assert len(seen) == 4
    assert not run.spill_file.exists()


def test_what_a_tracker_did_not_take_is_delivered_once_it_does(
    run: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Recorder()
    tracker.is_down = True
    with caplog.at_level(logging.WARNING), follower(run, tracker):
        write(run, 1)
        wait_for(lambda: tracker.num_failures >= 3)
        write(run, 2)
        tracker.is_down = False
        wait_for(lambda: tracker.steps == [1, 2])
    assert caplog.text.count("does not take metrics now") == 1  # once an outage, not once a retry
    assert "takes metrics again" in caplog.text
    assert not run.spill_file.exists()


def test_what_was_never_delivered_is_spilled_with_a_warning(
    run: RunDirectory, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "_SEGMENTS_PER_CALL", 1)
    tracker = Recorder()
    tracker.is_down = True
    with caplog.at_level(logging.WARNING), follower(run, tracker):
        for step in (1, 2, 3):
            write(run, step)
        wait_for(lambda: tracker.num_failures >= 1)
    spilled = [json.loads(line) for line in run.spill_file.read_text().splitlines()]
    assert [event["step"] for event in spilled] == [1, 2, 3]
    assert "MLflow did not confirm 3 metric events" in caplog.text
    assert str(run.spill_file) in caplog.text


def test_a_slow_tracker_does_not_delay_progress(run: RunDirectory) -> None:
    tracker, seen = Recorder(), list[dict[str, Any]]()
    tracker.blocked_until = threading.Event()
    with follower(run, tracker, seen):
        write(run, 1)
        write(run, 2)
        wait_for(lambda: len(seen) == 4)
        assert tracker.steps == []
        tracker.blocked_until.set()
    assert tracker.steps == [1, 2]


def test_memory_is_bounded_while_a_tracker_is_away(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "_SEGMENTS_PER_CALL", 2)
    tracker = Recorder()
    tracker.is_down = True
    watcher = follower(run, tracker).start()
    for step in range(10):
        write(run, step)
    wait_for(lambda: tracker.num_failures >= 3)
    assert len(watcher._pending) <= 2
    tracker.is_down = False
    watcher.stop()
    assert tracker.steps == list(range(10))


def test_a_callback_that_fails_does_not_stop_the_others(
    run: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    tracker, seen = Recorder(), []

    def fails_once(event: dict[str, Any]) -> None:
        seen.append(event)
        if len(seen) == 1:
            raise ValueError("a bar without a terminal")

    with Follower(run, tracker, fails_once, interval_seconds=0.01):
        write(run, 1)
        wait_for(lambda: len(seen) == 2)
    assert tracker.steps == [1]
    assert "the progress callback failed" in caplog.text


def test_without_a_tracker_events_are_still_watched(run: RunDirectory) -> None:
    seen: list[dict[str, Any]] = []
    with Follower(run, on_event=seen.append, interval_seconds=0.01):
        write(run, 1)
    assert len(seen) == 2


def test_a_tracker_that_does_not_answer_is_given_up_and_its_metrics_are_spilled(
    run: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Recorder()
    tracker.blocked_until = threading.Event()
    watcher = follower(run, tracker).start()
    write(run, 1)
    wait_for(lambda: len(watcher._pending) == 1)
    write(run, 2)
    started = time.monotonic()
    watcher.stop(timeout_seconds=0.5)
    assert time.monotonic() - started < 10
    spilled = [json.loads(line) for line in run.spill_file.read_text().splitlines()]
    assert [event["step"] for event in spilled] == [1, 2]
    assert run.replay_command in caplog.text
    tracker.blocked_until.set()
    wait_for(lambda: tracker.steps == [1])  # it had been on its way; a replay leaves it out


def test_what_an_attempt_before_spilled_is_gone_once_it_is_delivered(run: RunDirectory) -> None:
    run.spill_file.write_text("of an attempt before")
    tracker = Recorder()
    with follower(run, tracker):
        write(run, 1)
    assert tracker.steps == [1]
    assert not run.spill_file.exists()
