"""Steps of our engine, streamed, beside those of a hand-written loop over tensors in memory."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn

from pipelines.flight_delays.model import Task
from sparktrain.config import TrainConfig
from sparktrain.dataset import Dataset, open_dataset
from sparktrain.testing import run_ranks, write_tiny_dataset
from sparktrain.training.loop import Loop
from sparktrain.training.task import Callback
from sparktrain.world import World
from tests.benchmarks.plain_ddp import PlainLoop
from tests.benchmarks.tables import print_figures

pytestmark = pytest.mark.timeout(900)

RANKS = 2
BATCH = 2048
TURN = 10  # steps; our loop logs at each tenth
WARM_STEPS = 10
# hidden sizes of the flights' model, its own and larger ones, and how many turns they take
SIZES = {"256, 128": ((256, 128), 30), "1024, 1024": ((1024, 1024), 10)}
# the plain loop has no schedule
CONFIG = TrainConfig(
    ranks=RANKS, global_batch_size=BATCH, learning_rate=1e-3, warmup_fraction=0.0, schedule="constant"
)


class Turns(Callback):
    """Lets a plain loop have its turn between two of ours, in the same processes: a busy moment hits both.

    The stream's readers have filled their buffers by then, so that they rest; what our steps take out of
    them is put back during our steps.

    Attributes:
        ours, plain: by turn: seconds, of the processor, of waiting for data, of waiting for other ranks.
    """

    def __init__(self) -> None:
        self.ours: list[NDArray[np.float64]] = []
        self.plain: list[NDArray[np.float64]] = []
        self.loops: tuple[Loop, PlainLoop] | None = None
        self._began: NDArray[np.float64] | None = None

    def on_step(self, step: int, model: nn.Module) -> None:
        if step % TURN or step < WARM_STEPS:
            return
        if self._began is not None:
            self.ours.append(self._read() - self._began)
        assert self.loops is not None
        torch.use_deterministic_algorithms(False)  # as it is by itself
        began = self._read()
        self.loops[1].train(TURN)
        self.plain.append(self._read() - began)
        torch.use_deterministic_algorithms(True)
        self._began = self._read()

    def _read(self) -> NDArray[np.float64]:
        assert self.loops is not None
        stream, clock = self.loops[0].stream, self.loops[0].window.clock
        return np.array(
            [time.perf_counter(), time.process_time(), stream.wait_seconds, clock.communication_seconds]
        )


@dataclass(frozen=True)
class TakingTurns(Task):
    turns: Turns = field(default_factory=Turns)

    def callbacks(self) -> list[Callback]:
        return [self.turns]


def take_turns(path: Path, hidden_sizes: tuple[int, ...], config: TrainConfig) -> Turns:
    """Train a rank by our engine and by hand in turns."""
    dataset, task = open_dataset(path), TakingTurns(hidden_sizes=hidden_sizes)
    share = slice(dist.get_rank(), None, dist.get_world_size())
    table = pq.ParquetDataset(path / "train").read()
    columns = {name: torch.from_numpy(table[name].to_numpy()[share].copy()) for name in table.column_names}
    with tempfile.TemporaryDirectory() as scratch:
        loop = Loop(task, dataset, config, World.from_environment(), Path(scratch), lambda event: None)
        plain = PlainLoop(task.build_model(dataset.features), columns, config)
        plain.train(WARM_STEPS)
        task.turns.loops = loop, plain
        loop.run(None)
    task.turns.loops = None  # they stay here
    return task.turns


@pytest.fixture(scope="module")
def dataset() -> Iterator[Dataset]:
    """Like the flights: 8 categories among 20 features."""
    sizes = {"num_numeric": 12, "num_categorical": 8, "rows_per_row_group": 4096}
    with tempfile.TemporaryDirectory() as scratch:
        yield write_tiny_dataset(Path(scratch) / "flights", 300 * BATCH, **sizes)


def test_engine_beside_a_loop_by_hand(dataset: Dataset) -> None:
    rows = []
    for name, (hidden_sizes, turns) in SIZES.items():
        steps = WARM_STEPS + turns * TURN
        config = CONFIG.model_copy(update={"max_steps": steps})
        found = run_ranks(RANKS, take_turns, dataset.path, hidden_sizes, config, timeout_seconds=300)[0]
        ours, plain = np.array(found.ours), np.array(found.plain)  # [turns, 4], [turns + 1, 4]
        assert (len(ours), len(plain)) == (turns, turns + 1)
        around = (plain[1:] + plain[:-1]) / 2
        ratio, cpu_ratio = np.median(around[:, :2] / ours[:, :2], axis=0)
        ms, plain_ms = (np.median(spent[:, 0]) / TURN * 1000 for spent in (ours, around))
        wait, communication = np.median(ours[:, 2:] / ours[:, :1], axis=0)
        figures = [f"{f:.3f}" for f in (ratio, cpu_ratio, 1 - wait, wait, communication)]
        rows.append([name, f"{ms:.1f}", f"{plain_ms:.1f}", *figures])
    title = f"Steps of {BATCH} rows on {RANKS} ranks, streamed, beside tensors in memory (goal: ratio ≥ 0.95)"
    header = [
        "hidden sizes",
        "ms a step",
        "plain",
        "ratio",
        "of CPU",
        "headroom",
        "data wait",
        "communication",
    ]
    print_figures(title, header, rows)
