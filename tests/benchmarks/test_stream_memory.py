"""The most memory that a stream takes of a fresh process, beside the budget that it was given."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from sparktrain.dataset.layout import Layout
from tests.benchmarks.children import Child
from tests.benchmarks.contestants import BATCH
from tests.benchmarks.made_up import IMAGES, TABLE, Recipe, write_dataset
from tests.benchmarks.tables import print_figures, scaled

pytestmark = pytest.mark.timeout(1800)

DATASET_OVER_BUDGET = 10


@pytest.mark.parametrize(
    ("recipe", "full_rows", "row_group", "batch", "layout"),
    [
        (TABLE, 4_000_000, 4096, BATCH, "blocks"),
        (TABLE, 4_000_000, 4096, BATCH, "columns"),
        (IMAGES, 160_000, 256, 512, "columns"),
    ],
    ids=["table-blocks", "table-columns", "images"],
)
def test_memory_of_two_epochs(
    recipe: Recipe, full_rows: int, row_group: int, batch: int, layout: Layout
) -> None:
    rows = scaled(full_rows)
    budget = rows * recipe.row_bytes // DATASET_OVER_BUDGET
    # The footers of 41 columns in a thousand row groups alone take 25 MB: fewer lanes make room for them.
    options = {"memory_bytes": budget, "num_lanes": 16 if layout == "columns" else 32}
    with tempfile.TemporaryDirectory() as scratch:
        dataset = write_dataset(Path(scratch) / "d", recipe, rows, row_group, layout)
        with Child("peak_memory") as child:
            found = child.ask(directory=str(dataset.path), batch=batch, options=options)
    assert found.pop("rows") == 2 * (rows // batch * batch)
    title = f"{rows:,} rows of {recipe.row_bytes} bytes, {layout}; memory_bytes of {budget / 2**20:.0f} MiB"
    names = {"VmRSS": "resident, mapped files included", "RssAnon": "anonymous", "RssFile": "mapped files"}
    figures = [[names[kind], f"{peak / 2**20:.1f}", f"{peak / budget:.2f}"] for kind, peak in found.items()]
    print_figures(title, ["peak over the start", "MiB", "/ budget"], figures)
