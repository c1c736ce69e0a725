"""Saver: takes the checkpoints of a training, at once or in the background; what if one can't be written."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import Tensor

from sparktrain.config import TrainConfig
from sparktrain.errors import CheckpointNotWritten, StoreFailed
from sparktrain.storage import AnyPath
from sparktrain.training.checkpoint import checkpoint_name, claim, delete_old
from sparktrain.training.checkpoint_write import write_checkpoint
from sparktrain.world import World

logger = logging.getLogger(__name__)

Emit = Callable[[Mapping[str, Any]], None]


class Saver:
    """Takes the checkpoints of one rank; the calls are collective, and end alike on all ranks.

    At most one save is in flight. What became of it is known after `wait`, which the next `save` begins with.

    Args:
        emit: called on rank 0, from another thread if saving is asynchronous.

    Attributes:
        best: of the newest committed state: {"step", "checkpoint", "metrics"}, or None.
        last_error: why the newest save is missing, under `on_checkpoint_error: warn`.
    """

    def __init__(self, directory: AnyPath, config: TrainConfig, world: World, emit: Emit) -> None:
        self.directory, self.config, self.world, self.emit = directory, config, world, emit
        self.best: dict[str, Any] | None = None
        self.last_error: CheckpointNotWritten | None = None
        self._group: dist.ProcessGroup | None = None
        self._pending: Future[None] | None = None
        if world.size > 1:
            # Its own: a save in the background must not mix its messages with those of the steps.
            # Over gloo, for what is told are names and hashes.
            timeout = timedelta(seconds=config.collective_timeout_seconds)
            self._group = dist.new_group(backend="gloo", timeout=timeout)
        if world.is_first:
            claim(directory, world.attempt)

    def name(self, step: int) -> str:
        return checkpoint_name(step, self.world.attempt)

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Commit a checkpoint, or begin to: `tensors` may change as soon as this returns.

        Raises:
            CheckpointNotWritten: this one, or the one before it that was written in the background.
        """
        self.wait()
        if self.config.async_checkpoints:
            on_cpu = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
            self._pending = _in_background(lambda: self._commit(step, on_cpu, state))
        else:
            self._commit(step, tensors, state)

    def wait(self) -> None:
        """Wait for the save that is in flight, if there is one; raises its error."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _commit(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        path = self.directory / self.name(step)
        try:
            write_checkpoint(
                path, step=step, tensors=tensors, state=state, rank=self.world.rank, group=self._group
            )
        except CheckpointNotWritten as error:
            if self.config.on_checkpoint_error == "fail":
                raise
            self.last_error = error
            logger.warning("%s", error)
            if self.world.is_first:
                self.emit({"kind": "checkpoint_failed", "step": step, "problem": str(error)})
            return
        self.best, self.last_error = state["best"], None
        if self.world.is_first:
            self._delete_old()
            self.emit({"kind": "checkpoint", "step": step, "path": path.name})

    def _delete_old(self) -> None:
        best = self.best["checkpoint"] if self.best else None
        keep, attempt = self.config.keep_checkpoints, self.world.attempt
        try:
            delete_old(self.directory, keep, also_keep=best, attempt=attempt)
        except (OSError, StoreFailed) as error:  # no reason to stop one rank of many, or any
            logger.warning("can't delete old checkpoints in %s: %s", self.directory, error)


def _in_background(function: Callable[[], None]) -> Future[None]:
    """Call `function` in a thread, which does not keep a failed process alive: its peers may never answer."""
    future: Future[None] = Future()

    def run() -> None:
        try:
            function()
            future.set_result(None)
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="checkpoint", daemon=True).start()
    return future
