"""The stream against its physical limit: reading the same row groups, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import torch

from sparktrain.dataset import Dataset
from sparktrain.testing import write_tiny_dataset
from tests.benchmarks.tables import median_seconds, print_table

ROWS = 2_000_000
BATCH = 8192


def read_row_groups(dataset: Dataset) -> int:
    rows = 0
    for part in dataset.manifest.splits["train"].parts:
        with pq.ParquetFile(dataset.path / part.path, memory_map=True, pre_buffer=False) as file:
            for group in range(file.num_row_groups):
                rows += file.read_row_group(group, use_threads=False).num_rows
    return rows


def drain(dataset: Dataset, shuffle: bool) -> int:
    rows = 0
    for batch in dataset.stream("train", BATCH, num_lanes=8, shuffle=shuffle):
        rows += len(batch["row_weight"])
    return rows


def test_stream_beside_plain_reading(tmp_path: Path) -> None:
    dataset = write_tiny_dataset(
        tmp_path / "d", ROWS, rows_per_row_group=16384, num_parts=4, num_numeric=13, num_categorical=6
    )
    torch.set_num_threads(1)
    assert drain(dataset, True) == ROWS // BATCH * BATCH
    seconds = median_seconds(
        {
            "read_row_group, 1 thread": lambda: read_row_groups(dataset),
            "stream, stored order": lambda: drain(dataset, False),
            "stream, shuffled": lambda: drain(dataset, True),
        }
    )
    print_table(f"{ROWS:,} rows × 21 columns, batches of {BATCH}", seconds, "read_row_group, 1 thread", ROWS)
