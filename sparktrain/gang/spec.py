"""GangSpec: all that a rank is told, and the files in which it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class GangSpec:
    """One attempt of a gang; frozen and picklable.

    Attributes:
        directory: the attempt's own (mode 0700), seen by driver and ranks: rendezvous, errors, logs.
        token: secret of this attempt; only who can read `directory` knows it.
        payload: cloudpickle of (function, arguments), the same for every rank.
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

    @property
    def rendezvous_file(self) -> Path:
        return self.directory / "rendezvous.json"

    def error_file(self, rank: int) -> Path:
        return self.directory / "errors" / f"rank-{rank:03d}.json"

    def log_file(self, rank: int) -> Path:
        return self.directory / "logs" / f"rank-{rank:03d}.log"
