"""Contestants in processes of their own, whose rounds take turns with ours: a line asks, a line answers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]


class Child:
    """A module of this folder that runs `serve` under some interpreter. Use it as a context manager."""

    def __init__(self, module: str, python: Path | str = sys.executable) -> None:
        command = [str(python), "-W", "ignore", "-m", f"tests.benchmarks.{module}"]
        self._process = subprocess.Popen(
            command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, **request: object) -> Any:
        """Have the child do something, and wait for what it answers."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self._process.args} ended with code {self._process.wait()}; see its stderr")
        return json.loads(answer)


def serve(answer: Callable[..., object]) -> None:
    """Answer requests until nobody asks any more. What libraries print goes to stderr."""
    out, sys.stdout = sys.stdout, sys.stderr
    for request in sys.stdin:
        out.write(json.dumps(answer(**json.loads(request))) + "\n")
        out.flush()
