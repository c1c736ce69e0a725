"""GangSpec: all that a rank is told, and the files in which driver and ranks answer one another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class GangSpec:
    """One attempt of a gang; frozen and picklable.

    Attributes:
        directory: the attempt's own (mode 0700), seen by driver and ranks: rendezvous, errors, logs.
        token: secret of this attempt; only who can read `directory` knows it.
        payload: cloudpickle of (function, arguments), the same for every rank.
        versions: of the driver's packages, which the ranks' must equal; empty: not compared.
        preload: modules that Spark's Python worker imports before it forks a rank, and keeps for the next.
    """

    directory: Path
    size: int
    token: str = field(repr=False)  # no secret in a log
    payload: bytes = field(repr=False)
    cpus_per_rank: int = 1
    gpus_per_rank: int = 0
    attempt: int = 1
    start_timeout_seconds: float = 120.0
    collective_timeout_seconds: float = 600.0
    versions: Mapping[str, str] = field(default_factory=dict)
    preload: tuple[str, ...] = ()

    @property
    def rendezvous_file(self) -> Path:
        return self.directory / "rendezvous.json"

    @property
    def stop_file(self) -> Path:
        """From the driver: let no rank live on."""
        return self.directory / "stop"

    @property
    def dump_file(self) -> Path:
        """From the driver: let every rank write down where it is."""
        return self.directory / "dump"

    def error_file(self, rank: int) -> Path:
        return self.directory / "errors" / f"rank-{rank:03d}.json"

    def traceback_file(self, rank: int) -> Path:
        return self.directory / "errors" / f"rank-{rank:03d}.txt"

    def log_file(self, rank: int) -> Path:
        return self.directory / "logs" / f"rank-{rank:03d}.log"

    def stack_file(self, rank: int) -> Path:
        return self.directory / "stacks" / f"rank-{rank:03d}.txt"

    def start_file(self, rank: int) -> Path:
        """That the rank's process exists: host, pid."""
        return self.directory / "ranks" / f"rank-{rank:03d}-started.json"

    def end_file(self, rank: int) -> Path:
        """That it is gone, with everything it started, and of what."""
        return self.directory / "ranks" / f"rank-{rank:03d}-ended.json"

    def beat_file(self, rank: int) -> Path:
        """How far it is; rewritten in place all the time."""
        return self.directory / "ranks" / f"rank-{rank:03d}-beat.json"

    def create_folders(self) -> None:
        for folder in ("errors", "logs", "stacks", "ranks"):
            (self.directory / folder).mkdir(exist_ok=True)
