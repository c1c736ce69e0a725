"""Input: the rows that a stream takes from one split of a dataset, and how its threads read them."""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from sparktrain.dataset.layout import stored_columns
from sparktrain.dataset.load import Source
from sparktrain.dataset.manifest import Manifest
from sparktrain.dataset.read import RowGroupReader, Seen, Verify, count_footer_chunks
from sparktrain.dataset.where import Term, Where, check_where, select_rows
from sparktrain.errors import ConfigError
from sparktrain.storage import AnyPath

OpenReader = Callable[..., RowGroupReader]


class Input(NamedTuple):
    """What a stream takes rows from.

    Attributes:
        name: of the dataset in a mixture; "" when it is alone.
        source: its rows, as plans count them.
        open_reader: called with columns (and `num_threads`) in each thread, returns a reader of them.
        num_footer_chunks: columns times row groups of the parts that are open at once, at most.
        most_rows: of a row group as it is stored, wanted or not.
    """

    name: str
    source: Source
    open_reader: OpenReader
    num_footer_chunks: int
    most_rows: int


def make_input(
    root: AnyPath,
    manifest: Manifest,
    split: str,
    seen: Seen,
    *,
    seed: int,
    shuffle: bool,
    where: Where | None,
    verify: Verify,
    name: str = "",
) -> Input:
    """Count the rows of a split, all of them or those that satisfy `where`.

    Raises:
        NameUnknown, ConfigError: for a condition that can't be understood.
        DatasetInvalid: when a condition's columns can't be read.
    """
    problems = []
    if verify not in ("first", "always"):
        problems.append(f"verify is {verify!r}; allowed are 'first' and 'always'")
    try:
        seed = operator.index(seed)  # numpy's integers would not go into a state
    except TypeError:
        problems.append(f"seed is {seed!r}; give a whole number")
    if problems:
        raise ConfigError(problems, "the stream's arguments")
    open_reader = partial(RowGroupReader, root, manifest, split, seen=seen, verify=verify)
    rows = np.array([n for part in manifest.splits[split].parts for n in part.row_groups], np.int64)
    num_chunks = count_footer_chunks(manifest.splits[split].parts, len(manifest.schema))
    reading = open_reader, num_chunks, int(rows.max(initial=0))
    meaning: dict[str, Any] = {"fingerprint": manifest.fingerprint, "split": split}
    meaning |= {"seed": seed, "shuffle": shuffle}
    if not where:
        return Input(name, Source(rows, seed, shuffle, {**meaning, "where": None}), *reading)
    columns, layout = manifest.columns, manifest.layout
    terms = check_where(where, columns, str(root))
    reader = open_reader(stored_columns(columns, layout, [name for name, _, _ in terms]))
    selected = select_rows(reader, len(rows), columns, layout, terms)
    counts = np.array([len(positions) for positions in selected], np.int64)
    meaning["where"] = _digest(terms)
    return Input(name, Source(counts, seed, shuffle, meaning, selected), *reading)


def _digest(terms: Sequence[Term]) -> str:
    """Name a condition in a few characters: a list of values can be long, and a state is small."""
    return hashlib.sha256(json.dumps(terms).encode()).hexdigest()[:16]
