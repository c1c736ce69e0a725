"""Gang: run a function in every rank of a barrier stage, and get every rank's value back."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
from pyspark.sql import SparkSession

from sparktrain.errors import SparktrainError
from sparktrain.gang.blame import attempt_directory, diagnose
from sparktrain.gang.pickling import pickle_call
from sparktrain.gang.slots import check_slots
from sparktrain.gang.spec import GangSpec
from sparktrain.gang.worker import ANSWER_SCHEMA, run_rank


class Gang:
    """Ranks that start together, as the tasks of one Spark barrier stage, with torch.distributed set up.

        >>> Gang(ranks=2).run(torch.distributed.get_rank)
        [0, 1]

    Args:
        spark: session to use; the active one if None.
        ranks: how many; each takes one slot of Spark.
        cpus_per_rank: threads for torch and Arrow in each rank.
        gpus_per_rank: 1: NCCL, and `World.device` is the granted GPU; 0: gloo on the CPU.
        start_timeout_seconds: until every rank has met the others.
        collective_timeout_seconds: until a silent peer counts as lost.
        directory: where the gang's files go, seen by driver and executors; a temporary one if None, which
            suits local masters only.
        attempt: number of this try, from 1.
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
        directory: str | Path | None = None,
        attempt: int = 1,
    ) -> None:
        if ranks < 1:
            raise ValueError(f"ranks is {ranks}; a gang has at least 1")
        self._spark, self._ranks, self._directory = spark or active_session(), ranks, directory
        self._options: dict[str, Any] = {
            "size": ranks,
            "cpus_per_rank": cpus_per_rank,
            "gpus_per_rank": gpus_per_rank,
            "start_timeout_seconds": start_timeout_seconds,
            "collective_timeout_seconds": collective_timeout_seconds,
            "attempt": attempt,
        }

    def check(self) -> None:
        """Raise `NotEnoughSlots` if Spark could not start all ranks at once."""
        check_slots(self._spark, self._ranks)

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Call `function(*args)` in every rank and return the values, by rank.

        Raises:
            NotEnoughSlots: before anything is launched.
            RankFailed: a rank raised; names the culprit, not those who lost their peer by it.
            RankLost: a rank vanished.
        NotPicklable: `function` or one of `args` can't be sent.
        AttemptExists: `directory` was used before.
        """
        payload = pickle_call(function, args)
        self.check()
        if self._directory is not None:
            return self._launch(attempt_directory(Path(self._directory)), payload)
        directory = Path(tempfile.mkdtemp(prefix="sparktrain-gang-"))
        # After an error the directory stays: the message points into it.
        values = self._launch(directory, payload)
        shutil.rmtree(directory, ignore_errors=True)
        return values

    def _launch(self, directory: Path, payload: bytes) -> list[Any]:
        token = secrets.token_hex(16)
        spec = GangSpec(directory=directory.resolve(), token=token, payload=payload, **self._options)
        # range() has as many partitions as ranks: a repartitioned frame can leave one empty, or fold them.
        one_row_each = self._spark.range(0, self._ranks, 1, self._ranks)
        stage = one_row_each.mapInArrow(partial(run_rank, spec=spec), ANSWER_SCHEMA, barrier=True)
        try:
            answers = stage.collect()
        except SparktrainError:
            raise
        except Exception as error:
            # from None: the JVM's stack is in a file, not on the screen
            raise diagnose(spec, _whole_text(error)) from None
        values = {int(answer["rank"]): cloudpickle.loads(bytes(answer["value"])) for answer in answers}
        return [values[rank] for rank in range(self._ranks)]


def active_session() -> SparkSession:
    session = SparkSession.getActiveSession()
    if session is None:
        raise ValueError("There is no active SparkSession: create one, or pass spark=…")
    return session


def _whole_text(error: Exception) -> str:
    return "".join(traceback.format_exception(error))
