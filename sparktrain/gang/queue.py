"""Gangs of one driver take turns: each waits for the slots that others hold, first come, first served.

Spark's own check counts all slots, not free ones: two gangs would wait for each other's for ever.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction

from pyspark.resource import ResourceProfile
from pyspark.sql import SparkSession

from sparktrain.gang.slots import most_slots, num_slots, setting

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0  # between two looks at how many slots there are now


class Queue:
    """Who holds which part of the slots, and who waits, in the order in which they came.

    Nobody overtakes, however little it needs: a large gang would never have its turn else.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()
        self._parts: dict[object, Fraction] = {}  # of those that hold some

    @property
    def _held(self) -> Fraction:
        return sum(self._parts.values(), Fraction(0))

    @contextmanager
    def turn(self, part: Callable[[], Fraction]) -> Iterator[None]:
        """Wait until `part` of all slots is free of other gangs, and hold it until the end.

        Args:
            part: asked again while waiting, for slots come and go; with more than all, one waits until nobody
                holds any.
        """
        ticket = object()
        try:
            with self._changed:
                self._waiting.append(ticket)
                while not self._is_turn_of(ticket, wanted := part()):
                    self._changed.wait(_LOOK_SECONDS)
                self._waiting.remove(ticket)
                self._parts[ticket] = wanted
                self._changed.notify_all()  # the next may fit in beside
            yield
        finally:
            with self._changed:
                if ticket in self._waiting:  # interrupted before its turn
                    self._waiting.remove(ticket)
                self._parts.pop(ticket, None)  # an interrupt may come between any two lines above
                self._changed.notify_all()

    def _is_turn_of(self, ticket: object, wanted: Fraction) -> bool:
        return self._waiting[0] is ticket and (not self._held or self._held + wanted <= 1)


_queues: dict[str, Queue] = {}
_creating = threading.Lock()


@contextmanager
def slots_of_a_gang(spark: SparkSession, ranks: int, profile: ResourceProfile | None) -> Iterator[None]:
    """Hold the slots of a gang, after all that came before it in this driver.

    Where nobody tells how many slots there are (Spark Connect), one gang holds all.
    """
    application = setting(spark, "spark.app.id", "unknown")
    with _creating:
        queue = _queues.setdefault(application, Queue())
    asked = 0

    def part() -> Fraction:
        nonlocal asked
        asked += 1
        if asked == 2:
            logger.info("waiting for slots that other gangs of this driver hold")
        slots = num_slots(spark, profile) or most_slots(spark, profile)
        return Fraction(ranks, slots) if slots else Fraction(1)

    with queue.turn(part):
        yield
