"""Strategies on a slow network: what a step sends and takes, seconds to the same validation loss."""

from __future__ import annotations

import json
import pickle
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import cloudpickle
import pytest

from sparktrain.config import DdpConfig, LocalSgdConfig, TrainConfig
from sparktrain.dataset import Dataset
from sparktrain.gang.spec import GangSpec
from sparktrain.testing import write_tiny_dataset
from tests.benchmarks.children import Child
from tests.benchmarks.slow_network import ADDRESSES, DEVICE
from tests.benchmarks.tables import print_figures
from tests.benchmarks.train_to_target import train_to_target
from tests.fixtures.command import ROOT

pytestmark = pytest.mark.timeout(900)

MEGABITS, DELAY_SECONDS = 50, 0.02
HIDDEN_SIZES = (1024, 1024)  # 1.1 million weights
PERIOD = 16  # steps between averages, and between evaluations
TARGET_LOSS = 0.2  # after some tens of steps
STEADY_FROM = PERIOD + 1  # until then powersgd sends some gradients whole
CONFIG = TrainConfig(
    ranks=2,
    global_batch_size=256,
    max_steps=10 * PERIOD,
    learning_rate=1e-3,
    warmup_fraction=0.0,
    schedule="constant",
    evaluate_every_steps=PERIOD,
    best_metric="loss",
)
STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {},
    "ddp, fp16": {"ddp": DdpConfig(compression="fp16")},
    "ddp, powersgd": {"ddp": DdpConfig(compression="powersgd")},
    "local_sgd": {"strategy": "local_sgd", "local_sgd": LocalSgdConfig(average_every_steps=PERIOD)},
    "DiLoCo": {
        "strategy": "local_sgd",
        "local_sgd": LocalSgdConfig(average_every_steps=PERIOD, outer_learning_rate=0.7),
    },
}


@pytest.fixture
def hosts() -> Iterator[Sequence[str]]:
    """The network namespace of each of two hosts."""
    with Child("slow_network") as child:
        found = child.ask(rate=f"{MEGABITS}mbit", delay_seconds=DELAY_SECONDS)
        if isinstance(found, str):
            pytest.skip(f"no slow network, which takes root, ip, tc and TUN devices: {found}")
        yield found


def train(hosts: Sequence[str], dataset: Dataset, config: TrainConfig, directory: Path) -> dict[str, Any]:
    """Train with a rank on each host; return rank 0's journal."""
    (directory / "saves").mkdir(parents=True)
    arguments = (HIDDEN_SIZES, dataset.path, config, directory, DEVICE, TARGET_LOSS)
    spec = GangSpec(
        directory=directory,
        size=2,
        token=secrets.token_hex(16),
        payload=cloudpickle.dumps((train_to_target, arguments)),
        collective_timeout_seconds=60.0,
    )
    spec.create_folders()
    file = directory / "spec.pickle"
    file.write_bytes(pickle.dumps(spec))
    rank = [sys.executable, "-m", "tests.fixtures.rank_on_a_host", str(file)]
    ranks = [
        subprocess.Popen(["nsenter", f"--net={host}", *rank, str(number), address], cwd=ROOT)
        for number, (host, address) in enumerate(zip(hosts, ADDRESSES, strict=True))
    ]
    try:
        codes = [rank.wait(240) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait(30)
    assert codes == [0, 0], spec.log_file(0).read_text() + spec.log_file(1).read_text()
    found: dict[str, Any] = json.loads((directory / "journal.json").read_text())
    return found


def test_seconds_to_the_same_loss(hosts: Sequence[str]) -> None:
    rows, seconds_to_target, bytes_a_step = [], {}, {}
    with tempfile.TemporaryDirectory() as scratch:
        sizes = {"num_numeric": 12, "num_categorical": 8, "rows_per_row_group": 1024}
        dataset = write_tiny_dataset(Path(scratch) / "rows", 60_000, validation_rows=2048, **sizes)
        for name, changes in STRATEGIES.items():
            config = CONFIG.model_copy(update=changes)
            found = train(hosts, dataset, config, Path(scratch) / name)
            step, seconds, loss = found["evaluations"][-1]
            assert loss <= TARGET_LOSS, f"{name}: {found['evaluations']}"
            seconds_to_target[name] = seconds
            steady = [one for one in found["steps"] if one[0] >= STEADY_FROM]
            bytes_a_step[name] = fmean(one[2] for one in steady)
            figures = [f"{bytes_a_step[name] / 1e3:,.0f}", f"{fmean(one[1] for one in steady):.3f}"]
            in_steps = sum(one[1] for one in found["steps"])
            times_as_fast = seconds_to_target["ddp"] / seconds
            figures += [str(step), f"{loss:.3f}", f"{seconds:.1f}", f"{in_steps:.1f}", f"{times_as_fast:.1f}"]
            rows.append([name, *figures])
    network = f"{MEGABITS} Mbit/s, {DELAY_SECONDS * 1000:g} ms each way"
    title = f"Two hosts, {network}, to a validation loss of {TARGET_LOSS}, evaluated every {PERIOD} steps"
    header = [
        "",
        "kB sent a step",
        "s a step",
        "steps",
        "loss",
        "seconds",
        "in steps",
        "times as fast as ddp",
    ]
    print_figures(title, header, rows)
    assert bytes_a_step["ddp, fp16"] < 0.6 * bytes_a_step["ddp"]
    for name in ("ddp, powersgd", "local_sgd", "DiLoCo"):
        assert bytes_a_step[name] < 0.1 * bytes_a_step["ddp"], name
        assert seconds_to_target[name] < seconds_to_target["ddp"], name
