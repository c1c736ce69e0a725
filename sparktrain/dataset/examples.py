"""examples.parquet: a few raw rows of a dataset, which show people what a served model takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sparktrain.dataset.manifest import EXAMPLES_FILE
from sparktrain.errors import DatasetInvalid
from sparktrain.storage import AnyPath, commit_bytes


def write_examples(directory: Path, rows: pa.Table) -> None:
    content = pa.BufferOutputStream()
    pq.write_table(rows, content)
    commit_bytes(directory / EXAMPLES_FILE, content.getvalue().to_pybytes())


def read_examples(directory: AnyPath, names: Sequence[str]) -> pa.Table:
    """Read the columns `names` of the examples.

    Raises:
        DatasetInvalid: when the file is missing, can't be read, or lacks columns.
    """
    try:
        rows = pq.ParquetFile(pa.BufferReader((directory / EXAMPLES_FILE).read_bytes())).read()
    except (OSError, pa.ArrowException) as error:
        raise DatasetInvalid(str(directory), f"{EXAMPLES_FILE} can't be read ({error})") from error
    if missing := [name for name in names if name not in rows.column_names]:
        problem = f"{EXAMPLES_FILE} lacks what the features are made of: {', '.join(missing)}"
        raise DatasetInvalid(str(directory), problem)
    return rows.select(names)
