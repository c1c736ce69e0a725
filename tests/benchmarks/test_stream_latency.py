"""How long a training waits: for its first batch, cold and resumed; for each batch after it; for the plan."""

from __future__ import annotations

import tempfile
import time
import timeit
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

from sparktrain.dataset import Dataset, open_dataset
from sparktrain.dataset.layout import Layout
from sparktrain.dataset.plan import EpochOrder, Plan
from tests.benchmarks.contestants import BATCH, NUM_LANES, open_stream, step_seconds
from tests.benchmarks.made_up import TABLE, write_dataset
from tests.benchmarks.tables import ROWS, median_seconds, print_figures, print_table

pytestmark = pytest.mark.timeout(1800)

LAYOUTS: tuple[Layout, ...] = ("blocks", "columns")
ROW_GROUP = 16_384
COMPUTE_SECONDS = 0.005
WARM_STEPS = 16


@pytest.fixture(scope="module")
def datasets() -> Iterator[dict[str, Dataset]]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        yield {
            name: write_dataset(Path(scratch) / name, TABLE, ROWS, ROW_GROUP, layout=name) for name in LAYOUTS
        }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_first_batch_after_resume_beside_a_cold_start(datasets: dict[str, Dataset], layout: str) -> None:
    path = datasets[layout].path
    fresh = open_stream(open_dataset(path))
    late = {**fresh.state_dict(), "step": fresh.steps_per_epoch * 9 // 10}

    def first_batch(state: dict[str, object]) -> None:
        stream = open_stream(open_dataset(path))
        stream.load_state_dict(state)
        batches = iter(stream)
        float(next(batches)["label"].sum())
        batches.close()  # the next round must not share the machine with this one's reader

    def cold() -> None:
        first_batch(fresh.state_dict())

    cold()
    seconds = median_seconds({"cold": cold, "at 90 % of an epoch": lambda: first_batch(late)}, rounds=15)
    ratio = seconds["at 90 % of an epoch"] / seconds["cold"]
    print_table(f"the first batch, {layout}: {ratio:.2f} × a cold start (goal ≤ 1.3)", seconds, "cold")


def multiply() -> Callable[[], object]:
    """A product of matrices on one core, which takes about as long as a step shall."""
    for size in range(64, 4096, 32):
        matrix = np.ones((size, size), np.float32)
        product = partial(np.matmul, matrix, matrix)
        if min(timeit.repeat(product, number=1, repeat=7)) >= COMPUTE_SECONDS:
            return product
    raise AssertionError("no product takes that long")


def test_wait_for_each_batch(datasets: dict[str, Dataset]) -> None:
    rows = []
    with threadpool_limits(1):
        steps = {"sleeps": lambda: time.sleep(COMPUTE_SECONDS), "multiplies matrices": multiply()}
        for layout, dataset in datasets.items():
            for name, compute in steps.items():
                spent = np.array(list(step_seconds(open_stream(dataset), compute)))[WARM_STEPS:] * 1000
                waits, computed = spent.T
                figures = [*np.percentile(waits, [50, 99, 100]), np.median(computed)]
                rows.append([f"{layout}, {name}", *(f"{figure:.3f}" for figure in figures)])
    title = f"wait for a batch of {BATCH} in ms, steps of {COMPUTE_SECONDS * 1000:.0f} ms (goal p99 ≤ 2)"
    print_figures(title, ["", "p50", "p99", "most", "a step's computing, p50"], rows)


def test_plan_of_a_million_row_groups() -> None:
    sizes = np.full(1_000_000, 4096, np.int64)
    plan = Plan(int(sizes.sum()), BATCH, NUM_LANES, "drop")
    shares = plan.shares(0, 1)

    def first_copies(step: int) -> int:
        order = EpochOrder.of(sizes, NUM_LANES, 0, 0)
        return sum(copy.width for share in shares for copy in plan.copies(order, share, step, step + 1))

    assert first_copies(plan.steps_per_epoch // 2) == BATCH
    seconds = median_seconds({"order, plan, copies of a step": lambda: first_copies(12_345)}, rounds=9)
    print_table("1,000,000 row groups (goal ≤ 0.2 s)", seconds, "order, plan, copies of a step")
