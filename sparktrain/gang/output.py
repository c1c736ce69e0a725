"""What a rank prints, live on the driver: from the rank's log file, whatever bytes are in it."""

from __future__ import annotations

import codecs
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.2
_END_SECONDS = 5.0
_CHUNK_BYTES = 1 << 16


class Tail:
    """Follows a log file while the context lasts, and hands on its text.

    Bytes that are no UTF-8 become �, a carriage return stays one, so that a progress bar moves as it does in
    the rank's own terminal.

    Args:
        show: called with each new piece of text, in a thread of its own; pieces end anywhere.
    """

    def __init__(self, file: Path, show: Callable[[str], object]) -> None:
        self._file, self._show = file, show
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._position = 0
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="rank-output", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join(_END_SECONDS)  # a terminal may have been stopped

    def _follow(self) -> None:
        try:
            while not self._ending.wait(_LOOK_SECONDS):
                self._hand_on()
            self._hand_on()
            self._show(self._decoder.decode(b"", final=True))
        except Exception:
            logger.exception("no more of %s is shown here", self._file)

    def _hand_on(self) -> None:
        try:
            with self._file.open("rb") as file:
                file.seek(self._position)
                while chunk := file.read(_CHUNK_BYTES):
                    self._position += len(chunk)
                    self._show(self._decoder.decode(chunk))
        except OSError:  # not there yet, or the shared disk is away for a moment
            return
