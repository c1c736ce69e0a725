"""A rank's own process, forked from Spark's Python worker, and the guard that lets nothing of it live on.

    Spark's Python worker ──fork──> guard ──fork──> rank ──> whatever the user's code starts

Spark's worker serves other jobs afterwards, so the rank must leave nothing in it: no variable, no thread, no
GPU memory. And whatever kills Spark's worker, which comes without a warning, must end the rank and all that
it started: the guard sees the end of a pipe, and kills the rank's process group and what has left that group.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import resource
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, TextIO

from sparktrain import pulse
from sparktrain.errors import RankEnded
from sparktrain.gang.spec import GangSpec
from sparktrain.pulse import Pulse
from sparktrain.storage import commit_json
from sparktrain.world import World

_LOOK_SECONDS = 0.25
_BEAT_SECONDS = 1.0
_DYING_SECONDS = 0.2
_KILLING_SECONDS = 5.0  # a process that waits for a disk dies when that answers
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_DUMP_SIGNAL = signal.SIGUSR1

Function = Callable[[], bytes]


def call_in_process(function: Function, spec: GangSpec, world: World) -> bytes:
    """Call `function` in a process of its own and return what it returns.

    Raises:
        RankEnded: the process ended without an answer; why stands in the rank's error file or end file.
    """
    answer, answers = os.pipe()  # the rank's value; its end is the rank's end
    life, alive = os.pipe()  # the guard holds one end, this process the other: its end is ours
    shared = Pulse()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()  # or the child would write the same once more
    guard = os.fork()
    if guard == 0:
        _exit_with(lambda: _guard(function, spec, world, answers, life, shared))
    os.close(answers)
    os.close(life)
    try:
        value = _wait_for_answer(answer, alive, spec, world, shared)
    finally:
        os.close(alive)
        os.close(answer)
        _, status = os.waitpid(guard, 0)
        shared.close()
    if status or not value:  # whoever calls os._exit(0) leaves nothing
        raise RankEnded(world.rank, describe_status(status), str(spec.log_file(world.rank)))
    return value


def _wait_for_answer(answer: int, alive: int, spec: GangSpec, world: World, shared: Pulse) -> bytes:
    """Read the answer to its end; meanwhile pass on the pulse, and what the driver asks for."""
    chunks: list[bytes] = []
    has_dumped = False
    told = -1.0
    while True:
        if select.select([answer], [], [], _LOOK_SECONDS)[0]:
            chunk = os.read(answer, 1 << 20)
            if not chunk:
                return b"".join(chunks)
            chunks.append(chunk)
            continue
        if _is_there(spec.stop_file):
            raise RankEnded(world.rank, "stopped by the driver", str(spec.log_file(world.rank)))
        if not has_dumped and _is_there(spec.dump_file):
            has_dumped = True
            with suppress(OSError):  # the guard is about to end
                os.write(alive, b"d")
        if (now := time.monotonic()) - told >= _BEAT_SECONDS:
            told = now
            _tell_pulse(spec.beat_file(world.rank), shared)


def _is_there(file: Path) -> bool:
    """Whether the driver has left this file; not, where the shared disk does not answer now."""
    try:
        return file.exists()
    except OSError:
        return False


def _tell_pulse(file: Path, shared: Pulse) -> None:
    beat = shared.read()
    state = {"pid": beat.pid, "beats": beat.beats, "step": beat.step, "state": process_state(beat.pid)}
    with suppress(OSError):  # a shared disk may be away for a moment
        file.write_text(json.dumps(state))


def process_state(pid: int) -> str:
    """What the system says of a process: "R" runs, "S" sleeps, "T" is stopped; "" where it does not tell."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def _guard(
    function: Function, spec: GangSpec, world: World, answers: int, life: int, shared: Pulse
) -> NoReturn:
    """Fork the rank, wait for its end or for that of Spark's worker, and clear up behind it."""
    redirect_output(spec.log_file(world.rank))
    os.setsid()  # Spark's daemon sends SIGHUP to its whole group when it ends
    _set_process_option(_PR_SET_CHILD_SUBREAPER, 1)  # what the rank's children leave behind comes to us
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # Without the worker's sockets: Spark sees by their end that a worker has died.
    _close_all_but({0, 1, 2, answers, life})
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(wake)
    rank = os.fork()
    if rank == 0:
        signal.set_wakeup_fd(-1)
        for descriptor in (life, woken, wake):
            os.close(descriptor)
        _exit_with(lambda: _be_rank(function, spec, world, answers, shared), tell=False)
    os.close(answers)
    faulthandler.disable()
    with suppress(OSError):
        os.setpgid(rank, rank)  # here and in the rank, whichever comes first
    place = {"rank": world.rank, "host": socket.gethostname(), "pid": rank, "device": world.device}
    with suppress(OSError):  # the disk is no reason to end a rank
        commit_json(spec.start_file(world.rank), {**place, "time": time.time()})
    status = _wait_for_end(rank, life, woken)
    with suppress(OSError):
        os.killpg(rank, signal.SIGKILL)  # what the rank has started and left behind
    if status is None:
        os.kill(rank, signal.SIGKILL)  # it may have left its group
    how = {"status": None if status is None else describe_status(status), "step": shared.read().step}
    if status is None:
        _, status = os.waitpid(rank, 0)
    _kill_children()
    with suppress(OSError):
        commit_json(spec.end_file(world.rank), {**place, **how, "time": time.time()})
    _end_like(status)


