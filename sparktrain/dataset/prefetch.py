"""A thread that works ahead of its consumer, and never outlives it."""

from __future__ import annotations

import atexit
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")

THREAD_NAME = "sparktrain-reader"
_CLOSE_SECONDS = 10.0


class ReadAhead(Generic[Item]):
    """Runs an iterator in a thread of its own, at most `depth` items ahead.

    The thread starts here: create it after any fork. Always `close()` it.

    Args:
        source: makes the iterator; called, like the iterator, in the thread.
        depth: items that may wait to be taken.
    """

    def __init__(self, source: Callable[[], Iterator[Item]], depth: int) -> None:
        self._source = source
        self._depth = depth
        self._items: deque[Item] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._finished = False
        self._error: BaseException | None = None
        # A daemon, so that a consumer that forgets to close can't keep the process alive. At exit we stop it
        # in order, because a thread inside Arrow while the interpreter is torn down can crash it.
        self._thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)
        atexit.register(self.close)
        self._thread.start()

    def take(self) -> Item | None:
        """Return the next item, or None after the last one.

        Raises:
            whatever the iterator raised, after the items that came before.
        """
        with self._changed:
            while not self._items and not self._finished:
                if not self._changed.wait(timeout=1.0) and not self._thread.is_alive() and not self._finished:
                    raise RuntimeError(
                        "The reader thread is gone: the process was forked while it read. "
                        "Iterate a stream only in the process that began to; start a new iteration here."
                    )
            if self._items:
                item = self._items.popleft()
                self._changed.notify_all()
                return item
            if self._error is not None:
                raise self._error
            return None

    def close(self) -> None:
        """Stop the thread and wait for it; twice does no harm."""
        atexit.unregister(self.close)
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()
        # The garbage collector may call this from the reader thread itself.
        if self._thread is not threading.current_thread():
            self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        try:
            for item in self._source():
                if not self._put(item):
                    break
        except BaseException as error:  # the consumer raises it: here nobody would see it
            self._error = error
        with self._changed:
            self._finished = True
            self._changed.notify_all()

    def _put(self, item: Item) -> bool:
        """Hand an item over, waiting for room; False when the consumer has gone."""
        with self._changed:
            while len(self._items) >= self._depth and not self._closed:
                self._changed.wait()
            if not self._closed:
                self._items.append(item)
                self._changed.notify_all()
            return not self._closed
