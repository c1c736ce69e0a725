"""Events: what a rank tells the driver, as small JSON-lines files in the run directory.

No socket and no MLflow in a rank. A segment appears whole or not at all and is never changed, so a reader
needs no lock and no notification: it looks at names.
"""

from __future__ import annotations

import json
import logging
import math
import re
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sparktrain.storage import commit_bytes

_log = logging.getLogger(__name__)

Event = dict[str, Any]

METRIC_KINDS = frozenset({"metrics", "system"})
"""Events with `step` and `values`: of the training, by step; of a host, by second of the run."""

_SEGMENT = re.compile(r"a(\d{3,})-r(\d{3,})-(\d{6,})\.jsonl")
_MAX_BUFFERED = 10_000
# Rare and worth seeing at once; progress and metrics come with every step and can wait for the next segment.
_PROMPT_KINDS = frozenset({"phase", "checkpoint", "checkpoint_failed", "resumed", "straggler"})


class EventWriter:
    """Collects one rank's events and writes a segment at most every `interval_seconds`.

    The interval grows with the age of the writer (a two-hundredth of it, five seconds at most), so that a
    long run leaves thousands of segments rather than hundreds of thousands.

    A disk that can't be written to does not stop training: the events are kept (the newest 10,000) and
    tried again. Once a later attempt has begun nothing is written any more: it trains the same steps.
    """

    def __init__(
        self,
        directory: Path,
        rank: int,
        attempt: int,
        *,
        interval_seconds: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._rank, self._attempt = rank, attempt
        self._next_attempt = directory.parent / f"attempt-{attempt + 1:03d}"
        self._prefix = f"a{attempt:03d}-r{rank:03d}-"
        self._interval_seconds, self._clock = interval_seconds, clock
        self._started = self._flushed = clock()
        self._buffer: list[Event] = []
        self._lock = threading.Lock()
        self._number = 1 + max((n for _, n in _segments(directory, self._prefix)), default=-1)

    def __call__(self, event: Mapping[str, Any]) -> None:
        with self._lock:
            self._buffer.append({**event, "time": time.time(), "rank": self._rank, "attempt": self._attempt})
            if event.get("kind") in _PROMPT_KINDS or self._is_due():
                self._write_segment()

    def flush(self) -> None:
        """Write what is buffered now."""
        with self._lock:
            self._write_segment()

    def close(self) -> None:
        self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _is_due(self) -> bool:
        now = self._clock()
        interval = max(self._interval_seconds, min((now - self._started) / 200, 5.0))
        return now - self._flushed >= interval

    def _write_segment(self) -> None:
        if not self._buffer:
            return
        self._flushed = self._clock()
        content = "".join(json.dumps(_encode(event), allow_nan=False) + "\n" for event in self._buffer)
        try:
            if self._next_attempt.exists():  # a rank that nobody could end would else be heard in its stead
                self._buffer.clear()
                return
            commit_bytes(self._directory / f"{self._prefix}{self._number:06d}.jsonl", content.encode())
        except OSError as error:
            _log.warning("can't write events to %s, trying again: %s", self._directory, error)
            del self._buffer[:-_MAX_BUFFERED]
            return
        self._number += 1
        self._buffer.clear()


class EventReader:
    """Reads each segment of a directory once, in the order of (attempt, rank, number)."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._seen: set[str] = set()

    def poll(self, max_segments: int | None = None) -> list[Event]:
        """Return the events of segments not seen before: all, or those of the first `max_segments`.

        A file that is being written has another name; a line that is not JSON is skipped with a warning.
        """
        events: list[Event] = []
        for name in self._new()[:max_segments]:
            events += _read_segment(self._directory / name)
            self._seen.add(name)
        return events

    def has_new(self) -> bool:
        """Say whether a poll would read anything."""
        return bool(self._new())

    def _new(self) -> list[str]:
        return [name for name, _ in _segments(self._directory) if name not in self._seen]


def _segments(directory: Path, prefix: str = "") -> list[tuple[str, int]]:
    """List (name, number) of the segments by their numbers: names sort wrongly past 999 ranks."""
    found = []
    try:
        names = [entry.name for entry in directory.iterdir()]
    except FileNotFoundError:
        return []
    for name in names:
        if name.startswith(prefix) and (match := _SEGMENT.fullmatch(name)):
            found.append((tuple(int(part) for part in match.groups()), name))
    return [(name, numbers[2]) for numbers, name in sorted(found)]


def _read_segment(path: Path) -> list[Event]:
    events = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            _log.warning("skipping a line of %s that is not JSON", path)
            continue
        if isinstance(event, dict):
            events.append(_decode(event))
    return events


def _encode(event: Event) -> Event:
    """Write a non-finite metric as text ("nan", "inf", "-inf"): strict JSON has no number for it."""
    if event.get("kind") not in METRIC_KINDS:
        return event
    values = {key: float(value) for key, value in event["values"].items()}
    return {**event, "values": {key: v if math.isfinite(v) else str(v) for key, v in values.items()}}


def _decode(event: Event) -> Event:
    if event.get("kind") not in METRIC_KINDS:
        return event
    return {**event, "values": {key: float(value) for key, value in event["values"].items()}}
