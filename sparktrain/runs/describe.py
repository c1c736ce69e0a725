"""What a run tells about itself: its configuration as flat params, where and with what it ran."""

from __future__ import annotations

import getpass
import json
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sparktrain
from sparktrain.runs.connection import without_secrets
from sparktrain.runs.directory import RunDirectory
from sparktrain.storage import commit_json, read_json

if TYPE_CHECKING:
    from torch import nn

    from sparktrain.dataset import Dataset

# Spark's own redaction pattern, so that both hide the same keys
_SECRET_KEY = re.compile(r"secret|password|token|access[.]?key", re.IGNORECASE)
_MASK = "*********(redacted)"
_MAX_PARAM = 6000  # MLflow's limits
_MAX_TAG = 5000
_LIBRARIES = ("torch", "pyspark", "pyarrow", "mlflow")


def masked(tree: Any, key: str = "") -> Any:
    """Return the tree with the values of secret keys, and the passwords inside URIs, replaced."""
    if isinstance(tree, Mapping):
        return {name: masked(value, str(name)) for name, value in tree.items()}
    if isinstance(tree, list):
        return [masked(value, key) for value in tree]
    if tree is not None and _SECRET_KEY.search(key) and not _is_count(key, tree):
        return _MASK
    return without_secrets(tree) if isinstance(tree, str) else tree


def _is_count(key: str, value: object) -> bool:
    """Whether a number is one of tokens of text, as max_tokens is: a resume must see it change."""
    return isinstance(value, int | float) and "tokens" in key.lower()


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {"train.epochs": 4, ...}: values by dotted key; an empty section is a value."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def params_of(tree: Mapping[str, Any]) -> dict[str, str]:
    """Return {"train.epochs": "4", ...}: keys and texts that MLflow takes as params."""
    texts = {key: v if isinstance(v, str) else json.dumps(v) for key, v in flatten(tree).items() if v != {}}
    return {re.sub(r"[^\w\-. /:]", "_", key): text[:_MAX_PARAM] for key, text in texts.items()}


def changed_params(logged: Mapping[str, str], params: Mapping[str, str]) -> dict[str, str]:
    """Return tags for the params that a resume changed: MLflow's params can't change, tags can."""
    return {
        f"resumed_with.{key}": value[:_MAX_TAG]
        for key, value in params.items()
        if key in logged and logged[key] != value
    }


def keep_facts(
    run_dir: RunDirectory, dataset: Dataset, model: nn.Module, spark: Mapping[str, str] | None = None
) -> None:
    """Write down what a run runs with, where it runs: MLflow may be told of it much later, from elsewhere.

    Args:
        spark: tags about the session; None without Spark.
    """
    tags = tags_of(run_dir, dataset, model) | dict(spark or {})
    commit_json(run_dir.facts_file, {"tags": tags, "model": str(model)})


def facts_of(run_dir: RunDirectory) -> tuple[dict[str, str], str | None]:
    """Return the tags that `keep_facts` wrote, and the model as text; nothing if it did not."""
    try:
        facts = read_json(run_dir.facts_file)
    except FileNotFoundError:
        return {}, None
    return dict(facts["tags"]), facts["model"]


def tags_of(run_dir: RunDirectory, dataset: Dataset | None, model: nn.Module | None) -> dict[str, str]:
    """Return versions, places and fingerprints; a fact that can't be had is left out."""
    tags = {
        "sparktrain.version": sparktrain.__version__,
        "sparktrain.run_dir": str(run_dir.path),
        "python.version": platform.python_version(),
        "sparktrain.host": socket.gethostname(),
        "mlflow.source.name": sys.argv[0] or "python",
        "mlflow.source.type": "LOCAL",
    }
    if dataset is not None:
        tags["sparktrain.dataset_fingerprint"] = dataset.fingerprint
    for library in _LIBRARIES:
        try:
            tags[f"{library}.version"] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    if user := _user():
        tags["mlflow.user"] = user
    tags |= git_tags()
    if model is not None:
        tags["model.num_parameters"] = str(sum(p.numel() for p in model.parameters()))
    return tags


def attempt_tags(run_dir: RunDirectory) -> dict[str, str]:
    """Return how often the run was started: by its driver after failures, and by a resume."""
    attempts = run_dir.num_attempts
    return {"sparktrain.attempts": str(attempts), "sparktrain.restarts": str(max(attempts - 1, 0))}


def git_tags(folder: Path | None = None) -> dict[str, str]:
    """Return commit and branch of the repository that a folder lies in, and whether files differ from them.

    Args:
        folder: None takes the working directory, which holds `pipelines/`.
    """
    tags = {
        "mlflow.source.git.commit": _git(folder, "rev-parse", "HEAD"),
        "mlflow.source.git.branch": _git(folder, "symbolic-ref", "--short", "HEAD"),  # none when detached
    }
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    if tags["mlflow.source.git.commit"] and changes is not None:
        tags["mlflow.source.git.dirty"] = str(bool(changes)).lower()
    return {key: value for key, value in tags.items() if value}


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return None


def _git(folder: Path | None, *command: str) -> str | None:
    """Return what git answers; None if it has no answer, or takes too long for one."""
    try:
        found = subprocess.run(
            ["git", "--no-optional-locks", *command],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
