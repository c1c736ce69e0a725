"""Faults on purpose: what is to go wrong in which rank at which step, to see that a training survives it.

Only where the driver's environment has SPARKTRAIN_FAULTS, a JSON list such as
[{"rank": 1, "step": 13, "kind": "sigkill"}], does anything happen.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sparktrain.errors import ConfigError, nearest
from sparktrain.storage import commit_json
from sparktrain.world import World

VARIABLE = "SPARKTRAIN_FAULTS"


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        rank: which strikes.
        step: the optimizer update before which it does.
        kind: of `KINDS`.
        attempt: in which it does, and in no other.
        seconds: how long "slow" takes, at each step from that one on, and "hang".
    """

    rank: int
    step: int
    kind: str
    attempt: int = 1
    seconds: float = 3600.0


@dataclass(frozen=True)
class FaultPlan:
    """Faults, and the folder where each leaves a file before it strikes: nobody need believe that it did."""

    faults: Sequence[Fault]
    folder: Path

    @classmethod
    def from_environment(cls, folder: Path, environment: Mapping[str, str] | None = None) -> FaultPlan | None:
        """Read the plan of this process' environment; None if there is none.

        Raises:
            ConfigError: it is no list of faults.
        """
        text = (os.environ if environment is None else environment).get(VARIABLE)
        if not text:
            return None
        try:
            faults = [Fault(**entry) for entry in json.loads(text)]
        except (ValueError, TypeError) as error:
            raise ConfigError([f"{error}; give a JSON list of {{rank, step, kind}}"], VARIABLE) from error
        for fault in faults:
            if fault.kind not in KINDS:
                meant = nearest(fault.kind, list(KINDS)) or f"one of {', '.join(KINDS)}"
                raise ConfigError([f"there is no fault {fault.kind!r}; give {meant}"], VARIABLE)
        return cls(faults, folder)

    def strike(self, world: World, step: int, batch: Mapping[str, Any]) -> None:
        """Do what the plan has for this rank before this step."""
        for fault in self.faults:
            if (fault.rank, fault.attempt) != (world.rank, world.attempt):
                continue
            if fault.step == step or (fault.kind == "slow" and fault.step < step):
                self._mark(fault, step)
                KINDS[fault.kind](fault, batch)

    def _mark(self, fault: Fault, step: int) -> None:
        self.folder.mkdir(exist_ok=True)
        name = f"attempt-{fault.attempt:03d}-rank-{fault.rank:03d}-step-{step:09d}-{fault.kind}.json"
        commit_json(self.folder / name, {**asdict(fault), "time": time.time()})


def _raise(fault: Fault, batch: Mapping[str, Any]) -> None:
    raise ValueError(f"a fault on purpose before step {fault.step}")


def _signal(number: int) -> Callable[[Fault, Mapping[str, Any]], None]:
    return lambda fault, batch: os.kill(os.getpid(), number)


def _sleep(fault: Fault, batch: Mapping[str, Any]) -> None:
    time.sleep(fault.seconds)


def _exit(fault: Fault, batch: Mapping[str, Any]) -> None:
    os._exit(0)


def _poison(fault: Fault, batch: Mapping[str, Any]) -> None:
    batch["row_weight"].fill_(float("nan"))


def _kill_ancestor(name: str) -> Callable[[Fault, Mapping[str, Any]], None]:
    def kill(fault: Fault, batch: Mapping[str, Any]) -> None:
        os.kill(_ancestor(name), signal.SIGKILL)
        time.sleep(fault.seconds)  # this process goes with it

    return kill


def _ancestor(name: str) -> int:
    """The nearest process above this one that runs the program `name`."""
    pid = os.getppid()
    while pid > 1:
        stat = Path(f"/proc/{pid}/stat").read_text()
        command, _, rest = stat.partition("(")[2].rpartition(")")
        if command == name:
            return pid
        pid = int(rest.split()[1])
    raise LookupError(f"no {name} above this process")


def _kill_worker(fault: Fault, batch: Mapping[str, Any]) -> None:
    """Kill Spark's Python worker, which forked the guard, which forked this rank."""
    guard = Path(f"/proc/{os.getppid()}/stat").read_text()
    os.kill(int(guard.rpartition(")")[2].split()[1]), signal.SIGKILL)
    time.sleep(fault.seconds)


KINDS: Mapping[str, Callable[[Fault, Mapping[str, Any]], None]] = {
    "raise": _raise,
    "exit": _exit,
    "sigkill": _signal(signal.SIGKILL),
    "sigstop": _signal(signal.SIGSTOP),
    "hang": _sleep,
    "slow": _sleep,
    "nan": _poison,
    "kill_worker": _kill_worker,
    "kill_executor": _kill_ancestor("java"),
}
"""What can be made to go wrong; "nan" makes the rank's loss not a number, "kill_executor" kills its JVM."""
