"""The house's rules about who may import whom, held against the sources themselves."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "sparktrain"

# Each room may import itself and the rooms named here.
FOUNDATION = {
    "errors",
    "world",
    "versions",
    "pulse",
    "devices",
    "faults",
    "file_cache",
    "storage",
    "splitting",
    "config",
}
ALLOWED = {
    "errors": set(),
    "world": set(),
    "versions": {"errors"},
    "pulse": set(),
    "devices": {"errors"},
    "faults": {"errors", "world", "storage"},
    "splitting": set(),
    "config": {"errors", "object_store", "splitting"},
    "file_cache": set(),
    "object_store": {"errors"},
    "storage": {"errors", "file_cache", "object_store"},
    "features": {"errors", "storage"},
    "dataset": FOUNDATION | {"features"},
    "training": FOUNDATION | {"features", "dataset"},
    "runs": FOUNDATION | {"features", "dataset", "training"},
    "preparation": FOUNDATION | {"features", "dataset"},
    "scoring": FOUNDATION | {"features", "training", "runs"},
    "tabular": FOUNDATION | {"features", "dataset", "training"},
    "gang": FOUNDATION | {"features", "dataset", "training", "runs"},
}
ON_TOP = {
    "commands",
    "estimator",
    "new_pipeline",
    "outcome",
    "session",
    "stages",
    "doctor",
    "terminal",
    "cli",
    "testing",
    "__init__",
}

PYSPARK_ROOMS = {
    "new_pipeline",
    "preparation",
    "gang",
    "estimator",
    "session",
    "stages",
    "doctor",
    "cli",
    "testing",
}
PYSPARK_FILES = {"scoring/on_spark.py"}
MLFLOW_ROOMS = {"runs", "scoring"}
TORCH_FREE_ROOMS = {
    "errors",
    "world",
    "pulse",
    "devices",
    "faults",
    "versions",
    "splitting",
    "config",
    "file_cache",
    "object_store",
    "storage",
    "features",
    "preparation",
    "session",
    "terminal",
    "cli",
    "commands",
    "new_pipeline",
    "outcome",
}


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(file: Path) -> Iterator[tuple[str, bool]]:
    """Dotted names that a file imports, and whether only a type checker does."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in for_types
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield node.module or "", id(node) in for_types


FILES = sorted(PACKAGE.rglob("*.py"))


def test_every_room_has_a_rule() -> None:
    rooms = {room_of(file) for file in FILES}
    assert rooms == set(ALLOWED) | ON_TOP


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_follow_the_order_of_the_rooms(file: Path) -> None:
    room = room_of(file)
    if room in ON_TOP:
        return
    wanted = ALLOWED[room] | {room}
    for name, _ in imports_of(file):
        if name.startswith("sparktrain."):
            assert name.split(".")[1] in wanted, f"{room} must not import {name}"


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_spark_mlflow_and_torch_stay_in_their_rooms(file: Path) -> None:
    room, relative = room_of(file), file.relative_to(PACKAGE).as_posix()
    for name, for_types in imports_of(file):
        library = name.split(".")[0]
        assert library not in {"pipelines", "jobs"}, f"{relative} must not know {name}"
        if for_types:
            continue
        if library == "pyspark":
            assert room in PYSPARK_ROOMS or relative in PYSPARK_FILES, f"{relative} must not import pyspark"
        if library == "mlflow":
            assert room in MLFLOW_ROOMS, f"{relative} must not import mlflow"
        if library in {"torch", "torchmetrics", "safetensors"}:
            assert room not in TORCH_FREE_ROOMS, f"{relative} must not import {library}"


def test_the_pipelines_keep_spark_and_torch_apart() -> None:
    for folder in (ROOT / "pipelines").iterdir():
        if not (folder / "data.py").exists():
            continue
        data = {name.split(".")[0] for name, _ in imports_of(folder / "data.py")}
        model = {name.split(".")[0] for name, _ in imports_of(folder / "model.py")}
        assert not data & {"torch", "mlflow"}, folder
        assert not model & {"pyspark", "mlflow"}, folder


def test_no_file_is_a_drawer_for_everything() -> None:
    drawers = {"core", "base", "utils", "util", "common", "helpers", "helper", "manager", "misc"}
    assert not [file for file in FILES if file.stem in drawers]


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("sparktrain", {"pyspark", "torch", "mlflow", "pyarrow"}),
        ("sparktrain.config", {"pyspark", "torch", "mlflow", "pyarrow"}),
        ("sparktrain.cli", {"pyspark", "torch", "mlflow"}),
        ("sparktrain.features", {"pyspark", "torch", "mlflow"}),
        ("sparktrain.dataset", {"pyspark", "torch", "mlflow"}),
        ("sparktrain.preparation", {"torch", "mlflow"}),
        ("sparktrain.training.loop", {"pyspark", "mlflow"}),
        ("sparktrain.tabular.model", {"pyspark", "mlflow"}),
        ("sparktrain.scoring.served", {"pyspark"}),
        ("pipelines.flight_delays.data", {"torch", "mlflow"}),
        ("pipelines.flight_delays.model", {"pyspark", "mlflow"}),
    ],
)
def test_a_module_can_be_imported_without_what_its_room_must_not_know(
    module: str, unwanted: set[str]
) -> None:
    # None in sys.modules makes every import of that name fail, as on a machine that does not have it.
    program = f"import sys; sys.modules.update(dict.fromkeys({sorted(unwanted)!r})); import {module}"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