def _wait_for_end(rank: int, life: int, woken: int) -> int | None:
    """Return the rank's status as `os.waitpid` gives it; None if it must end because Spark's worker has."""
    while True:
        ready = select.select([life, woken], [], [])[0]
        if woken in ready:
            os.read(woken, 4096)
            for pid, status in _ended_children():
                if pid == rank:
                    return status
        if life in ready:
            if not os.read(life, 4096):
                return _status_soon(rank)
            with suppress(OSError):
                os.kill(rank, _DUMP_SIGNAL)


def _ended_children() -> Iterator[tuple[int, int]]:
    """Reap the processes that have ended, the rank and those that lost their parents in it."""
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            yield ended


def _kill_children() -> None:
    """Kill what the rank had started in process groups of their own; their children become ours by that."""
    deadline = time.monotonic() + _KILLING_SECONDS
    while time.monotonic() < deadline and (children := _children()):
        for child in children:
            with suppress(OSError):
                os.kill(child, signal.SIGKILL)
        for _ in _ended_children():
            pass
        time.sleep(0.005)


def _children() -> list[int]:
    """This process' children; none where the system does not tell."""
    try:
        return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    except OSError:
        return []


def _status_soon(rank: int) -> int | None:
    """A dying process closes its pipes, which Spark's worker sees, a moment before its status is there."""
    deadline = time.monotonic() + _DYING_SECONDS
    while time.monotonic() < deadline:
        pid, status = os.waitpid(rank, os.WNOHANG)
        if pid:
            return status
        time.sleep(0.001)
    return None


def _be_rank(function: Function, spec: GangSpec, world: World, answers: int, shared: Pulse) -> None:
    os.setpgid(0, 0)
    _die_with_guard()
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    stacks = spec.stack_file(world.rank).open("w")
    faulthandler.register(_DUMP_SIGNAL, file=stacks, all_threads=True)
    faulthandler.enable()  # a crash in a library leaves its stack in the log
    pulse.become(shared)
    this = os.getpid()
    value = memoryview(function())
    if os.getpid() != this:  # a child that the user's code has forked, and that came back from it
        os._exit(0)
    while value:
        value = value[os.write(answers, value) :]


def redirect_output(file: Path) -> None:
    """Send the process' stdout and stderr, C libraries' included, to a file."""
    log = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for number in (1, 2):
        os.dup2(log, number)
    os.close(log)
    # Streams of our own: Spark's may lead elsewhere, and keep lines that die with a killed rank.
    sys.stdout, sys.stderr = _text_stream(1), _text_stream(2)


def _text_stream(descriptor: int) -> TextIO:
    return open(descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


def _exit_with(function: Callable[[], None], tell: bool = True) -> NoReturn:
    """Call `function` in a forked process, which must not go on with what its parent was at.

    Args:
        tell: whether to print an error's traceback; that of a rank's call lies in a file already.
    """
    code = 1
    try:
        function()
        code = 0
    except BaseException:  # SystemExit as well: a rank without a value has failed
        if tell:
            traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(ValueError, OSError):  # closed by the user's function, say
                stream.flush()
        os._exit(code)


def _end_like(status: int) -> NoReturn:
    """End with the status of another process, so that our parent sees how that one ended."""
    if os.WIFSIGNALED(status):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        signal.pause()
    os._exit(os.waitstatus_to_exitcode(status))


def describe_status(status: int) -> str:
    """Say in words how a process ended, from what `os.waitpid` gives."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = ", as the system does when memory runs out" if -code == signal.SIGKILL else ""
    return f"killed by {name}{hint}"


def _die_with_guard() -> None:
    """Let the system kill this process when the guard is killed; elsewhere than on Linux it would live on."""
    guard = os.getppid()
    if sys.platform == "linux":
        _set_process_option(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard:  # it was faster
            os._exit(1)


def _set_process_option(option: int, value: int) -> None:
    """See prctl(2); other systems than Linux lack it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value)


def _close_all_but(kept: set[int]) -> None:
    start = 0
    for descriptor in [*sorted(kept), os.sysconf("SC_OPEN_MAX")]:
        if start < descriptor:  # of an empty range Python makes the whole one
            os.closerange(start, descriptor)
        start = descriptor + 1
