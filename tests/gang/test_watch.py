"""What the driver makes of the files that ranks and guards leave."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from sparktrain.errors import GangNotStarted, GangStalled
from sparktrain.gang import watch
from sparktrain.gang.spec import GangSpec
from sparktrain.gang.watch import Watch


@pytest.fixture
def spec(tmp_path: Path) -> GangSpec:
    spec = GangSpec(tmp_path, 2, "t", b"", start_timeout_seconds=0.2)
    spec.create_folders()
    return spec


def start(spec: GangSpec, rank: int) -> None:
    spec.start_file(rank).write_text(json.dumps({"rank": rank, "host": f"host-{rank}", "pid": 1}))


def beat(spec: GangSpec, rank: int, beats: int, state: str = "T") -> None:
    spec.beat_file(rank).write_text(json.dumps({"pid": 1, "beats": beats, "step": 13, "state": state}))


def test_ranks_that_are_not_there_in_time_are_counted(spec: GangSpec) -> None:
    start(spec, 1)
    looking = Watch(spec, None)
    looking.look()
    time.sleep(0.3)
    with pytest.raises(GangNotStarted, match=r"started 1 of 2 ranks within 0\.2 s"):
        looking.look()


@pytest.mark.parametrize("now", ["gone", "half"])
def test_a_pulse_that_is_just_being_written_is_no_sign_of_life(spec: GangSpec, now: str) -> None:
    for rank in range(2):
        start(spec, rank)
        beat(spec, rank, 7)
    looking = Watch(spec, 1.0)
    began = time.monotonic()
    with pytest.raises(
        GangStalled, match=r"it was at step 13\): rank 0 on host-0 hangs: its process is stopped"
    ):
        for number in range(1000):
            if number % 2:
                beat(spec, 1, 7)
            elif now == "gone":
                spec.beat_file(1).unlink(missing_ok=True)
            else:
                spec.beat_file(1).write_text('{"pid"')
            looking.look()
            time.sleep(0.02)
    assert 0.9 < time.monotonic() - began < 10


def test_a_pulse_that_goes_on_is_no_hang(spec: GangSpec) -> None:
    for rank in range(2):
        start(spec, rank)
    looking = Watch(spec, 0.3)
    for number in range(20):
        beat(spec, 1, number, "R")
        looking.look()
        time.sleep(0.05)


def test_once_a_rank_has_failed_the_others_are_told_to_end_after_a_while(
    spec: GangSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_GRACE_SECONDS", 0.2)
    spec.end_file(1).write_text(json.dumps({"rank": 1, "status": "killed by SIGKILL"}))
    looking = Watch(spec, None)
    looking.look()
    assert not spec.stop_file.exists(), "they may still have something to say"
    time.sleep(0.3)
    looking.look()
    assert spec.stop_file.exists()
