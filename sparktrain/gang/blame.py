"""Who is to blame: each rank writes down its own error, the driver picks the culprit among them."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import sysconfig
import time
import traceback
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import sparktrain
from sparktrain.errors import (
    AttemptExists,
    ExecutorUnfit,
    RankFailed,
    RankLost,
    SparkFailed,
    SparktrainError,
    StepFailed,
    first_line,
)
from sparktrain.gang.spec import GangSpec
from sparktrain.gang.watch import ends_of
from sparktrain.storage import commit_json
from sparktrain.world import World

# What gloo says, with its place in gloo's source, when another rank is gone or silent. Both parts are needed:
# people write about peers and timeouts in errors of their own.
_PEER_LOST = re.compile(
    r"gloo\S*\.(cc|h):\d+\].*(connection (closed|reset|refused)|broken pipe|socket (closed|timeout)|"
    r"time[d]? ?out|connectFullMesh)|Gloo connectFullMesh failed",
    re.IGNORECASE | re.DOTALL,
)
# Why Spark's Python worker can run no rank.
_UNFIT = re.compile(
    r"^\s*(?:ModuleNotFoundError|ImportError): .+$|\[PYTHON_VERSION_MISMATCH\][^\n]*", re.MULTILINE
)
_PACKAGE = Path(sparktrain.__file__).parent
_STANDARD_LIBRARY = Path(sysconfig.get_path("stdlib"))
_INSTALLED = re.compile(r"/(?:site|dist)-packages/([^/.]+)|/pyspark\.zip/(pyspark)/")
# Installed packages that are never the user's own; a pipeline may well be installed, too.
_FRAMEWORKS = {
    "cloudpickle",
    "numpy",
    "pandas",
    "py4j",
    "pyarrow",
    "pydantic",
    "pyspark",
    "safetensors",
    "torch",
}
_FRAMEWORKS |= {"sparktrain", "torchmetrics"}
_FIRST_LINES, _LAST_LINES = 2, 6


def write_error(spec: GangSpec, world: World, error: BaseException) -> None:
    """Leave this rank's error where the driver looks; before the sockets close, so before any victim's."""
    file = spec.error_file(world.rank)
    file.parent.mkdir(exist_ok=True)
    # To be read by people; before the other, which the driver takes for the news.
    spec.traceback_file(world.rank).write_text(
        _encodable("".join(traceback.format_exception(_cause_of(error))))
    )
    commit_json(file, _record(world, error))


def rank_failed(world: World, error: BaseException) -> RankFailed:
    """Explain an error of this very process, which is the rank."""
    return _explain(_record(world, error), is_transient=is_victim(error), logs=[])


def _record(world: World, error: BaseException) -> dict[str, Any]:
    step = error.step if isinstance(error, StepFailed) else None
    error = _cause_of(error)
    text = _text(error)
    return {
        "rank": world.rank,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "device": world.device,
        "step": step,
        "time": time.time(),
        "victim": is_victim(error),
        "exit_code": error.exit_code if isinstance(error, SparktrainError) else None,
        "transient": isinstance(error, SparktrainError) and error.is_transient,
        "message": text if isinstance(error, SparktrainError) else f"{type(error).__name__}: {text}",
        "user_lines": [_encodable(line) for line in user_lines(error)],
    }


def _cause_of(error: BaseException) -> BaseException:
    return (error.__cause__ or error) if isinstance(error, StepFailed) else error


def _explain(record: Mapping[str, Any], is_transient: bool, logs: Sequence[str]) -> RankFailed:
    failed = RankFailed(
        rank=record["rank"],
        host=record["host"],
        message=record["message"],
        step=record["step"],
        device=record["device"],
        user_lines=record["user_lines"],
        logs=logs,
    )
    failed.exit_code = record["exit_code"] or failed.exit_code
    failed.is_transient = is_transient or record["transient"]
    return failed


def is_victim(error: BaseException | None) -> bool:
    """Whether this only says that another rank is gone, or was raised because of that."""
    seen: set[int] = set()  # `raise error from error` makes a ring
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        # Asked of the module only where it is loaded: an error of its own import must find its way out, too.
        dist = sys.modules.get("torch.distributed")
        if dist is not None and isinstance(error, dist.DistBackendError | dist.DistNetworkError):
            return True
        if type(error) is RuntimeError and _PEER_LOST.search(str(error)) is not None:
            return True
        error = error.__cause__ or error.__context__
    return False


def user_lines(error: BaseException) -> list[str]:
    """The traceback's lines in the user's own files, outermost first; the innermost line if there is none."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if is_own_file(frame.filename)] or frames[-1:]
    lines = [_line(frame) for frame in own]
    left_out = len(lines) - _FIRST_LINES - _LAST_LINES
    if left_out > 0:  # an endless recursion has a thousand of them
        lines[_FIRST_LINES:-_LAST_LINES] = [f"  … {left_out} more lines"]
    return lines


def is_own_file(filename: str) -> bool:
    """Whether a source file is the user's: no part of Python, of a framework, or of this package."""
    if filename == "<string>" or filename.startswith("<frozen "):  # a notebook's cell is "<command-1>" or so
        return False
    if match := _INSTALLED.search(filename):
        return (match[1] or match[2]) not in _FRAMEWORKS
    return not any(Path(filename).is_relative_to(folder) for folder in (_PACKAGE, _STANDARD_LIBRARY))


