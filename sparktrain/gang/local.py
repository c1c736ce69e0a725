"""A gang without Spark: the ranks are local processes. For tests of tasks and other rank functions."""

from __future__ import annotations

import multiprocessing
import os
import secrets
import shutil
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from sparktrain.errors import RankLost
from sparktrain.gang.spec import GangSpec
from sparktrain.world import World

_GRACE_SECONDS = 5.0
_PRELOADED = [
    "sparktrain.gang.worker",
    "sparktrain.gang.rendezvous",
    "sparktrain.training.loop",
    "torch._dynamo",  # torch imports it with the first optimizer, which takes a second
    "pandas",  # likewise pyarrow, with the first array of numpy's
]


def run_ranks(
    num_ranks: int, function: Callable[..., Any], *args: Any, timeout_seconds: float = 60.0
) -> list[Any]:
    """Call `function(*args)` in every rank of a gang of local processes, and return the values, by rank.

    Inside a rank everything is as in a gang of Spark's: the process group, the environment, the threads,
    the logs, who is blamed. There is no Spark around it, so a gang starts in a tenth of a second, the
    first one excepted.

        >>> run_ranks(2, torch.distributed.get_rank)
        [0, 1]

    Args:
        num_ranks: processes; each has one thread for torch.
        function: any that cloudpickle takes. Its module need not be importable by name: a test's will do.
        timeout_seconds: for all of it; what still runs then is killed.

    Raises:
        RankFailed: a rank raised; names the culprit, not those who lost their peer by it.
        RankLost: a rank died, or did not end in time.
        NotPicklable: `function` or one of `args` can't be sent.
    """
    spec = GangSpec(
        directory=Path(tempfile.mkdtemp(prefix="sparktrain-ranks-")),
        size=num_ranks,
        token=secrets.token_hex(16),
        payload=_pickle(function, args),
        start_timeout_seconds=timeout_seconds,
        collective_timeout_seconds=timeout_seconds,
    )
    spec.create_folders()
    _raise_for(spec, _run(spec, timeout_seconds), timeout_seconds)
    values = _values(spec)
    shutil.rmtree(spec.directory)  # after an error it stays: the message points into it
    return values


def _pickle(function: Callable[..., Any], args: Sequence[Any]) -> bytes:
    from sparktrain.gang.blame import is_own_file
    from sparktrain.gang.pickling import code_by_value, pickle_call

    with code_by_value([function, *args], is_own_file):
        return pickle_call(function, args)


def _run(spec: GangSpec, timeout_seconds: float) -> list[int | None]:
    """Run the ranks to their end; return exit codes by rank, None for one that did not end by itself."""
    # A server that imported torch once forks the ranks; that is safe while it runs nothing but one thread.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    environment = dict(os.environ)
    ranks = [context.Process(target=_be_rank, args=(spec, rank, environment)) for rank in range(spec.size)]
    try:
        for rank in ranks:
            rank.start()
        _wait_for(ranks, timeout_seconds)
        return [rank.exitcode for rank in ranks]
    finally:
        for rank in ranks:
            if rank.pid is not None:
                rank.kill()
                rank.join()


def _wait_for(ranks: Sequence[ForkServerProcess], timeout_seconds: float) -> None:
    """Wait until all have ended, but not for long after one failed: the others notice at once, or never."""
    deadline = time.monotonic() + timeout_seconds
    while running := [rank for rank in ranks if rank.exitcode is None]:
        if not wait([rank.sentinel for rank in running], max(deadline - time.monotonic(), 0.0)):
            return
        if any(rank.exitcode for rank in ranks):
            deadline = min(deadline, time.monotonic() + _GRACE_SECONDS)


def _be_rank(spec: GangSpec, rank: int, environment: Mapping[str, str]) -> None:
    from sparktrain.gang.process import redirect_output
    from sparktrain.gang.worker import call_in_group

    os.environ.clear()  # what is there comes from the server's start
    os.environ.update(environment)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    redirect_output(spec.log_file(rank))
    try:
        value = call_in_group(spec, World(rank=rank, size=spec.size, local_rank=rank), "127.0.0.1")
    except BaseException:
        traceback.print_exc()
        raise SystemExit(1) from None
    _value_file(spec, rank).write_bytes(value)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _raise_for(spec: GangSpec, codes: Sequence[int | None], timeout_seconds: float) -> None:
    from sparktrain.gang.blame import diagnose

    failed = [rank for rank, code in enumerate(codes) if code]
    running = [rank for rank, code in enumerate(codes) if code is None]
    if failed:
        ends = [f"rank {rank} ended with exit code {codes[rank]}" for rank in failed]
        raise diagnose(spec, ", ".join(ends), lost=failed)
    if running:
        logs = [str(spec.log_file(rank)) for rank in running]
        raise RankLost(running, f"it still ran after {timeout_seconds:g} s and was killed", logs)


def _values(spec: GangSpec) -> list[Any]:
    import cloudpickle

    return [cloudpickle.loads(_value_file(spec, rank).read_bytes()) for rank in range(spec.size)]


def _value_file(spec: GangSpec, rank: int) -> Path:
    return spec.directory / f"value-{rank:03d}.pickle"
