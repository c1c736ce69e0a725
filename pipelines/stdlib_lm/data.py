"""Source and features: the modules of Python's standard library, in blocks of bytes that know their module.

Left out are packages that were installed beside it, tests (two thirds of all bytes), and two packages of
generated files: the tables of `encodings`, which are near copies of each other, so that held-out ones would
not really be, and the texts of `pydoc_data`. A row is a module, and whole modules are held out.
"""

from __future__ import annotations

import hashlib
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

from pyspark.sql import DataFrame, SparkSession

from sparktrain.errors import DataError
from sparktrain.features import Tokens
from sparktrain.preparation import Rule

BLOCK_SIZE = 256
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}

KEY = ["module"]

TARGET = ()  # each byte is to be predicted from those before it

RULES = [Rule("has_source", "source <> ''")]

FEATURES = [Tokens("source", tokenizer="bytes", block_size=BLOCK_SIZE, pack=True)]


def read(
    spark: SparkSession, workspace: Path, *, directory: str | None = None, fraction: float = 1.0
) -> DataFrame:
    """Raw rows: each module's name and source.

    Args:
        workspace: not used, for nothing is unpacked.
        directory: folder of sources; None: the standard library of the Python that the driver runs.
        fraction: part of the modules to read, the same ones every time.
    """
    root = Path(directory or sysconfig.get_path("stdlib"))
    rows = [(name, source(file)) for name, file in modules(root) if _place(name) < fraction]
    if not rows:
        raise DataError(f"{root} holds no Python source: set prepare.source.directory to a folder of some")
    return spark.createDataFrame(rows, "module string, source string")


def modules(root: Path) -> Iterator[tuple[str, Path]]:
    """Give each module's name and file, in the order of their names."""
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        if not LEFT_OUT & set(parts[:-1]):
            yield ".".join(parts), file


def source(file: Path) -> str:
    """The text of a file, in whatever encoding its first lines declare."""
    with tokenize.open(file) as opened:
        return opened.read()


def _place(name: str) -> float:
    """Where a module lies between 0 and 1: a hash of its name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32
