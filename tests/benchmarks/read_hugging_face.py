"""Reads Parquet with Hugging Face datasets, in any of its ways to batches of tensors; benchmarks start it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}

import torch
from datasets import load_dataset

from tests.benchmarks.children import serve

Batch = dict[str, torch.Tensor]

# how a batch of each format becomes tensors
FORMATS: dict[str, Callable[[Any], Batch]] = {
    "torch": dict,
    "numpy": lambda batch: {name: torch.from_numpy(values) for name, values in batch.items()},
    "arrow": lambda batch: {name: torch.from_numpy(batch[name].to_numpy()) for name in batch.column_names},
}


@cache
def opened(directory: str, streaming: bool) -> Any:
    files = sorted(map(str, Path(directory).glob("*.parquet")))
    cached = str(Path(directory).with_name(f"{Path(directory).name}-cache"))
    return load_dataset("parquet", data_files=files, split="train", streaming=streaming, cache_dir=cached)


def batches(
    directory: str, batch_size: int, streaming: bool, format_name: str, queue_rows: int
) -> Iterator[Batch]:
    dataset = opened(directory, streaming)
    if queue_rows:
        dataset = dataset.shuffle(buffer_size=queue_rows) if streaming else dataset.shuffle()
    found: Iterable[Any] = dataset.with_format(format_name).iter(batch_size=batch_size)
    return map(FORMATS[format_name], found)


def read(most_seconds: float, **request: Any) -> tuple[int, float]:
    """Read an epoch, or as much of it as the time allows: some ways would take hours."""
    started = time.perf_counter()
    rows = 0
    for batch in batches(**request):
        assert all(isinstance(values, torch.Tensor) for values in batch.values())
        float(batch["label"].sum())
        rows += len(batch["label"])
        if time.perf_counter() - started > most_seconds:
            break
    return rows, time.perf_counter() - started


if __name__ == "__main__":
    serve(read)