def _line(frame: traceback.FrameSummary) -> str:
    place = f'  File "{frame.filename}", line {frame.lineno}, in {frame.name}'
    return f"{place}\n    {frame.line}" if frame.line else place


def _text(error: BaseException) -> str:
    try:
        return _encodable(str(error))
    except Exception:  # a __str__ of the user's must not hide who failed
        return "(its message can't be shown)"


def _encodable(text: str) -> str:
    """Escape what UTF-8 can't hold: a file name that is not UTF-8 reaches Python as such characters."""
    return text.encode("utf-8", "backslashreplace").decode()


def diagnose(
    spec: GangSpec, report: str, lost: Sequence[int] = (), answered: Collection[int] = ()
) -> SparktrainError:
    """Explain why a gang failed.

    Args:
        report: what Spark (or whoever ran the ranks) said, with all its stack; kept in a file. "": nothing.
        lost: ranks whose processes are known to have died; else they are looked for in the guards' words,
            and in Spark's.

        answered: ranks that gave a value.

    Returns:
        `ExecutorUnfit` if Spark's Python could run no rank at all, `SparkFailed` if all came to their end;
        else `RankFailed` for the first rank that raised on its own account, else `RankLost`.
    """
    stack = spec.directory / "launcher-error.log"
    if report:
        stack.write_text(report, encoding="utf-8", errors="backslashreplace")
    found = sorted(_read_errors(spec), key=lambda e: e["time"])
    spoke = {e["rank"] for e in found} | set(answered)
    silent = [rank for rank in range(spec.size) if rank not in spoke]
    culprits = [e for e in found if not e["victim"]]
    told = [str(stack)] if report else []
    if report and not found:
        if (unfit := _UNFIT.search(report)) and not any(map(Path.exists, map(spec.start_file, silent))):
            return ExecutorUnfit(unfit[0].strip(), str(stack))
        ends = [end["status"] for end in ends_of(spec).values()]
        if ends == ["exit code 0"] * spec.size:
            return SparkFailed("The values of the ranks did not come back", _cause(report), str(stack))
    if silent and not culprits:
        logs = [*told, *_logs(spec, range(spec.size))]
        if died := _died_first(spec, silent, has_rows=not report):
            return RankLost([died["rank"]], _last_place(died), logs, is_known=True)
        named = [rank for rank in lost if rank in silent] or _lost_first(report, silent)
        return RankLost(named, _cause(report), logs)
    culprit = (culprits or found)[0]  # when each lost the others, all are there to tell: the first knows most
    logs = [str(spec.traceback_file(culprit["rank"])), *_logs(spec, [culprit["rank"]]), *told]
    return _explain(culprit, is_transient=not culprits, logs=logs)


def _died_first(spec: GangSpec, silent: Sequence[int], has_rows: bool) -> dict[str, Any] | None:
    """Of the ranks that said nothing, the first that ended by itself, and not because it was told to.

    One that left by os._exit(0) is among them if none ended in a worse way, and if it surely gave no value.
    """
    ends = [end for rank, end in ends_of(spec).items() if rank in silent and end["status"] is not None]
    bad = [end for end in ends if end["status"] != "exit code 0"]
    return min(bad or (ends if has_rows else []), key=lambda end: end["time"], default=None)


def _last_place(end: Mapping[str, Any]) -> str:
    step = f" at step {end['step']}" if end["step"] is not None else ""
    return f"process {end['pid']} on {end['host']}{step}: {end['status']}"


def _lost_first(spark_error: str, silent: Sequence[int]) -> Sequence[int]:
    """Of the ranks that said nothing, the one whose task Spark saw failing: it then stopped the rest."""
    failed = [
        int(partition) for partition in re.findall(r"barrier task ResultTask\(\d+, (\d+)\)", spark_error)
    ]
    return [rank for rank in failed[:1] if rank in silent] or silent


def _read_errors(spec: GangSpec) -> list[dict[str, Any]]:
    files = [spec.error_file(rank) for rank in range(spec.size)]
    return [json.loads(file.read_bytes()) for file in files if file.exists()]


def _logs(spec: GangSpec, ranks: Sequence[int]) -> list[str]:
    return [str(path) for path in (spec.log_file(rank) for rank in ranks) if path.exists()]


def _cause(spark_error: str) -> str:
    """The line of Spark's stack that says most, short enough for one line."""
    telling = (
        "ExecutorLostFailure.*",
        "Python worker exited unexpectedly[^.]*",
        "Caused by: .*",
        ".*Exception: .*",
    )
    for pattern in telling:
        if match := re.search(pattern, spark_error):
            return match[0].strip(" :")[:300]
    return first_line(spark_error)[:300] or "Spark gave no reason"


def attempt_directory(path: Path) -> Path:
    """Create an attempt's directory, for our eyes only: it holds the rendezvous token.

    Raises:
        AttemptExists: the files of another attempt lie there, and would be taken for this one's.
    """
    try:
        path.mkdir(parents=True, mode=0o700)
    except FileExistsError:
        raise AttemptExists(str(path)) from None
    return path
