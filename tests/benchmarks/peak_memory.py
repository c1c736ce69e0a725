"""Streams two epochs and watches its own memory, in a process that did nothing else; benchmarks start it."""

from __future__ import annotations

import gc
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sparktrain.dataset import open_dataset
from sparktrain.testing import write_tiny_dataset
from tests.benchmarks.children import serve
from tests.benchmarks.contestants import open_stream

_SAMPLE_SECONDS = 0.002
_KINDS = ("VmRSS", "RssAnon", "RssFile")


def resident_bytes() -> dict[str, int]:
    lines = Path("/proc/self/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines)
    return {kind: int(found[kind].split()[0]) * 1024 for kind in _KINDS}


@contextmanager
def watched_peak() -> Iterator[dict[str, int]]:
    """Yield the growth over what is resident now, which a thread keeps at its highest."""
    before, peak, stop = resident_bytes(), dict.fromkeys(_KINDS, 0), threading.Event()

    def watch() -> None:
        while not stop.wait(_SAMPLE_SECONDS):
            now = resident_bytes()
            peak.update({kind: max(peak[kind], now[kind] - before[kind]) for kind in _KINDS})

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def answer(directory: str, batch: int, options: dict[str, Any]) -> dict[str, int]:
    torch.set_num_threads(1)
    # What libraries and their threads take when they are used first is not the stream's.
    with tempfile.TemporaryDirectory() as scratch:
        small = write_tiny_dataset(Path(scratch) / "d", 20_000, num_numeric=13, num_categorical=26)
        for _ in open_stream(small, 1024, num_lanes=32):
            pass
    gc.collect()
    stream = open_stream(open_dataset(directory), batch, **options)
    rows = 0
    with watched_peak() as peak:
        for _ in range(2):
            for found in stream:
                float(found["label"].sum())
                rows += len(found["label"])
    return {**peak, "rows": rows}


if __name__ == "__main__":
    serve(answer)
