"""Attempts: Spark does not start a failed gang again, so the driver does, from the newest checkpoint."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from pyspark.sql import SparkSession

from sparktrain.config import TrainConfig
from sparktrain.errors import GangNotStarted, NotEnoughSlots, RestartsExhausted, SparktrainError
from sparktrain.gang.launch import Gang
from sparktrain.gang.rank import RunSpec, train_rank
from sparktrain.gang.slots import num_slots, profile_of_rank
from sparktrain.runs.directory import RunDirectory
from sparktrain.storage import commit_json
from sparktrain.training.checkpoint import newest_valid

logger = logging.getLogger(__name__)

_LONGEST_DELAY_SECONDS = 60.0
_LOOK_SECONDS = 0.2
# What takes longest of all that a training rank imports, for all its attempts.
_PRELOAD = ("sparktrain.gang.rank", "torch._dynamo", "pandas")
# How long executors that were lost may take to come back before the gang goes on with fewer ranks.
_RETURN_SECONDS = 15.0


class Attempts:
    """The tries of one training, one after the other, until one comes to its end.

    The budget of restarts is for failures in a row: an attempt that leaves a new checkpoint renews it.

    Attributes:
        number: of the attempt that runs or ran last, over all of the run's, resumed ones included.
        ranks: its size.
    """

    def __init__(
        self,
        spark: SparkSession,
        run: RunDirectory,
        config: TrainConfig,
        on_output: Callable[[str], object] | None = None,
    ) -> None:
        self.number, self.ranks = run.next_attempt(), config.ranks
        self._spark, self._run, self._config, self._on_output = spark, run, config, on_output

    def check(self) -> None:
        """Raise `NotEnoughSlots` if Spark could not start all ranks at once."""
        self._gang().check()

    def run(self, spec: RunSpec, reached: int) -> dict[str, Any]:
        """Train to the end, through every failure that another attempt may get past.

        Args:
            spec: of the first attempt.
            reached: step of the checkpoint that it starts from; 0 for none.

        Returns:
            What `train_rank` returned.

        Raises:
            SparktrainError: what another attempt would meet again, such as an error of the Task.
            RestartsExhausted: `train.max_restarts` restarts in a row left no new checkpoint.
        """
        failures = 0
        while True:
            try:
                outcome: dict[str, Any] = self._gang().run(train_rank, spec)[0]
                return outcome
            except SparktrainError as error:
                _keep(self._run, self.number, error)
                # Slots that were there once may come back; at the first attempt they are too few for good.
                is_away = failures > 0 and isinstance(error, NotEnoughSlots | GangNotStarted)
                if not (error.is_transient or is_away) or not self._config.max_restarts:
                    raise
                saved = newest_valid(spec.checkpoints or self._run.checkpoints)
                step = saved.step if saved else 0
                failures = 1 if step > reached else failures + 1
                reached = step
                if failures > self._config.max_restarts:
                    raise RestartsExhausted(failures, reached, str(error)) from None
                _tell(self.number, error, step, self._config.max_restarts - failures)
            self._pause(failures)
            self.number, self.ranks = self._run.next_attempt(), self._ranks_to_start()
            spec = replace(spec, resume_from=saved.path if saved else None)

    def _gang(self) -> Gang:
        config = self._config
        return Gang(
            self._spark,
            ranks=self.ranks,
            cpus_per_rank=config.cpus_per_rank,
            gpus_per_rank=config.gpus_per_rank,
            start_timeout_seconds=config.start_timeout_seconds,
            collective_timeout_seconds=config.collective_timeout_seconds,
            stall_timeout_seconds=config.stall_timeout_seconds,
            directory=self._run.attempt(self.number),
            attempt=self.number,
            preload=_PRELOAD,
            on_output=self._on_output,
        )

    def _pause(self, failures: int) -> None:
        """None after the first failure, which is most often the only one; then longer and longer."""
        if failures > 1:
            time.sleep(min(self._config.restart_delay_seconds * 2 ** (failures - 2), _LONGEST_DELAY_SECONDS))

    def _ranks_to_start(self) -> int:
        """As many as were asked for; fewer, if slots stay away and the configuration allows it."""
        wanted, least = self._config.ranks, self._config.min_ranks
        deadline = time.monotonic() + self._config.start_timeout_seconds
        soon = time.monotonic() + _RETURN_SECONDS
        profile = profile_of_rank(self._spark, self._config.cpus_per_rank, self._config.gpus_per_rank)
        while (slots := num_slots(self._spark, profile)) is not None and slots < wanted:
            now = time.monotonic()
            if (least is not None and slots >= least and now > soon) or now > deadline:
                break
            time.sleep(_LOOK_SECONDS)
        if slots is None or slots >= wanted or least is None or slots < least:
            return wanted  # the gang itself refuses what can't be
        logger.warning("going on with %d ranks instead of %d: the cluster has no more slots", slots, wanted)
        return slots


def _keep(run: RunDirectory, number: int, error: SparktrainError) -> None:
    """Leave with the attempt why it ended: the run's result only tells of the last one."""
    failure = {"error": type(error).__name__, "text": str(error), "time": time.time()}
    with suppress(OSError):  # there is none if it never came to be, and the next one takes its number
        commit_json(run.failure_file(number), failure)


def _tell(number: int, error: SparktrainError, step: int, left: int) -> None:
    start = f"the checkpoint of step {step}" if step else "the start, for there is no checkpoint yet"
    logger.warning(
        "attempt %d failed. %s\nTrying again from %s; %d more if this fails, too.", number, error, start, left
    )
