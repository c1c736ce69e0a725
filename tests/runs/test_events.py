from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest

from sparktrain.runs import events as events_module
from sparktrain.runs.events import EventReader, EventWriter


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def metrics(step: int, **values: float) -> dict[str, object]:
    return {"kind": "metrics", "step": step, "values": values}


def test_events_arrive_with_rank_attempt_and_time(tmp_path: Path) -> None:
    with EventWriter(tmp_path, rank=3, attempt=2) as write:
        write(metrics(1, loss=0.5))
    (event,) = EventReader(tmp_path).poll()
    assert event.pop("time") > 1e9
    assert event == {"kind": "metrics", "step": 1, "values": {"loss": 0.5}, "rank": 3, "attempt": 2}


def test_each_segment_is_read_once_in_order_of_attempt_rank_and_number(tmp_path: Path) -> None:
    reader = EventReader(tmp_path)
    for attempt, rank, step in [(2, 0, 5), (1, 1, 4), (1, 0, 1), (10, 0, 6), (1, 0, 2)]:
        with EventWriter(tmp_path, rank, attempt) as write:
            write(metrics(step))
    assert [event["step"] for event in reader.poll()] == [1, 2, 4, 5, 6]
    assert reader.poll() == []
    with EventWriter(tmp_path, 0, 1) as write:
        write(metrics(3))
    assert reader.has_new()
    assert [event["step"] for event in reader.poll()] == [3]
    assert not reader.has_new()


def test_a_writer_falls_silent_when_the_next_attempt_has_begun(tmp_path: Path) -> None:
    (tmp_path / "events").mkdir()
    reader = EventReader(tmp_path / "events")
    with EventWriter(tmp_path / "events", rank=0, attempt=9) as write:
        write({"kind": "phase", "name": "train"})
        (tmp_path / "attempt-010").mkdir()
        write({"kind": "phase", "name": "validation"})
    assert [event["name"] for event in reader.poll()] == ["train"]


def test_segments_are_written_at_most_every_half_second(tmp_path: Path) -> None:
    clock = Clock()
    write = EventWriter(tmp_path, 0, 1, clock=clock)
    for step in range(100):
        clock.now += 0.1
        write(metrics(step))
    write.close()
    assert 15 <= len(list(tmp_path.iterdir())) <= 21
    assert len(EventReader(tmp_path).poll()) == 100


def test_a_run_of_a_day_leaves_thousands_of_segments_not_hundreds_of_thousands(tmp_path: Path) -> None:
    clock = Clock()
    write = EventWriter(tmp_path, 0, 1, clock=clock)
    clock.now = 86_400.0
    write(metrics(0))
    clock.now += 4.9
    write(metrics(1))
    assert len(list(tmp_path.iterdir())) == 1
    clock.now += 0.2
    write(metrics(2))
    assert len(list(tmp_path.iterdir())) == 2


def test_phases_and_checkpoints_do_not_wait_for_the_next_segment(tmp_path: Path) -> None:
    write = EventWriter(tmp_path, 0, 1, clock=Clock())
    write(metrics(1))
    assert EventReader(tmp_path).poll() == []
    write({"kind": "phase", "name": "validate"})
    assert [event["kind"] for event in EventReader(tmp_path).poll()] == ["metrics", "phase"]


def test_values_that_are_not_finite_survive_as_strict_json(tmp_path: Path) -> None:
    with EventWriter(tmp_path, 0, 1) as write:
        write(metrics(1, a=math.nan, b=math.inf, c=-math.inf, d=1.5))
    text = next(tmp_path.iterdir()).read_text()
    assert "NaN" not in text and "Infinity" not in text
    values = EventReader(tmp_path).poll()[0]["values"]
    assert math.isnan(values["a"])
    assert (values["b"], values["c"], values["d"]) == (math.inf, -math.inf, 1.5)


def test_a_writer_of_the_same_rank_and_attempt_overwrites_nothing(tmp_path: Path) -> None:
    for step in (1, 2):
        with EventWriter(tmp_path, 0, 1) as write:
            write(metrics(step))
    assert [event["step"] for event in EventReader(tmp_path).poll()] == [1, 2]


def test_temporary_and_foreign_files_are_ignored_and_a_damaged_line_is_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with EventWriter(tmp_path, 0, 1) as write:
        write(metrics(1))
    (tmp_path / ".a001-r000-000001.jsonl.xyz").write_text("{")
    (tmp_path / "notes.txt").write_text("{")
    (tmp_path / "a001-r000-000002.jsonl").write_text('{"kind": "met\n{"kind": "phase", "name": "test"}\n')
    with caplog.at_level(logging.WARNING):
        assert [event["kind"] for event in EventReader(tmp_path).poll()] == ["metrics", "phase"]
    assert "not JSON" in caplog.text


def test_a_full_disk_stops_no_step_and_loses_no_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = EventWriter(tmp_path, 0, 1)
    with monkeypatch.context() as patch:
        failures: list[Path] = []

        def full(path: Path, content: bytes) -> None:
            failures.append(path)
            raise OSError(28, "No space left on device")

        patch.setattr(events_module, "commit_bytes", full)
        write({"kind": "phase", "name": "train"})
        write.flush()
        assert len(failures) == 2
    write.close()
    assert [event["name"] for event in EventReader(tmp_path).poll()] == ["train"]


def test_polls_can_be_bounded(tmp_path: Path) -> None:
    write = EventWriter(tmp_path, 0, 1)
    for step in range(5):
        write(metrics(step))
        write.flush()
    reader = EventReader(tmp_path)
    assert [event["step"] for event in reader.poll(max_segments=2)] == [0, 1]
    assert [event["step"] for event in reader.poll(max_segments=99)] == [2, 3, 4]


def test_a_directory_that_is_not_there_yet_has_no_events(tmp_path: Path) -> None:
    assert EventReader(tmp_path / "later").poll() == []
