"""Training without Spark: in this process, or in those that torchrun started, each of which is a rank."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import HashStore  # type: ignore[attr-defined]  # exported, not by its stubs

from sparktrain.config import TrainConfig
from sparktrain.errors import ConfigError
from sparktrain.gang.blame import attempt_directory, rank_failed
from sparktrain.gang.rank import RunSpec, train_rank
from sparktrain.runs.directory import RunDirectory
from sparktrain.world import World


class Alone:
    """The one attempt of such a training, as its first rank leads it; starting again is torchrun's part.

    Attributes:
        number: over all of the run's attempts, resumed ones included.
        ranks: processes.
    """

    def __init__(self, run: RunDirectory, config: TrainConfig) -> None:
        self.number, self.ranks = run.next_attempt(), config.ranks
        self._run, self._config = run, config

    def run(self, spec: RunSpec, reached: int) -> dict[str, Any]:
        """Send the other ranks what to train, and train with them."""
        attempt_directory(self._run.attempt(self.number))
        with _group(self._config):
            _agree([(spec, self.number)])
            return _train(spec, self.number)


def attend(config: TrainConfig) -> None:
    """Be one of the other ranks: wait for what the first one sends, and train with it."""
    # While it waits for a first rank that has failed, Python's own handler would not get its turn.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with _group(config):
        spec, number = _agree([None])
        _train(spec, number)


def check_processes(config: TrainConfig) -> None:
    """Refuse to start with another number of processes than the configuration says.

    Raises:
        ConfigError: with the command that starts the right number.
    """
    size = World.from_environment().size
    if size != config.ranks:
        way_out = f"set train.ranks={size}, or start it by: torchrun --nproc-per-node={config.ranks} …"
        raise ConfigError([f"train.ranks: {config.ranks} given, without Spark {size} started; {way_out}"])


def _train(spec: RunSpec, attempt: int) -> dict[str, Any]:
    os.environ["SPARKTRAIN_ATTEMPT"] = str(attempt)
    try:
        return train_rank(spec)
    except Exception as error:
        raise rank_failed(World.from_environment(), error) from error


@contextmanager
def _group(config: TrainConfig) -> Iterator[None]:
    """Be in the process group that torchrun's variables describe, or in one of this process alone."""
    world = World.from_environment()
    torch.set_num_threads(config.cpus_per_rank)
    if config.gpus_per_rank:
        os.environ["SPARKTRAIN_DEVICE"] = f"cuda:{world.local_rank}"
        torch.cuda.set_device(world.local_rank)
    backend = "nccl" if config.gpus_per_rank else "gloo"
    timeout = timedelta(seconds=config.collective_timeout_seconds)
    if world.size == 1:  # it has a group and the variables as well, as a gang of one has
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
        dist.init_process_group(backend, timeout=timeout, store=HashStore(), rank=0, world_size=1)
    else:
        dist.init_process_group(backend, timeout=timeout)
    try:
        yield
        dist.barrier()  # nobody closes a connection that another still uses
    finally:
        dist.destroy_process_group()


def _agree(sent: list[Any]) -> Any:
    dist.broadcast_object_list(sent, src=0)
    return sent[0]
