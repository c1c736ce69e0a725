"""Threads that work ahead of their consumer, nearest deadline first, and never outlive it."""

from __future__ import annotations

import atexit
import heapq
import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")

THREAD_NAME = "sparktrain-reader"
_CLOSE_SECONDS = 10.0
_LOOK_SECONDS = 0.1


class ReadAhead(Generic[Item, Made]):
    """Makes things 0, 1, … in threads of its own, at most `depth` of them ahead.

    An item is made of pieces, which threads share: the piece at place p of item i comes after that of item
    i - 1, and of all pieces that can be made now, one of the first item is made next.

    The threads start here: create it after any fork. Always `close()` it.

    Args:
        num_items: how many there are.
        num_pieces: of each.
        start: returns an item without its pieces.
        make_worker: called in each thread; returns what adds a piece: called with item, number and place.
        finish: called in a thread with an item that has all its pieces; returns what is taken.
        depth: items that may wait to be taken or be made.
        num_threads: how many.
    """

    def __init__(
        self,
        num_items: int,
        num_pieces: int,
        start: Callable[[int], Item],
        make_worker: Callable[[], Callable[[Item, int, int], None]],
        finish: Callable[[Item], Made],
        *,
        depth: int,
        num_threads: int,
    ) -> None:
        self._num_items, self._num_pieces = num_items, num_pieces
        self._start, self._make_worker, self._finish = start, make_worker, finish
        self._depth = depth
        self._due = [(0, place) for place in range(num_pieces)]  # a heap
        self._left = num_items * num_pieces  # pieces that nobody has begun
        self._items: dict[int, Item] = {}
        self._missing: dict[int, int] = {}
        self._made: dict[int, Made] = {}
        self._taken = 0
        self._closed = False
        self._errors: dict[int, BaseException] = {}
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._ready = threading.Condition(self._lock)  # for the consumer
        self._room = threading.Condition(self._lock)  # for the threads
        # Daemons, so that a consumer that forgets to close can't keep the process alive. At exit we stop them
        # in order, because a thread inside Arrow while the interpreter is torn down can crash it.
        self._threads = [
            threading.Thread(target=self._run, name=THREAD_NAME, daemon=True) for _ in range(num_threads)
        ]
        atexit.register(self.close)
        try:
            for thread in self._threads:
                thread.start()
        except BaseException:  # no more threads to be had: let go of those that there are
            self.close()
            raise

    def take(self) -> Made | None:
        """Return the next item, or None after the last one.

        Raises:
            whatever a thread raised, after the items that came before.
        """
        self._check_process()
        with self._lock:
            number = self._taken
            if number == self._num_items:
                return None
            while number not in self._made:
                if self._errors and number >= min(self._errors):
                    raise self._errors[min(self._errors)]
                self._ready.wait(timeout=1.0)
            self._taken += 1
            self._room.notify_all()
            return self._made.pop(number)

    def close(self) -> None:
        """Stop the threads and wait for them; twice does no harm."""
        atexit.unregister(self.close)
        if self._process != os.getpid():
            return  # a fork has none of them, and their lock as it was
        self._closed = True
        if threading.current_thread() in self._threads:
            return  # by the garbage collector, maybe with the lock held; the others look every second
        with self._lock:
            self._room.notify_all()
        # Short waits that are counted: one long wait is over, and no thread has run, when the whole process
        # was stopped for that long, by its machine or by a collection of garbage that holds the interpreter.
        looks = int(_CLOSE_SECONDS / _LOOK_SECONDS)
        for thread in self._threads:
            while thread.is_alive() and looks:
                thread.join(_LOOK_SECONDS)
                looks -= 1
        self._items.clear()
        self._made.clear()

    def _check_process(self) -> None:
        if self._process != os.getpid():
            raise RuntimeError(
                "The reader threads are gone: the process was forked while they read. "
                "Iterate a stream only in the process that began to; start a new iteration here."
            )

    def _run(self) -> None:
        number = 0
        try:
            work = self._make_worker()
            while (piece := self._next()) is not None:
                number, place = piece
                self._work(work, number, place)
        except BaseException as error:  # the consumer raises it: here nobody would see it
            with self._lock:
                self._errors.setdefault(number, error)
                self._ready.notify_all()
                self._room.notify_all()

    def _next(self) -> tuple[int, int] | None:
        """Wait for the next piece to make; None when there is nothing left."""
        with self._lock:
            while not self._closed and not self._is_over():
                if self._due and self._due[0][0] < self._taken + self._depth:
                    number, place = heapq.heappop(self._due)
                    self._left -= 1
                    if self._left == 0:
                        self._room.notify_all()
                    return (number, place) if self._has_begun(number) else None
                self._room.wait(timeout=1.0)
            return None

    def _has_begun(self, number: int) -> bool:
        """Begin an item, unless it was; False when that failed."""
        if number not in self._items:
            try:
                self._items[number] = self._start(number)
            except BaseException as error:
                self._errors.setdefault(number, error)
                self._ready.notify_all()
                self._room.notify_all()
                return False
            self._missing[number] = self._num_pieces
        return True

    def _work(self, work: Callable[[Item, int, int], None], number: int, place: int) -> None:
        work(self._items[number], number, place)
        with self._lock:
            if number + 1 < self._num_items:
                heapq.heappush(self._due, (number + 1, place))
                self._room.notify()
            self._missing[number] -= 1
            if self._missing[number]:
                return
            del self._missing[number]
            item = self._items.pop(number)
        made = self._finish(item)
        with self._lock:
            self._made[number] = made
            self._ready.notify_all()

    def _is_over(self) -> bool:
        """Whether no piece is left to begin with that anybody will ask for."""
        if self._errors:
            return not self._due or self._due[0][0] >= min(self._errors)
        return self._left == 0
