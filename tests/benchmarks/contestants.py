"""Who takes part in the benchmarks of the stream: ourselves, the physical limit, and our peers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from sparktrain.dataset import Dataset, Stream
from tests.benchmarks.children import Child
from tests.benchmarks.tables import Reading, timed

NUM_THREADS = 2
BATCH = 8192
NUM_LANES = 16
# further arguments of every stream of ours
STREAM_OPTIONS: dict[str, Any] = {}

_PYTHON35 = "SPARKTRAIN_BENCH_PYTHON35"


def open_stream(dataset: Dataset, batch: int = BATCH, **options: Any) -> Stream:
    return dataset.stream("train", batch, **{"num_lanes": NUM_LANES, **STREAM_OPTIONS, **options})


def ours(dataset: Dataset, batch: int = BATCH, **options: Any) -> Callable[[], Reading]:
    """An epoch of our stream, opened anew."""

    def drain() -> int:
        rows = 0
        for found in open_stream(dataset, batch, **options):
            float(found["label"].sum())
            rows += len(found["label"])
        return rows

    return timed(drain)


def limit(directory: Path, verify: bool) -> Callable[[], Reading]:
    """Reading row groups and nothing else: two threads, each with its own files."""

    def read_files(files: list[Path]) -> int:
        rows = 0
        for path in files:
            options = {"memory_map": True, "pre_buffer": False, "page_checksum_verification": verify}
            with pq.ParquetFile(path, **options) as file:
                for group in range(file.num_row_groups):
                    rows += file.read_row_group(group, use_threads=False).num_rows
        return rows

    files = sorted(directory.glob("*.parquet"))
    shares = [files[number::NUM_THREADS] for number in range(NUM_THREADS)]

    def read_all() -> int:
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            return sum(pool.map(read_files, shares))

    return timed(read_all)


def limits(name: str, directory: Path) -> dict[str, Callable[[], Reading]]:
    return {
        f"limit: {name}": limit(directory, False),
        f"limit: {name}, verified": limit(directory, True),
    }


def petastorm() -> Child:
    """Start Petastorm in its own environment; skips the test where that was not made."""
    default = Path(__file__).parents[2] / ".venv-spark35" / "bin" / "python"
    python = Path(os.environ.get(_PYTHON35, default))
    if not python.exists():
        pytest.skip(f"no Petastorm: {python} does not exist; make venv-spark35, or set {_PYTHON35}")
    return Child("read_petastorm", python)


def step_seconds(stream: Stream, compute: Callable[[], object]) -> Iterator[tuple[float, float]]:
    """What the training thread spends on every step of an epoch: waiting for its batch, computing."""
    batches = iter(stream)
    while True:
        started = time.perf_counter()
        if next(batches, None) is None:
            return
        received = time.perf_counter()
        compute()
        yield received - started, time.perf_counter() - received
