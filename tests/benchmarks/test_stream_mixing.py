"""How well batches are mixed when rows are stored in the order of their labels, beside a shuffling queue."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.benchmarks.contestants import BATCH, open_stream, petastorm
from tests.benchmarks.made_up import labels_in_order, write_dataset
from tests.benchmarks.tables import ROWS, print_figures

pytestmark = pytest.mark.timeout(1800)

NUM_LABELS = 10
ROW_GROUP = 4096
LANES = (8, 32, 64)


def distance(counts: Sequence[Sequence[int]] | NDArray[np.int64]) -> tuple[float, float]:
    """Mean and worst total-variation distance between a batch's labels and the whole's, which are even."""
    shares = np.asarray(counts) / np.sum(counts, axis=1, keepdims=True)
    distances = np.abs(shares - 1 / NUM_LABELS).sum(1) / 2
    return float(distances.mean()), float(distances.max())


def test_labels_stored_in_order() -> None:
    found: dict[str, tuple[float, float]] = {}
    with petastorm() as child, tempfile.TemporaryDirectory() as scratch:
        dataset = write_dataset(Path(scratch) / "d", labels_in_order(ROWS, NUM_LABELS), ROWS, ROW_GROUP)
        for lanes in LANES:
            batches = open_stream(dataset, num_lanes=lanes)
            counts = [np.bincount(batch["label"].numpy(), minlength=NUM_LABELS) for batch in batches]
            assert len(counts) == ROWS // BATCH
            found[f"ours, {lanes} lanes"] = distance(counts)
            queue = {"queue_rows": lanes * ROW_GROUP * 2, "batch_size": BATCH, "num_labels": NUM_LABELS}
            theirs = child.ask(action="count_labels", directory=str(dataset.path / "train"), **queue)
            found[f"Petastorm, queue of {queue['queue_rows']:,} rows"] = distance(theirs)
    random = np.random.default_rng(0)
    order = random.permutation(np.arange(ROWS) * NUM_LABELS // ROWS)[: ROWS // BATCH * BATCH]
    ideal = [np.bincount(labels, minlength=NUM_LABELS) for labels in order.reshape(-1, BATCH)]
    found["a random permutation"] = distance(ideal)
    title = f"{ROWS:,} rows sorted by {NUM_LABELS} labels, row groups of {ROW_GROUP}, batches of {BATCH}"
    header = [f"{title}: distance of a batch's labels from the whole's", "mean", "worst batch"]
    rows = [[name, f"{mean:.3f}", f"{worst:.3f}"] for name, (mean, worst) in found.items()]
    print_figures(header[0], ["", *header[1:]], rows)
