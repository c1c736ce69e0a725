"""The stream beside its physical limit, which is reading the same row groups alone, and its peers."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.benchmarks.children import Child
from tests.benchmarks.contestants import (
    BATCH,
    NUM_LANES,
    NUM_THREADS,
    STREAM_OPTIONS,
    limits,
    ours,
    petastorm,
)
from tests.benchmarks.made_up import IMAGES, TABLE, VECTORS, Recipe, write_dataset, write_plain
from tests.benchmarks.tables import ROWS, Reading, median_rates, print_rates, scaled

pytestmark = pytest.mark.timeout(3600)

ROW_GROUP = 16_384
QUEUE_ROWS = 200_000
# What Hugging Face may take for an epoch; its queue is smaller, or filling it would take most of that.
TRY_SECONDS, MOST_SECONDS = 4.0, 10.0
SMALL_QUEUE_ROWS = 50_000


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder that goes at once: pytest would keep gigabytes of the last three runs."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


def test_table_beside_its_limits_and_petastorm(scratch: Path) -> None:
    with petastorm() as child:
        chosen, plain, threads = best_for_petastorm(child, scratch)
        blocks = write_dataset(scratch / "blocks", TABLE, ROWS, ROW_GROUP, "blocks")
        columns = write_dataset(scratch / "columns", TABLE, ROWS, ROW_GROUP)
        default = write_plain(scratch / "default", TABLE, ROWS)
        contestants = {
            "ours, blocks": ours(blocks),
            "ours, columns": ours(columns),
            "ours, columns, stored order": ours(columns, shuffle=False),
            **limits("blocks", blocks.path / "train"),
            **limits("columns", columns.path / "train"),
            **limits("pyarrow's default", default),
            "Petastorm": reading(child, plain, QUEUE_ROWS, threads),
            "Petastorm, stored order": reading(child, plain, 0, threads),
            "Petastorm, our columns": reading(child, columns.path / "train", QUEUE_ROWS, threads),
        }
        rates = median_rates(contestants)
    title = f"{ROWS:,} rows × 40 columns, batches of {BATCH}, {NUM_LANES} lanes, options {STREAM_OPTIONS}"
    yardsticks = ["Petastorm", "limit: columns", "limit: blocks"]
    print_rates(f"{title}\nPetastorm has {chosen}", rates, TABLE.row_bytes, yardsticks)


def reading(child: Child, directory: Path, queue_rows: int, torch_threads: int) -> Callable[[], Reading]:
    request = {"directory": str(directory), "batch_size": BATCH, "queue_rows": queue_rows}
    return lambda: Reading(*child.ask(action="read", torch_threads=torch_threads, **request))


def best_for_petastorm(child: Child, scratch: Path) -> tuple[str, Path, int]:
    """Try layouts on a quarter of the rows; write the whole table in the one it shuffles fastest.

    Returns:
        What won, where it lies, and the number of torch's threads that it won with.
    """
    tried: dict[str, Callable[[], Reading]] = {}
    settings: dict[str, tuple[dict[str, Any], int]] = {}
    for number, (size, codec) in enumerate(product((16_384, 65_536, 262_144), ("snappy", "lz4", "none"))):
        # a dictionary slows floats; small codes gain from one
        layout = {
            "rows_per_row_group": size,
            "compression": codec,
            "use_dictionary": list(TABLE.small),
        }
        directory = write_plain(scratch / f"try-{number}", TABLE, scaled(1_000_000), **layout)
        for threads in (1, NUM_THREADS):
            name = f"row groups of {size:,}, {codec}, torch's threads {threads}"
            tried[name] = reading(child, directory, QUEUE_ROWS, threads)
            settings[name] = (layout, threads)
    rates = median_rates(tried, rounds=3)
    print_rates("Petastorm, shuffled (a quarter of the rows)", rates, TABLE.row_bytes, [])
    for directory in scratch.glob("try-*"):
        shutil.rmtree(directory)
    best = max(rates, key=rates.__getitem__)
    layout, threads = settings[best]
    return best, write_plain(scratch / "petastorm", TABLE, ROWS, **layout), threads


def test_table_beside_hugging_face_datasets(scratch: Path) -> None:
    pytest.importorskip("datasets", reason="pip install -e '.[bench]'")
    columns = write_dataset(scratch / "columns", TABLE, ROWS, ROW_GROUP)
    plain = write_plain(scratch / "plain", TABLE, ROWS)
    places = {"our columns": columns.path / "train", "pyarrow's default": plain}
    contestants = {
        "ours, columns": ours(columns),
        "ours, columns, stored order": ours(columns, shuffle=False),
    }
    best: list[str] = []
    with Child("read_hugging_face") as child:
        for kind, queue_rows in (("shuffled", SMALL_QUEUE_ROWS), ("stored order", 0)):
            ways = hugging_face_ways(child, places, queue_rows)
            rates = median_rates({name: partial(way, TRY_SECONDS) for name, way in ways.items()}, rounds=1)
            print_rates(f"Hugging Face datasets, {kind}", rates, TABLE.row_bytes, [])
            name = max(rates, key=rates.__getitem__)
            best.append(f"{kind}: {name}")
            contestants[f"Hugging Face, {kind}"] = partial(ways[name], MOST_SECONDS)
        rates = median_rates(contestants, rounds=3)
    # What is mapped and not shuffled is not read either, beyond the one column that we sum.
    title = f"{ROWS:,} rows × 40 columns, batches of {BATCH}; Hugging Face {'; '.join(best)}"
    print_rates(title, rates, TABLE.row_bytes, ["Hugging Face, shuffled", "Hugging Face, stored order"])


def hugging_face_ways(
    child: Child, places: Mapping[str, Path], queue_rows: int
) -> dict[str, Callable[[float], Reading]]:
    """Ways to read for so many seconds: streamed from either kind of file, or from the table it caches."""

    def read(most_seconds: float, **way: object) -> Reading:
        return Reading(*child.ask(most_seconds=most_seconds, batch_size=BATCH, queue_rows=queue_rows, **way))

    kinds = [("streamed", place, directory) for place, directory in places.items()]
    kinds.append(("cached table", "", next(iter(places.values()))))
    return {
        f"{kind}, {format_name}{place and ', ' + place}": partial(
            read, directory=str(directory), streaming=kind == "streamed", format_name=format_name
        )
        for kind, place, directory in kinds
        for format_name in ("torch", "numpy", "arrow")
    }


@pytest.mark.parametrize(
    ("what", "recipe", "full_rows", "row_group", "batch"),
    [("256 float32", VECTORS, 500_000, 2048, 2048), ("64 × 64 uint8", IMAGES, 125_000, 512, 512)],
    ids=["vectors", "images"],
)
def test_fixed_shapes_beside_their_limit(
    scratch: Path, what: str, recipe: Recipe, full_rows: int, row_group: int, batch: int
) -> None:
    rows = scaled(full_rows)
    dataset = write_dataset(scratch / "d", recipe, rows, row_group)
    both = limits("the same files", dataset.path / "train")
    contestants = {
        "ours": ours(dataset, batch),
        "ours, stored order": ours(dataset, batch, shuffle=False),
        **both,
    }
    title = f"{rows:,} rows of {what} and a label, row groups of {row_group}, batches of {batch}"
    print_rates(title, median_rates(contestants), recipe.row_bytes, list(both))
