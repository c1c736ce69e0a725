"""Reads Parquet with Petastorm, in the environment that Petastorm needs; started by the benchmarks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import torch
from petastorm import make_batch_reader
from petastorm.pytorch import BatchedDataLoader

from tests.benchmarks.children import serve


def batches(directory: str, batch_size: int, queue_rows: int) -> Iterator[dict[str, torch.Tensor]]:
    with make_batch_reader(
        Path(directory).as_uri(),
        num_epochs=1,
        reader_pool_type="thread",
        workers_count=2,
        shuffle_row_groups=queue_rows > 0,
    ) as reader:
        yield from BatchedDataLoader(reader, batch_size=batch_size, shuffling_queue_capacity=queue_rows)


def read(directory: str, batch_size: int, queue_rows: int, torch_threads: int) -> tuple[int, float]:
    torch.set_num_threads(torch_threads)  # its queue is made of tensors
    started = time.perf_counter()
    rows = 0
    for batch in batches(directory, batch_size, queue_rows):
        assert all(isinstance(values, torch.Tensor) for values in batch.values())
        float(batch["label"].sum())
        rows += len(batch["label"])
    return rows, time.perf_counter() - started


def count_labels(directory: str, batch_size: int, queue_rows: int, num_labels: int) -> list[list[int]]:
    """How often each label occurs in every whole batch."""
    found = (batch["label"] for batch in batches(directory, batch_size, queue_rows))
    return [labels.bincount(minlength=num_labels).tolist() for labels in found if len(labels) == batch_size]


def answer(action: str, **request: object) -> object:
    return {"read": read, "count_labels": count_labels}[action](**request)


if __name__ == "__main__":
    serve(answer)
