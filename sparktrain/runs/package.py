"""What travels with a model: its features and Task as JSON, the code its model.py imports, and sparktrain."""

from __future__ import annotations

import ast
import atexit
import importlib.util
import shutil
import tempfile
import threading
import zipfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from sparktrain.errors import ModelUnusable
from sparktrain.features import FittedFeatures
from sparktrain.storage import to_json

FEATURES_FILE = "features.json"
TASK_FILE = "task.json"
WEIGHTS_FILE = "model.safetensors"

IMPORTING = threading.RLock()
"""Held while `sys.path` and `sys.modules` are a model's, and by who needs a pipeline of this process' own."""


def find_package(name: str) -> Path:
    """Return the folder of an importable package such as "pipelines.flight_delays", without running it.

    Raises:
        ModelUnusable: when it is not on the Python path.
    """
    root, _, rest = name.partition(".")
    for location in _folders_of(root):
        folder = location.joinpath(*rest.split("."))
        if (folder / "model.py").is_file():
            return folder
    raise ModelUnusable(
        name,
        "there is no such package with a model.py on the Python path",
        "run from the folder that holds it",
    )


def own_folder() -> Path:
    """Return the folder of this package's files."""
    return next(_folders_of(__name__.partition(".")[0]))


def _folders_of(package: str) -> Iterator[Path]:
    spec = importlib.util.find_spec(package)
    if spec is None:
        return
    for location in spec.submodule_search_locations or ():
        if Path(location).is_dir():
            yield Path(location)
        elif archive := getattr(spec.loader, "archive", None):
            yield _unpack(archive) / package


@cache
def _unpack(archive: str) -> Path:
    """Lay out a zip that Python imports from, such as one of --py-files, while this process lives."""
    into = Path(tempfile.mkdtemp(prefix="sparktrain-code-"))
    atexit.register(shutil.rmtree, into, ignore_errors=True)
    with zipfile.ZipFile(archive) as bundle:
        bundle.extractall(into)
    return into


def write_artifacts(
    into: Path, features: FittedFeatures, pipeline: str, arguments: Mapping[str, Any]
) -> None:
    """Write what a model is made of again, all but its weights.

    Args:
        pipeline: package with `model.py`.
        arguments: of its `Task`; plain values.
    """
    into.mkdir()
    (into / FEATURES_FILE).write_text(features.to_json(), encoding="utf-8")
    task = {"pipeline": pipeline, "arguments": dict(arguments)}
    (into / TASK_FILE).write_text(to_json(task), encoding="utf-8")


def copy_own(into: Path) -> Path:
    """Copy sparktrain under `into`; return the folder."""
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")
    return Path(shutil.copytree(own_folder(), into / own_folder().name, ignore=ignored))


def copy_pipeline(package: str, folder: Path, into: Path) -> list[Path]:
    """Copy `<package>.model` with what it imports of its root; return the folder, none if it is sparktrain's.

    Args:
        package: dotted name, such as "pipelines.flight_delays".
        folder: where it lies.
        into: a directory without a folder of that root.
    """
    root = package.partition(".")[0]
    if root == own_folder().name:
        return []
    base = folder.parents[package.count(".")]
    for source in sorted(modules_of(f"{package}.model", base)):
        target = into / source.relative_to(base)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    # a namespace package would also find a stranger's folder of that name
    (into / root / "__init__.py").touch()
    return [into / root]


def modules_of(module: str, base: Path) -> set[Path]:
    """Return the files under `base` that importing `module` reads, by following import statements.

    An import inside a function counts. A name that is made at run time can't be seen.
    """
    root = module.partition(".")[0]
    found: set[Path] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        parts = name.split(".")
        # importing a.b.c runs the __init__ of a and of a.b first
        for depth in range(1, len(parts) + 1):
            file = _file_of(".".join(parts[:depth]), base)
            if file is None or file in found:
                continue
            found.add(file)
            package = parts[:depth] if file.name == "__init__.py" else parts[: depth - 1]
            waiting += [n for n in _imports(file, package) if n == root or n.startswith(f"{root}.")]
    return found


def _file_of(module: str, base: Path) -> Path | None:
    path = base.joinpath(*module.split("."))
    for file in (path / "__init__.py", path.with_suffix(".py")):
        if file.is_file():
            return file
    return None


def _imports(file: Path, package: list[str]) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_bytes(), str(file))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*start, *([node.module] if node.module else [])])
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)  # a name may be a module
