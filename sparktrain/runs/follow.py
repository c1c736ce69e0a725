"""Follower: the driver's threads that watch the events of a run while the gang trains.

One thread reports progress, another mirrors metrics to MLflow, so that a slow server delays neither the
progress bar nor a step. Memory stays bounded however long MLflow is away: what can't be delivered yet lies on
disk as events.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from sparktrain.runs.connection import reason_of
from sparktrain.runs.directory import RunDirectory
from sparktrain.runs.events import METRIC_KINDS, Event, EventReader

_log = logging.getLogger(__name__)

_SEGMENTS_PER_CALL = 200
_LONGEST_PAUSE_SECONDS = 30.0
_END_SECONDS = 45.0  # a request that is under way and one more may each wait for their time-out
_INTERRUPTED_SECONDS = 5.0


class Mirror(Protocol):
    """Who takes the metrics: a `Tracker`, or nobody."""

    def log_events(self, events: Sequence[Mapping[str, Any]]) -> None: ...


class NullTracker:
    """Takes metrics and forgets them."""

    def log_events(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Do nothing."""


class Follower:
    """Follows `run_dir.events` from its first segment; a context manager whose exit delivers what is left.

    Starting at the first segment makes up for a driver that was killed: the tracker leaves out what MLflow
    has.

    Args:
        tracker: takes the metrics; may raise, and is then asked again.
        on_event: called with every event, in the watching thread; an error of its own is only logged.
        interval_seconds: between two looks.
    """

    def __init__(
        self,
        run_dir: RunDirectory,
        tracker: Mirror | None = None,
        on_event: Callable[[Event], None] | None = None,
        *,
        interval_seconds: float = 0.25,
    ) -> None:
        self._run_dir = run_dir
        self._tracker: Mirror = tracker or NullTracker()
        self._on_event = on_event
        self._interval_seconds = interval_seconds
        self._watched, self._mirrored = EventReader(run_dir.events), EventReader(run_dir.events)
        self._pending: list[Event] = []
        self._is_failing = self._has_given_up = False
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._watch, name="events-watch", daemon=True),
            threading.Thread(target=self._mirror, name="events-mirror", daemon=True),
        ]

    def start(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def stop(self, timeout_seconds: float = _END_SECONDS) -> None:
        """Deliver what is left and end; what MLflow does not take is spilled to a file, with a warning."""
        self._stopping.set()
        watching, mirroring = self._threads
        watching.join(timeout_seconds)
        mirroring.join(timeout_seconds)
        if mirroring.is_alive():  # it waits for an answer, and touches nothing else any more
            self._has_given_up = True
            _log.warning("MLflow is still busy after %g s", timeout_seconds)
        try:
            if mirroring.is_alive() or self._pending or self._mirrored.has_new():
                self._spill()
            else:
                self._run_dir.spill_file.unlink(missing_ok=True)  # of an attempt before: delivered now
        except OSError as error:  # the training's own outcome must not be lost to this
            _log.warning("can't write %s: %s", self._run_dir.spill_file, error)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(_INTERRUPTED_SECONDS if isinstance(error, KeyboardInterrupt) else _END_SECONDS)

    def _watch(self) -> None:
        while not self._stopping.wait(self._interval_seconds):
            self._report()
        self._report()

    def _report(self) -> None:
        try:
            events = self._watched.poll()
        except OSError as error:  # a shared file system may be away for a moment
            _log.warning("can't read the events in %s: %s", self._run_dir.events, error)
            return
        for event in events if self._on_event else ():
            self._tell(event)

    def _tell(self, event: Event) -> None:
        assert self._on_event is not None
        try:
            self._on_event(event)
        except Exception:
            _log.exception("the progress callback failed on %s", event.get("kind"))

    def _mirror(self) -> None:
        pause = self._interval_seconds
        while not self._stopping.wait(pause):
            pause = self._interval_seconds if self._deliver() else min(2 * pause, _LONGEST_PAUSE_SECONDS)
        while not self._has_given_up and self._deliver() and self._mirrored.has_new():
            pass

    def _deliver(self) -> bool:
        """Hand over one bounded batch; False keeps it for the next time."""
        try:
            self._pending = self._pending or self._next_batch()
            if self._pending:
                self._tracker.log_events(self._pending)
        except Exception as error:
            level = logging.DEBUG if self._is_failing else logging.WARNING  # once an outage, not once a retry
            _log.log(level, "MLflow does not take metrics now, trying again: %s", reason_of(error))
            self._is_failing = True
            return False
        if self._is_failing:
            _log.warning("MLflow takes metrics again")
        self._pending, self._is_failing = [], False
        return True

    def _next_batch(self) -> list[Event]:
        """Return metrics of the next segments; segments without any are passed over."""
        while not (batch := _metrics(self._mirrored.poll(_SEGMENTS_PER_CALL))):
            if not self._mirrored.has_new():
                return []
        return batch

    def _spill(self) -> None:
        """Write what was not delivered to one file, for whoever looks; a replay reads the events."""
        num_events = 0
        path = self._run_dir.spill_file
        with path.open("w", encoding="utf-8") as file:
            batch = self._pending
            while batch:
                file.writelines(json.dumps(event) + "\n" for event in batch)
                num_events += len(batch)
                batch = self._next_batch()
        text = "MLflow did not confirm %d metric events: they are in %s. Deliver them, once it is back: %s"
        _log.warning(text, num_events, path, self._run_dir.replay_command)


def deliver_all(run_dir: RunDirectory, tracker: Mirror) -> None:
    """Hand over all events of a run that nobody follows; raises what the tracker raises."""
    reader = EventReader(run_dir.events)
    while reader.has_new():
        tracker.log_events(_metrics(reader.poll(_SEGMENTS_PER_CALL)))
    run_dir.spill_file.unlink(missing_ok=True)


def _metrics(events: Sequence[Event]) -> list[Event]:
    return [event for event in events if event.get("kind") in METRIC_KINDS]
