"""Code that executors don't have: the user's packages are sent to them, once a session."""

from __future__ import annotations

import atexit
import hashlib
import importlib
import logging
import shutil
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

from pyspark.sql import SparkSession

from sparktrain.runs.package import IMPORTING

logger = logging.getLogger(__name__)

_shipped: dict[tuple[str, str], str] = {}
"""Digest of each package's files, by session (an application has one, a Connect server many) and package."""


def ship_package(spark: SparkSession, name: str) -> None:
    """Send a package of the driver's to the executors, so that ranks can import the pipeline's own code.

    A session keeps what it was sent first: Spark refuses a second file of the same name, and Python workers
    that have imported the old one would go on with it.
    """
    folder = _folder_of(name)
    assert folder is not None, f"{name} is no package"
    if not folder.is_dir():  # it lies in a zip, as --py-files brings it to executors, too
        return
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and "__pycache__" not in file.parts]
    digest, place = _digest(files), (_name_of(spark), name)
    if place not in _shipped:
        _send(spark, _pack(name, folder, files))
        _shipped[place] = digest
    elif _shipped[place] != digest:
        logger.warning("%s has changed: executors keep the code that this Spark session began with", folder)


def ship_code_of(spark: SparkSession, value: object) -> None:
    """Send the package that defines a value's class, unless it is installed: then executors have it too."""
    name = type(value).__module__.partition(".")[0]
    folder = _folder_of(name)
    is_ours = name == __name__.partition(".")[0]
    if folder is not None and not is_ours and not _is_installed(folder):
        ship_package(spark, name)


def _name_of(spark: SparkSession) -> str:
    context = getattr(spark, "_sc", None)
    return str(context.applicationId if context is not None else spark.session_id)  # type: ignore[attr-defined]


def _send(spark: SparkSession, archive: Path) -> None:
    if (context := getattr(spark, "_sc", None)) is not None:
        context.addPyFile(str(archive))
    else:
        spark.addArtifacts(str(archive), pyfile=True)  # type: ignore[no-untyped-call,unused-ignore]


def _folder_of(package: str) -> Path | None:
    with IMPORTING:
        path = getattr(sys.modules.get(package) or importlib.import_module(package), "__path__", None)
    return Path(next(iter(path))) if path else None


def _is_installed(folder: Path) -> bool:
    homes = (sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
    return any(folder.is_relative_to(home) for home in homes)


def _digest(files: list[Path]) -> str:
    found = hashlib.sha256()
    for file in files:
        found.update(str(file).encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()


def _pack(name: str, folder: Path, files: list[Path]) -> Path:
    scratch = Path(tempfile.mkdtemp(prefix="sparktrain-ship-"))
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)  # Spark serves the file as long as it runs
    archive = scratch / f"{name}.zip"
    with zipfile.ZipFile(archive, "w") as bundle:
        # Python finds a folder without __init__.py only where the zip has it by itself
        for place in sorted({parent for file in files for parent in file.relative_to(folder).parents}):
            bundle.mkdir((Path(name) / place).as_posix())
        for file in files:
            bundle.write(file, Path(name) / file.relative_to(folder))
    return archive
