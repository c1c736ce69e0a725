"""What happened in a run, read from its directory alone: for the report, which any process can write."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sparktrain.runs.describe import facts_of, flatten
from sparktrain.runs.directory import RunDirectory
from sparktrain.runs.events import Event, EventReader
from sparktrain.runs.plots import curves_from
from sparktrain.storage import read_json


@dataclass(frozen=True)
class Attempt:
    """One start of the run's ranks.

    Attributes:
        hosts: on which they ran, each once.
        began, ended: seconds since 1970, of the first and last that was heard; None: nothing was.
        first_step: of the checkpoint that it went on from; 0: from the start.
        last_step: that was heard of.
        failure: why it ended before its time, "" if it did not, or if nobody could tell.
    """

    number: int
    num_ranks: int
    hosts: Sequence[str]
    began: float | None
    ended: float | None
    first_step: int
    last_step: int
    failure: str


class Story:
    """A run as its directory tells it; what is not there, or no JSON, is empty."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self.spec, self.result = _read(run.spec_file), _read(run.result_file)
        self.mlflow, self.outcome = _read(run.mlflow_file), _read(run.outcome_file)
        self.tags, self.model = facts_of(run)
        self.events: list[Event] = sorted(EventReader(run.events).poll(), key=lambda event: event["time"])

    @property
    def status(self) -> str:
        """ "finished", "failed" or "killed"; "unfinished" where nobody was left to tell."""
        return str(self.result.get("status", "unfinished"))

    @property
    def error(self) -> str:
        return str(self.result.get("error") or "")

    @property
    def is_undelivered(self) -> bool:
        """Whether MLflow lacks something of the run, as far as its driver knew."""
        has_no_run = self.mlflow.get("run_id") is None
        return bool(has_no_run or self.result.get("unpublished") or self.run.spill_file.exists())

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration by dotted key."""
        return flatten({key: value for key, value in self.spec.items() if key != "dataset"})

    @cached_property
    def curves(self) -> dict[str, list[tuple[int, float]]]:
        return curves_from(self.events)

    @cached_property
    def metrics(self) -> dict[str, float]:
        """The final ones: those of the result, else of a run without an end the last of each."""
        if found := self.result.get("metrics"):
            return {name: float("nan") if value is None else float(value) for name, value in found.items()}
        last = {name: curve[-1][1] for name, curve in self.curves.items()}
        return {name: value for name, value in last.items() if name.startswith("validation/")}

    @property
    def last_step(self) -> int:
        heard = [int(event["step"]) for event in self.of_kind("progress")]
        return int(self.result.get("steps") or max(heard, default=0))

    @property
    def num_steps(self) -> int | None:
        """How many there were to be."""
        return next((event["num_steps"] for event in reversed(self.of_kind("progress"))), None)

    def of_kind(self, kind: str) -> list[Event]:
        return [event for event in self.events if event.get("kind") == kind]

    @cached_property
    def attempts(self) -> list[Attempt]:
        folders = sorted(
            self.run.path.glob("attempt-[0-9][0-9][0-9]*"),
            key=lambda path: int(path.name.removeprefix("attempt-")),
        )
        return [self._attempt(folder) for folder in folders]

    def _attempt(self, folder: Path) -> Attempt:
        number = int(folder.name.removeprefix("attempt-"))
        starts = [_read(file) for file in sorted(folder.glob("ranks/rank-*-started.json"))]
        events = [event for event in self.events if event.get("attempt") == number]
        times = [start["time"] for start in starts if "time" in start] + [event["time"] for event in events]
        failure = _read(folder / "failure.json").get("text", "")
        is_last = not (self.run.path / f"attempt-{number + 1:03d}").exists()
        if not failure and is_last and self.status in ("failed", "killed"):
            failure = self.error or self.status
        steps = [int(event["step"]) for event in events if event["kind"] in ("progress", "metrics")]
        first = [int(event["step"]) for event in events if event["kind"] == "resumed"]
        return Attempt(
            number,
            len(starts) or len({event["rank"] for event in events}),
            sorted({str(start["host"]) for start in starts if "host" in start}),
            min(times, default=None),
            max(times, default=None),
            first[0] if first else 0,
            max(steps, default=0),
            failure if failure or is_last else "it ended without a word, as when the driver is killed",
        )

    def load_of_hosts(self) -> Iterator[tuple[str, dict[str, tuple[float, float]]]]:
        """Yield for each host the mean and the highest value of what was sampled there."""
        samples: dict[str, dict[str, list[float]]] = {}
        for event in self.of_kind("system"):
            of_host = samples.setdefault(event["host"], {})
            for key, value in event["values"].items():
                of_host.setdefault(key.rpartition("/")[2], []).append(value)
        for host, values in sorted(samples.items()):
            yield host, {name: (sum(found) / len(found), max(found)) for name, found in values.items()}


def _read(path: Path) -> Mapping[str, Any]:
    try:
        found = read_json(path)
    except (OSError, json.JSONDecodeError, UnicodeDecodeError):
        return {}
    return found if isinstance(found, dict) else {}
