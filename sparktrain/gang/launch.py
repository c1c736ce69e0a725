"""Gang: run a function in every rank of a barrier stage, and get every rank's value back."""

from __future__ import annotations

import logging
import secrets
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import cloudpickle
from pyspark.resource import ResourceProfile
from pyspark.sql import SparkSession
from pyspark.sql.utils import is_remote

from sparktrain import versions
from sparktrain.errors import SparktrainError, ValueUnreadable
from sparktrain.gang.blame import attempt_directory, diagnose
from sparktrain.gang.output import Tail
from sparktrain.gang.pickling import pickle_call
from sparktrain.gang.queue import slots_of_a_gang
from sparktrain.gang.slots import check_slots, profile_of_rank
from sparktrain.gang.spec import GangSpec
from sparktrain.gang.stage import Stage
from sparktrain.gang.watch import Watch, wait_until_gone
from sparktrain.gang.worker import ANSWER_SCHEMA, run_rank

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.25
_STOP_SECONDS = 3.0  # until ranks that are told to end have done so; then Spark is asked to end them
_CANCEL_SECONDS = 7.0


class Gang:
    """Ranks that start together, as the tasks of one Spark barrier stage, with torch.distributed set up.

        >>> Gang(ranks=2).run(torch.distributed.get_rank)
        [0, 1]

    Each rank is a process of its own, forked from Spark's Python worker, in which nothing of it stays.

    Args:
        spark: session to use, classic or Spark Connect; the active one if None.
        ranks: how many; each takes one slot of Spark.
        cpus_per_rank: threads for torch and Arrow in each rank; from Spark 4 on, and elsewhere than on a
            local master, a rank's Spark task takes as many cores.
        gpus_per_rank: 1: NCCL, and `World.device` is the granted GPU; 0: gloo on the CPU.
        start_timeout_seconds: until every rank has met the others; a gang that waits for the slots of another
            of this driver counts from its turn.
        collective_timeout_seconds: until a silent peer counts as lost.
        stall_timeout_seconds: until a gang of which no rank calls `sparktrain.pulse.beat()` is given up, with
            the stacks of all ranks in files; None: never.
        directory: where the gang's files go, seen by driver and executors; a temporary one if None, which
            suits local masters only.
        attempt: number of this try, from 1.
        preload: modules that Spark's Python workers import before they fork a rank, once for all their gangs.
        on_output: gets what rank 0 prints, live; None: it goes to stdout. All of it is in the rank's log.
    """

    def __init__(
        self,
        spark: SparkSession | None = None,
        *,
        ranks: int,
        cpus_per_rank: int = 1,
        gpus_per_rank: int = 0,
        start_timeout_seconds: float = 120.0,
        collective_timeout_seconds: float = 600.0,
        stall_timeout_seconds: float | None = None,
        directory: str | Path | None = None,
        attempt: int = 1,
        preload: Sequence[str] = (),
        on_output: Callable[[str], object] | None = None,
    ) -> None:
        if ranks < 1:
            raise ValueError(f"ranks is {ranks}; a gang has at least 1")
        self._spark, self._ranks, self._directory = spark or active_session(), ranks, directory
        self._stall_timeout_seconds, self._on_output = stall_timeout_seconds, on_output
        self._options: dict[str, Any] = {
            "size": ranks,
            "cpus_per_rank": cpus_per_rank,
            "gpus_per_rank": gpus_per_rank,
            "start_timeout_seconds": start_timeout_seconds,
            "collective_timeout_seconds": collective_timeout_seconds,
            "attempt": attempt,
            "preload": ("sparktrain.gang.rendezvous", *preload),
            "versions": versions.here(),
        }

    def check(self) -> None:
        """Raise `NotEnoughSlots` if Spark could not start all ranks at once."""
        check_slots(self._spark, self._ranks, self._profile())

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Call `function(*args)` in every rank and return the values, by rank.

        Raises:
            NotEnoughSlots: before anything is launched.
            NotPicklable: `function` or one of `args` can't be sent; likewise.
            AttemptExists: `directory` was used before; likewise.
            VersionsDiffer: an executor's packages are not the driver's; before the call.
            GangNotStarted: other work holds the slots.
            RankFailed: a rank raised; names the culprit, not those who lost their peer by it.
            RankLost: a rank vanished.
            GangStalled: no rank came forward.
            ExecutorUnfit: Spark's Python there can't run the ranks.
            ValueUnreadable: the driver lacks what a rank's value is made of.
        """
        payload = pickle_call(function, args)
        self.check()
        directory = Path(self._directory) if self._directory is not None else None
        place = (
            attempt_directory(directory) if directory else Path(tempfile.mkdtemp(prefix="sparktrain-gang-"))
        )
        with slots_of_a_gang(self._spark, self._ranks, self._profile()):
            values = self._launch(place, payload)
        if directory is None:  # after an error it stays: the message points into it
            shutil.rmtree(place, ignore_errors=True)
        return values

    def _profile(self) -> ResourceProfile | None:
        options = self._options
        return profile_of_rank(self._spark, options["cpus_per_rank"], options["gpus_per_rank"])

    def _launch(self, directory: Path, payload: bytes) -> list[Any]:
        token = secrets.token_hex(16)
        spec = GangSpec(directory=directory.resolve(), token=token, payload=payload, **self._options)
        spec.create_folders()
        function = partial(run_rank, spec=spec)
        with Tail(spec.log_file(0), self._on_output or _to_stdout):
            stage = Stage(self._spark, function, ANSWER_SCHEMA, self._ranks, self._profile())
            try:
                watch = Watch(spec, self._stall_timeout_seconds)
                while not stage.ended.wait(_LOOK_SECONDS):
                    with suppress(OSError):  # the shared disk may be away for a moment
                        watch.look()
            finally:
                # Also when all goes well: it costs nothing, and no rank may outlive this call.
                _end(stage, spec)
        if (failure := _failure(spec, stage)) is not None:
            raise failure
        answers = {int(row["rank"]): bytes(row["value"]) for row in stage.rows or ()}
        return [_value(rank, answers[rank]) for rank in range(spec.size)]


def _end(stage: Stage, spec: GangSpec) -> None:
    """Let no rank live on; those of a stage that succeeded are gone already."""
    if stage.rows is not None:
        return
    try:
        spec.stop_file.touch()
        patience = _STOP_SECONDS
    except OSError:  # nobody will see it: the disk is full, or away
        patience = 0.0
    if not stage.ended.wait(patience):
        stage.cancel()
        stage.ended.wait(_CANCEL_SECONDS)
    if alive := wait_until_gone(spec):
        logger.warning("ranks %s of %s did not tell of their end; going on without", alive, spec.directory)


def _failure(spec: GangSpec, stage: Stage) -> SparktrainError | None:
    if stage.error is not None:
        return diagnose(spec, "".join(traceback.format_exception(stage.error)))
    answered = {int(row["rank"]) for row in stage.rows or () if row["value"] is not None}
    return None if len(answered) == spec.size else diagnose(spec, "", answered=answered)


def _value(rank: int, answer: bytes) -> Any:
    try:
        return cloudpickle.loads(answer)
    except Exception as error:
        raise ValueUnreadable(rank, f"{type(error).__name__}: {error}") from error


def _to_stdout(text: str) -> None:
    try:
        sys.stdout.write(text)
    except UnicodeEncodeError:
        encoding = sys.stdout.encoding
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))


def active_session() -> SparkSession:
    session = find_session()
    if session is None:
        raise ValueError("There is no active SparkSession: create one, or pass spark=…")
    return session


def find_session() -> SparkSession | None:
    """Return the active session, classic or of Spark Connect; None if there is none."""
    if is_remote():
        from pyspark.sql.connect.session import SparkSession as ConnectSession

        return cast("SparkSession | None", ConnectSession.getActiveSession())
    return SparkSession.getActiveSession()
