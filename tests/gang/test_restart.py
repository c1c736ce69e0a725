"""Which failures start another attempt, how often, and with how many ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparktrain.config import TrainConfig
from sparktrain.errors import (
    EXIT_INFRASTRUCTURE,
    GangNotStarted,
    NotEnoughSlots,
    RankFailed,
    RankLost,
    RestartsExhausted,
)
from sparktrain.gang import restart
from sparktrain.gang.rank import RunSpec
from sparktrain.gang.restart import Attempts
from sparktrain.runs.directory import RunDirectory
from sparktrain.storage import read_json
from tests.fixtures.tiny_task import TinyTask

LOST = RankLost([1], "killed by SIGKILL")


class Gangs:
    """Stands in for the gangs: each ends as the next of `ends` says."""

    def __init__(self, *ends: Exception | dict[str, Any]) -> None:
        self.ends = list(ends)

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        end = self.ends.pop(0)
        if isinstance(end, Exception):
            raise end
        return [end]


def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gangs: Gangs, **settings: Any) -> dict[str, Any]:
    config = TrainConfig(restart_delay_seconds=0, **settings)
    attempts = Attempts(None, RunDirectory(tmp_path), config)  # type: ignore[arg-type]  # no Spark is asked
    monkeypatch.setattr(attempts, "_gang", lambda: gangs)
    monkeypatch.setattr(attempts, "_ranks_to_start", lambda: config.ranks)
    return attempts.run(RunSpec(tmp_path, tmp_path, TinyTask(), config, None), 0)


def test_a_lost_rank_is_worth_another_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert train(tmp_path, monkeypatch, Gangs(LOST, LOST, {"steps": 5})) == {"steps": 5}


def test_each_attempt_keeps_why_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory(tmp_path)
    run.attempt(1).mkdir()
    raised = RankFailed(1, "host", "KeyError: 'x'")

    class Started(Gangs):
        def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
            run.attempt(run.next_attempt()).mkdir()
            return super().run(function, *args)

    with pytest.raises(RankFailed):
        train(tmp_path, monkeypatch, Started(LOST, raised))
    kept = [read_json(run.failure_file(number)) for number in (2, 3)]
    assert [(failure["error"], failure["text"]) for failure in kept] == [
        ("RankLost", str(LOST)),
        ("RankFailed", str(raised)),
    ]
    assert not run.failure_file(1).exists()


def test_an_error_of_the_task_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gangs = Gangs(RankFailed(1, "host", "KeyError: 'x'"), {"steps": 5})
    with pytest.raises(RankFailed):
        train(tmp_path, monkeypatch, gangs)
    assert len(gangs.ends) == 1


@pytest.mark.parametrize("away", [NotEnoughSlots(2, 1), GangNotStarted(2, 1, 120)], ids=["slots", "start"])
def test_slots_that_stay_away_after_a_loss_use_up_the_restarts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, away: Exception
) -> None:
    gangs = Gangs(LOST, away, away, {"steps": 5})
    with pytest.raises(RestartsExhausted, match="3 attempts in a row") as exhausted:
        train(tmp_path, monkeypatch, gangs, max_restarts=2)
    assert exhausted.value.exit_code == EXIT_INFRASTRUCTURE
    assert train(tmp_path, monkeypatch, Gangs(LOST, away, {"steps": 5}), max_restarts=2) == {"steps": 5}


def test_too_few_slots_at_the_first_attempt_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotEnoughSlots):
        train(tmp_path, monkeypatch, Gangs(NotEnoughSlots(2, 1), {"steps": 5}))


def test_without_restarts_the_failure_itself_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RankLost):
        train(tmp_path, monkeypatch, Gangs(LOST, {"steps": 5}), max_restarts=0)


def test_pauses_double(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slept: list[float] = []
    monkeypatch.setattr(restart.time, "sleep", slept.append)
    attempts = Attempts(None, RunDirectory(tmp_path), TrainConfig(restart_delay_seconds=2))  # type: ignore[arg-type]
    for failures in (1, 2, 3, 4, 20):
        attempts._pause(failures)
    assert slept == [2, 4, 8, 60]
