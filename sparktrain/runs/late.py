"""LateTracker: what stands in for a Tracker while MLflow could not be reached yet."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from sparktrain.config import Config
from sparktrain.errors import TrackingUnavailable
from sparktrain.runs.connection import resolve_tracking_uri, without_secrets
from sparktrain.runs.directory import RunDirectory
from sparktrain.runs.follow import NullTracker
from sparktrain.runs.tracking import Status, Tracker, warn_of_end
from sparktrain.storage import commit_json

if TYPE_CHECKING:
    from torch import nn

    from sparktrain.dataset import Dataset

_log = logging.getLogger(__name__)


class LateTracker:
    """Starts the MLflow run as soon as the server answers; asks again whenever there is something to log."""

    def __init__(self, start: Callable[[], Tracker], run_dir: RunDirectory) -> None:
        self._start, self._run_dir = start, run_dir
        self._tracker: Tracker | None = None
        self._starting = threading.Lock()

    @property
    def run_id(self) -> str | None:
        """MLflow's; None while there is no run."""
        return self._tracker.run_id if self._tracker else None

    def reached(self) -> Tracker:
        """Return a tracker whose server answers.

        Raises:
            TrackingUnavailable: within ten seconds.
        """
        with self._starting:
            if self._tracker is None:
                self._tracker = self._start()
                return self._tracker
        return self._tracker.reached()

    def log_events(self, events: Sequence[Mapping[str, Any]]) -> None:
        (self._tracker or self.reached()).log_events(events)

    def finish(self, status: Status) -> bool:
        """Mark how the run ended, as `Tracker.finish` does; what never began is left to a replay."""
        try:
            tracker = self.reached()
        except TrackingUnavailable as error:
            warn_of_end(self._run_dir, status, error)
            return False
        return tracker.finish(status)


class Untracked(NullTracker):
    """Stands in for a Tracker with `tracking.uri: none`: the run directory is all there is."""

    run_id = None

    def reached(self) -> Tracker:
        raise AssertionError("nobody asks for an MLflow that is not wanted")

    def finish(self, status: Status) -> bool:
        """Do nothing; say that MLflow does not know."""
        return False


def start_tracking(
    run_dir: RunDirectory, config: Config, dataset: Dataset, model: nn.Module | None = None
) -> Tracker | LateTracker | Untracked:
    """Start an MLflow run, or continue it; where tracking isn't required, later if the server is away.

    Raises:
        TrackingUnavailable: within ten seconds, if `tracking.required`.
    """
    if config.tracking.is_none:
        return Untracked()
    start = partial(Tracker.start, run_dir, config, dataset, model)
    try:
        return start()
    except TrackingUnavailable as error:
        if config.tracking.required:
            raise
        text = "%s. Training without it. If it does not come back meanwhile, deliver what it lacks later: %s"
        _log.warning(text, error.problem, run_dir.replay_command)
        if not run_dir.mlflow_file.exists():
            uri = without_secrets(resolve_tracking_uri(config.tracking, config.storage.root))
            commit_json(run_dir.mlflow_file, {"run_id": None, "tracking_uri": uri})
        return LateTracker(start, run_dir)
