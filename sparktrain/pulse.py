"""The pulse of a rank: how often it came forward and at which step, seen from outside also when it hangs."""

from __future__ import annotations

import mmap
import os
import struct
from typing import NamedTuple

_FORMAT = struct.Struct("qqq")
_NO_STEP = -1


class Beat(NamedTuple):
    """What a rank last told.

    Attributes:
        pid: of its process; 0: it has not begun.
        beats: how often it has told.
        step: the optimizer update that it is at; None outside of a training.
    """

    pid: int
    beats: int
    step: int | None


class Pulse:
    """A few bytes that a rank and the process that forked it share; no lock, no system call."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _FORMAT.size)
        self.write(Beat(0, 0, None))

    def write(self, beat: Beat) -> None:
        step = _NO_STEP if beat.step is None else beat.step
        _FORMAT.pack_into(self._memory, 0, beat.pid, beat.beats, step)

    def read(self) -> Beat:
        pid, beats, step = _FORMAT.unpack_from(self._memory, 0)
        return Beat(pid, beats, None if step == _NO_STEP else step)

    def close(self) -> None:
        self._memory.close()


_ours: Pulse | None = None


def become(pulse: Pulse) -> None:
    """Make `pulse` that of this process."""
    global _ours
    _ours = pulse
    pulse.write(Beat(os.getpid(), 0, None))


def beat(step: int | None = None) -> None:
    """Tell that this rank comes forward; nobody need be listening."""
    if _ours is not None:
        pid, beats, before = _ours.read()
        _ours.write(Beat(pid, beats + 1, before if step is None else step))
