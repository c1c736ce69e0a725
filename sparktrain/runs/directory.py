"""The run directory: the only channel between ranks and driver, and what a later resume starts from."""

from __future__ import annotations

import fcntl
import math
import re
import secrets
import shlex
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sparktrain.errors import RunUnknown
from sparktrain.storage import AnyPath, commit_json, path_of, read_json, writable_directory

FINISHED = "finished"
_SILENT_SECONDS = 600
_NAME = re.compile(r"(?P<pipeline>.+)-\d{8}-\d{6}-[0-9a-f]{6}")


@dataclass(frozen=True)
class RunDirectory:
    """One training's directory, `<root>/runs/<pipeline>-<UTC time>-<token>`; only its owner may look inside.

    Attributes:
        path: absolute; the ranks are given the same one.
    """

    path: Path

    @classmethod
    def create(cls, root: Path, pipeline: str) -> RunDirectory:
        """Make a new run directory with its fixed subdirectories.

        Raises:
            StorageUnwritable: when `root` can't be written to.
        """
        runs = writable_directory(root / "runs")
        started = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        run = cls(runs / f"{pipeline}-{started}-{secrets.token_hex(3)}")
        run.path.mkdir(mode=0o700)
        for directory in (run.events, run.checkpoints, run.predictions):
            directory.mkdir()
        return run

    @classmethod
    def newest_unfinished(cls, root: Path, pipeline: str) -> RunDirectory | None:
        """Return the newest run of `pipeline` that got a spec and did not finish; None without one.

        One that trained comes before a newer one that failed before its first attempt: that has nothing to
        continue from.
        """
        runs = sorted(_runs_of(root, pipeline), key=_started, reverse=True)
        unfinished = [run for run in runs if run.spec_file.is_file() and not run.is_finished]
        return next((run for run in unfinished if run.num_attempts), next(iter(unfinished), None))

    @classmethod
    def all_in(cls, root: Path) -> list[RunDirectory]:
        """Return every run under `root`, the newest first."""
        return sorted(_runs_of(root, None), key=_started, reverse=True)

    @classmethod
    def named(cls, root: Path, name: str) -> RunDirectory:
        """Return the run of a name, or of the only one that begins like this; a path of a run will do, too.

        Raises:
            RunUnknown: there is none, or more than one.
        """
        path = Path(name).resolve()
        if "/" in name and path.is_dir() and _NAME.fullmatch(path.name):
            return cls(path)
        known = cls.all_in(root)
        found = [run for run in known if run.name == name] or [r for r in known if r.name.startswith(name)]
        if len(found) != 1:
            raise RunUnknown(name, str(root / "runs"), [run.name for run in found or known])
        return found[0]

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def began(self) -> float:
        """When it was created, in seconds since 1970, as its name says."""
        date, time_of_day = self.name.split("-")[-3:-1]
        return datetime.strptime(f"{date}{time_of_day}+0000", "%Y%m%d%H%M%S%z").timestamp()

    @property
    def root(self) -> Path:
        """Where it lies: `storage.root`, which the configuration may give relative to a working directory."""
        return self.path.parents[1]

    @property
    def events(self) -> Path:
        return self.path / "events"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def checkpoints_in(self, elsewhere: str | None) -> AnyPath:
        """Return where this run's checkpoints lie: a folder of its name in `elsewhere`, or its own."""
        return (path_of(elsewhere) / self.name).resolve() if elsewhere else self.checkpoints

    @property
    def predictions(self) -> Path:
        return self.path / "predictions"

    @property
    def faults(self) -> Path:
        """Marks of faults on purpose, in tests."""
        return self.path / "faults"

    @property
    def spec_file(self) -> Path:
        return self.path / "spec.json"

    @property
    def facts_file(self) -> Path:
        """What the run ran with, as the driver found it: a replay may run elsewhere, and much later."""
        return self.path / "facts.json"

    @property
    def profile(self) -> Path:
        """Traces of the profiler."""
        return self.path / "profile"

    @property
    def report_file(self) -> Path:
        """The run on one page, for people."""
        return self.path / "report.html"

    @property
    def mlflow_file(self) -> Path:
        return self.path / "mlflow.json"

    @property
    def result_file(self) -> Path:
        return self.path / "result.json"

    @property
    def outcome_file(self) -> Path:
        """What a training that came to its end has to publish."""
        return self.path / "outcome.json"

    @property
    def spill_file(self) -> Path:
        """Metrics that MLflow never took, to look at; a replay reads the events."""
        return self.path / "tracking-spill.jsonl"

    @property
    def replay_command(self) -> str:
        """What to type, once MLflow is back, to deliver what it lacks."""
        return f"sparktrain replay {shlex.quote(str(self.path))}"

    @contextmanager
    def only_reporter(self) -> Iterator[bool]:
        """Be the only process of this host that reports the run to MLflow; False where there is another.

        Two at once would each log what the other has just logged.
        """
        with self._lock_file.open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            except OSError:  # a file system without locks
                pass
            lock.truncate(0)
            lock.write(socket.gethostname())
            lock.flush()
            yield True

    @property
    def _lock_file(self) -> Path:
        return self.path / "reporter.lock"

    @property
    def is_led(self) -> bool:
        """Whether a process leads or reports the run; on another host: whether it wrote in ten minutes."""
        try:
            with self._lock_file.open() as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                is_ours = lock.read() in ("", socket.gethostname())
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        except OSError:  # a file system without locks
            is_ours = False
        return not is_ours and time.time() - self.last_sign < _SILENT_SECONDS

    @property
    def last_sign(self) -> float:
        """When something was written last, in seconds since 1970."""
        return max(p.stat().st_mtime for p in (self.path, self.events, *self.path.glob("*.json")))

    @property
    def is_finished(self) -> bool:
        try:
            result = read_json(self.result_file)
        except (FileNotFoundError, ValueError):
            return False
        return isinstance(result, dict) and result.get("status") == FINISHED

    def attempt(self, number: int) -> Path:
        """Return the directory of an attempt (from 1); the gang creates it, and never uses it twice."""
        return self.path / f"attempt-{number:03d}"

    def next_attempt(self) -> int:
        """Return the number after the highest attempt that left a directory."""
        taken = [
            int(entry.name.removeprefix("attempt-")) for entry in self.path.glob("attempt-[0-9][0-9][0-9]*")
        ]
        return max(taken, default=0) + 1

    @property
    def num_attempts(self) -> int:
        return len(list(self.path.glob("attempt-[0-9][0-9][0-9]*")))

    def failure_file(self, number: int) -> Path:
        """Why an attempt ended before its time, in the driver's words."""
        return self.attempt(number) / "failure.json"

    def write_result(self, result: Mapping[str, object]) -> None:
        """Commit `result.json`; a non-finite number becomes null, because JSON has none."""
        commit_json(self.result_file, _strict(result))


def _runs_of(root: Path, pipeline: str | None) -> Iterator[RunDirectory]:
    for path in (root / "runs").glob(f"{pipeline or ''}*-*"):
        # a whole match: "flights" must not pick up a run of "flights_by_hour"
        if (match := _NAME.fullmatch(path.name)) and pipeline in (None, match["pipeline"]):
            yield RunDirectory(path.resolve())


def _started(run: RunDirectory) -> tuple[str, int]:
    """Sort key: the second in the name, then the time of the file system for two runs of one second."""
    return "-".join(run.name.split("-")[-3:-1]), run.path.stat().st_ctime_ns


def _strict(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return value
