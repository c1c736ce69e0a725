"""A barrier stage that runs in a thread, so that the driver can watch it meanwhile, and cancel it."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

import pyarrow as pa
from pyspark import SparkContext
from pyspark.resource import ResourceProfile
from pyspark.sql import Row, SparkSession

TaskFunction = Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]


class Stage:
    """Runs a function in as many Spark tasks as there are ranks, all at once; also over Spark Connect.

    Attributes:
        ended: set when it has, in whichever way.
        rows: what the tasks gave; None until the stage has succeeded.
        error: what Spark raised instead.
    """

    def __init__(
        self,
        spark: SparkSession,
        function: TaskFunction,
        schema: str,
        num_tasks: int,
        profile: ResourceProfile | None,
    ) -> None:
        self.ended = threading.Event()
        self.rows: list[Row] | None = None
        self.error: Exception | None = None
        self._spark, self._tag = spark, f"sparktrain-gang-{secrets.token_hex(4)}"
        # Job group, pool and the like belong to a thread; the stage's shall have those of the caller.
        self._context = context_of(spark)
        self._properties = self._context and self._context._jsc.sc().getLocalProperties().clone()
        # range() has as many partitions as ranks: a repartitioned frame can leave one empty, or fold them.
        one_row_each = spark.range(0, num_tasks, 1, num_tasks)
        options = {"profile": profile} if profile is not None else {}  # Spark 3.5 does not know the word
        self._frame = one_row_each.mapInArrow(function, schema, barrier=True, **options)
        threading.Thread(target=self._run, name="gang-stage", daemon=True).start()

    def _run(self) -> None:
        try:
            if self._context is not None:
                self._context._jsc.sc().setLocalProperties(self._properties)
                self._context.addJobTag(self._tag)
            else:
                self._spark.addTag(self._tag)
            self.rows = self._frame.collect()
        except Exception as error:
            self.error = error
        finally:
            self.ended.set()

    def cancel(self) -> None:
        """Ask Spark to end the stage; it may be dead, or at its end, already."""
        with suppress(Exception):
            if self._context is not None:
                self._context.cancelJobsWithTag(self._tag)
            else:
                self._spark.interruptTag(self._tag)


def context_of(spark: SparkSession) -> SparkContext | None:
    """The session's SparkContext; None over Spark Connect, where only the server has one."""
    return getattr(spark, "_sc", None)
