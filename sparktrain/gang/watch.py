"""What the driver sees of an attempt while it runs, from the files that ranks and guards leave."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparktrain.errors import GangNotStarted, GangStalled
from sparktrain.gang.spec import GangSpec

_GRACE_SECONDS = 1.0  # for the others to tell what they saw when one has failed
_DUMP_SECONDS = 3.0
_GONE_SECONDS = 10.0
# What the main thread of a rank is in while it waits for the others.
_WAITS_FOR_OTHERS = ("torch/distributed/", "_engine_run_backward", "torch/nn/parallel/distributed.py")


class Watch:
    """Looks at the ranks of one attempt; `look()` is called again and again.

    Args:
        stall_timeout_seconds: until a gang of which nobody comes forward is given up; None: never.
    """

    def __init__(self, spec: GangSpec, stall_timeout_seconds: float | None) -> None:
        self._spec, self._stall_timeout_seconds = spec, stall_timeout_seconds
        self._started = self._moved = time.monotonic()
        self._all_are_there = False
        self._beats: dict[int, int] = {}
        self._failed: float | None = None

    def look(self) -> None:
        """Let the others end once a rank has failed.

        Raises:
            GangNotStarted: not every rank's process was there in time.
            GangStalled: none came forward for too long.
        """
        if self._has_failure():
            now = time.monotonic()
            self._failed = self._failed or now
            if now - self._failed > _GRACE_SECONDS:
                self._spec.stop_file.touch()
        elif not self._all_are_there:
            self._expect_all()
        elif self._stall_timeout_seconds is not None:
            self._expect_progress(self._stall_timeout_seconds)

    def _has_failure(self) -> bool:
        if any((self._spec.directory / "errors").glob("rank-*.json")):
            return True
        return any(end["status"] != "exit code 0" for end in ends_of(self._spec).values())

    def _expect_all(self) -> None:
        num_started = sum(self._spec.start_file(rank).exists() for rank in range(self._spec.size))
        limit = self._spec.start_timeout_seconds
        if num_started == self._spec.size:
            self._all_are_there, self._moved = True, time.monotonic()
        elif time.monotonic() - self._started > limit:
            raise GangNotStarted(self._spec.size, num_started, limit)

    def _expect_progress(self, limit: float) -> None:
        # A pulse that can't be read now, because it is being written, is no news.
        beats = self._beats | {rank: beat["beats"] for rank, beat in beats_of(self._spec).items()}
        if beats != self._beats:
            self._beats, self._moved = beats, time.monotonic()
        elif (seconds := time.monotonic() - self._moved) > limit:
            raise self._explain_stall(seconds)

    def _explain_stall(self, seconds: float) -> GangStalled:
        spec = self._spec
        beats = beats_of(spec)
        spec.dump_file.touch()
        deadline = time.monotonic() + _DUMP_SECONDS
        awake = [
            rank for rank in range(spec.size) if beats.get(rank, {}).get("state") not in ("T", "t", None)
        ]
        while time.monotonic() < deadline and any(not _text(spec.stack_file(rank)) for rank in awake):
            time.sleep(0.1)
        steps = [beat["step"] for beat in beats.values() if beat["step"] is not None]
        files = [spec.stack_file(rank) for rank in range(spec.size) if _text(spec.stack_file(rank))]
        logs = [spec.log_file(rank) for rank in range(spec.size) if spec.log_file(rank).exists()]
        hanging = list(self._hanging(beats))
        return GangStalled(round(seconds, 1), max(steps, default=None), hanging, [*map(str, files + logs)])

    def _hanging(self, beats: dict[int, dict[str, Any]]) -> Iterator[str]:
        """Who hangs: whose process does not run, else who is not among those that wait for others."""
        spec = self._spec
        places = {rank: f"rank {rank} on {_host(spec, rank)}" for rank in range(spec.size)}
        stopped = [rank for rank in places if beats.get(rank, {}).get("state") in ("T", "t")]
        if stopped:
            yield from (f"{places[rank]} hangs: its process is stopped" for rank in stopped)
            return
        stacks = {rank: _text(spec.stack_file(rank)) for rank in places}
        waiting = [rank for rank, text in stacks.items() if any(word in text for word in _WAITS_FOR_OTHERS)]
        silent = [rank for rank, text in stacks.items() if not text]
        if waiting or silent:
            for rank in set(places) - set(waiting) - set(silent):
                yield f"{places[rank]} hangs: the others wait for it, {_innermost(stacks[rank])}"
            yield from (f"{places[rank]} hangs: it does not answer" for rank in silent)


def wait_until_gone(spec: GangSpec) -> list[int]:
    """Wait for the guards to tell that their ranks are no more; return those that did not in time."""
    deadline = time.monotonic() + _GONE_SECONDS
    while True:
        alive = [
            rank
            for rank in range(spec.size)
            if spec.start_file(rank).exists() and not spec.end_file(rank).exists()
        ]
        if not alive or time.monotonic() > deadline:
            return alive
        time.sleep(0.02)


def ends_of(spec: GangSpec) -> dict[int, dict[str, Any]]:
    """What the guards wrote of ranks that are gone, by rank."""
    return _records(spec, "ended")


def beats_of(spec: GangSpec) -> dict[int, dict[str, Any]]:
    return _records(spec, "beat")


def _records(spec: GangSpec, kind: str) -> dict[int, dict[str, Any]]:
    found = {}
    for file in (spec.directory / "ranks").glob(f"rank-*-{kind}.json"):
        try:
            found[int(file.name.split("-")[1])] = json.loads(file.read_bytes())
        except (OSError, ValueError):  # a pulse is written in place: it may be half-written now
            continue
    return found


def _host(spec: GangSpec, rank: int) -> str:
    try:
        return str(json.loads(spec.start_file(rank).read_bytes())["host"])
    except (OSError, ValueError, KeyError):
        return "an unknown host"


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""


def _innermost(stacks: str) -> str:
    """Where the main thread is: faulthandler writes it last, its innermost call first."""
    main = stacks.rpartition("(most recent call first):\n")[2].splitlines()
    return f"it is at {main[0].strip()}" if main else "it does not say where it is"
