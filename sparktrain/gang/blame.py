"""Who is to blame: each rank writes down its own error, the driver picks the culprit among them."""

from __future__ import annotations

import json
import os
import re
import socket
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from sparktrain.errors import RankFailed, RankLost, SparktrainError, StepFailed
from sparktrain.gang.spec import GangSpec
from sparktrain.storage import commit_json
from sparktrain.world import World

_PEER_LOST = re.compile(
    r"connection (closed|reset|refused)|broken pipe|socket (closed|timeout)|peer|timed out waiting|"
    r"application timeout|recvall|sendall|NCCL.*(remote|abort)",
    re.IGNORECASE,
)
_LIBRARY = re.compile(r"/(site-packages|dist-packages|pyspark\.zip|lib/python3\.\d+)/|/sparktrain/(training|gang|runs|dataset)/|^<")


def write_error(spec: GangSpec, world: World, error: BaseException) -> None:
    """Leave this rank's error where the driver looks for it; before the sockets close, so before any victim's."""
    step = None
    if isinstance(error, StepFailed):
        step, error = error.step, error.__cause__ or error
    file = spec.error_file(world.rank)
    file.parent.mkdir(parents=True, exist_ok=True)
    commit_json(
        file,
        {
            "rank": world.rank,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "device": world.device,
            "step": step,
            "time": time.time(),
            "victim": is_victim(error),
            "exit_code": getattr(error, "exit_code", None),
            "message": f"{type(error).__name__}: {error}" if not isinstance(error, SparktrainError) else str(error),
            "user_lines": user_lines(error),
            "traceback": "".join(traceback.format_exception(error)),
        },
    )


def is_victim(error: BaseException) -> bool:
    """Whether this only says that another rank is gone."""
    if isinstance(error, dist.DistBackendError | dist.DistNetworkError):
        return True
    return type(error) is RuntimeError and _PEER_LOST.search(str(error)) is not None


def user_lines(error: BaseException) -> list[str]:
    """The traceback's lines in the user's own files, outermost first; all lines when there is none."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not _LIBRARY.search(frame.filename)]
    return [
        f'  File "{frame.filename}", line {frame.lineno}, in {frame.name}\n    {frame.line}' for frame in own or frames[-1:]
    ]


def diagnose(spec: GangSpec, spark_error: str) -> SparktrainError:
    """Explain why a gang failed.

    Args:
        spark_error: what Spark said, with all its stack; kept in a file.

    Returns:
        `RankFailed` for the first rank that raised on its own account, else `RankLost`.
    """
    stack = spec.directory / "spark-error.log"
    stack.write_text(spark_error, encoding="utf-8")
    found = sorted(_read_errors(spec), key=lambda e: e["time"])
    culprits = [e for e in found if not e["victim"]]
    if not culprits:
        silent = [rank for rank in range(spec.size) if rank not in {e["rank"] for e in found}]
        return RankLost(silent, _cause(spark_error), [str(stack), *_logs(spec, range(spec.size))])
    culprit = culprits[0]
    failed = RankFailed(
        rank=culprit["rank"],
        host=culprit["host"],
        message=culprit["message"],
        step=culprit["step"],
        device=culprit["device"],
        user_lines=culprit["user_lines"],
        logs=[str(spec.error_file(culprit["rank"])), *_logs(spec, [culprit["rank"]]), str(stack)],
    )
    failed.exit_code = culprit["exit_code"] or failed.exit_code
    return failed


def _read_errors(spec: GangSpec) -> list[dict[str, Any]]:
    files = [spec.error_file(rank) for rank in range(spec.size)]
    return [json.loads(file.read_bytes()) for file in files if file.exists()]


def _logs(spec: GangSpec, ranks: Sequence[int]) -> list[str]:
    return [str(path) for path in (spec.log_file(rank) for rank in ranks) if path.exists()]


def _cause(spark_error: str) -> str:
    """The line of Spark's stack that says most, short enough for one line."""
    for pattern in (r"ExecutorLostFailure.*", r"Python worker exited unexpectedly.*", r"Caused by: .*", r".*Exception: .*"):
        if match := re.search(pattern, spark_error):
            return match[0].strip()[:300]
    return spark_error.strip().splitlines()[0][:300] if spark_error.strip() else "Spark gave no reason"


def attempt_directory(path: Path) -> Path:
    """Create an attempt's directory, for our eyes only: it holds the rendezvous token."""
    path.mkdir(parents=True, mode=0o700)
    return path
