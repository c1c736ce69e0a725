"""The code that travels with a model: what its model.py imports of the pipelines, and this package itself."""

from __future__ import annotations

import ast
import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path

import sparktrain
from sparktrain.errors import ModelUnusable


def find_package(name: str) -> Path:
    """Return the folder of an importable package such as "pipelines.flight_delays", without running it.

    Raises:
        ModelUnusable: when it is not on the Python path.
    """
    root, _, rest = name.partition(".")
    spec = importlib.util.find_spec(root)
    for location in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(location, *rest.split("."))
        if (folder / "model.py").is_file():
            return folder
    raise ModelUnusable(
        name,
        "there is no such package with a model.py on the Python path",
        "run from the folder that holds it",
    )


def copy_code(package: str, folder: Path, into: Path) -> list[Path]:
    """Copy `<package>.model` with what it imports of its root, and sparktrain; return both folders.

    Args:
        package: dotted name, such as "pipelines.flight_delays".
        folder: where it lies.
        into: an empty directory.
    """
    base = folder.parents[package.count(".")]
    for source in sorted(modules_of(f"{package}.model", base)):
        target = into / source.relative_to(base)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    root = package.partition(".")[0]
    (
        into / root / "__init__.py"
    ).touch()  # a namespace package would also find a stranger's folder of that name
    own = Path(sparktrain.__file__).parent
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")
    shutil.copytree(own, into / own.name, ignore=ignored)
    return [into / root, into / own.name]


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
