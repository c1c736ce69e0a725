"""How a command ends: one message on stderr, one JSON object on stdout where wanted, one exit code."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from sparktrain.errors import EXIT_INFRASTRUCTURE, SparktrainError

AsJson = Annotated[
    bool, typer.Option("--json", help="print one JSON object on stdout, everything else on stderr")
]
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
_CTRL_C = "interrupted", EXIT_INTERRUPTED


class Terminated(KeyboardInterrupt):
    """SIGTERM, handled on the same path as Ctrl-C."""


@contextmanager
def outcome_as_exit_code(as_json: bool) -> Iterator[None]:
    """Turn errors into one message on stderr and an exit code; the codes are those of `sparktrain.errors`."""
    signal.signal(signal.SIGTERM, _terminate)
    # MLflow draws a bar for every file that it copies, above and within our own.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        yield
    except typer.Exit:
        raise
    except (Exception, KeyboardInterrupt) as error:
        interrupt = _interrupt_behind(error)
        if interrupt is not None:
            _fail_interrupted(interrupt, as_json)
        if isinstance(error, SparktrainError):
            _fail(str(error), error.exit_code, as_json, error.result)
        traceback.print_exc()
        _fail(f"unexpected {type(error).__name__}: {error}", EXIT_INFRASTRUCTURE, as_json, {})


def _fail_interrupted(interrupt: KeyboardInterrupt, as_json: bool) -> NoReturn:
    what, code = ("terminated", EXIT_TERMINATED) if isinstance(interrupt, Terminated) else _CTRL_C
    result = getattr(interrupt, "result", {})
    way_on = ": resume=true continues this run from its last checkpoint" if result else ""
    _fail(what + way_on, code, as_json, {**result, "status": "killed"})


def _interrupt_behind(error: BaseException | None) -> KeyboardInterrupt | None:
    """The interrupt that an error came of: on its way out, asking the dying JVM can raise another one."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error


def _terminate(number: int, frame: object) -> None:
    raise Terminated


def _fail(text: str, exit_code: int, as_json: bool, result: Mapping[str, Any]) -> NoReturn:
    Console(stderr=True).print(f"[bold red]error:[/] {escape(text)}", highlight=False, soft_wrap=True)
    if as_json:
        print_json({"status": "failed", "error": text, "exit_code": exit_code, **result})
    raise typer.Exit(exit_code)


def print_json(result: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(result, sort_keys=True) + "\n")
    sys.stdout.flush()
