"""World: who this rank is. A frozen value, detected once and passed down."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class World:
    """One training process among its gang.

    `rank` counts over the gang, `local_rank` over the ranks of the same host; `device` is a torch device
    string ("cpu", "cuda:0"); `attempt` counts the tries of the gang from 1.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    device: str = "cpu"
    attempt: int = 1

    def __post_init__(self) -> None:
        assert 0 <= self.rank < self.size, f"rank {self.rank} of {self.size}"

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> World:
        """Read the variables that both `torchrun` and our gang set; without them: one process."""
        env = os.environ if environment is None else environment
        return cls(
            rank=int(env.get("RANK", "0")),
            size=int(env.get("WORLD_SIZE", "1")),
            local_rank=int(env.get("LOCAL_RANK", "0")),
            device=env.get("SPARKTRAIN_DEVICE", "cpu"),
            attempt=int(env.get("SPARKTRAIN_ATTEMPT", "1")),
        )
