"""StepProfiler: a trace of a few steps on demand, for chrome://tracing or Perfetto: what took how long."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from sparktrain.world import World

logger = logging.getLogger(__name__)


class StepProfiler:
    """Records the steps `first` to `last` of rank 0 into `steps-<first>-<last>-attempt-<n>.json.gz`.

    A loop calls `step(n)` before its n-th step begins, and `close` when it has ended, however that was. A
    training that resumes beyond the first of the steps records none; one that ends among them, those it made.

    Args:
        steps: first and last, counted from 1; None: nothing is recorded.
        directory: made when there is something to write.
    """

    def __init__(self, steps: tuple[int, int] | None, world: World, directory: Path) -> None:
        self._steps = steps if world.is_first else None
        self._world, self._directory = world, directory
        self._profile: profile | None = None

    def step(self, number: int) -> None:
        """Say that a step is about to begin."""
        if self._steps is None:
            return
        first, last = self._steps
        if number == first:
            self._start()
        elif self._profile is not None and number > last:
            self.close()

    def close(self) -> None:
        """Write what was recorded; a trace is no reason to end a training, so that a problem is only told."""
        recorded, self._profile = self._profile, None
        if recorded is None:
            return
        if self._world.device != "cpu":
            torch.cuda.synchronize()  # kernels of the last step may still run
        try:
            recorded.stop()
            self._directory.mkdir(exist_ok=True)
            recorded.export_chrome_trace(str(self._file))
        except (OSError, RuntimeError) as error:
            logger.warning("no trace in %s: %s", self._directory, error)

    @property
    def _file(self) -> Path:
        assert self._steps is not None
        first, last = self._steps
        return self._directory / f"steps-{first:09d}-{last:09d}-attempt-{self._world.attempt:03d}.json.gz"

    def _start(self) -> None:
        activities = [ProfilerActivity.CPU]
        if self._world.device != "cpu":
            activities.append(ProfilerActivity.CUDA)
        try:
            self._profile = profile(activities=activities, record_shapes=True)
            self._profile.start()
        except RuntimeError as error:  # another profiler is at work, of the Task's own say
            logger.warning("no trace: %s", error)
            self._profile = None
