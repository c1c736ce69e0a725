"""What a run tells about itself: its configuration as flat params, where and with what it ran."""

from __future__ import annotations

import getpass
import json
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any

import sparktrain
from sparktrain.runs.connection import without_secrets
from sparktrain.runs.directory import RunDirectory

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


def tags_of(run_dir: RunDirectory, dataset: Dataset | None, model: nn.Module | None) -> dict[str, str]:
    """Return versions, places and fingerprints; a fact that can't be had is left out."""
    tags = {
        "sparktrain.version": sparktrain.__version__,
        "sparktrain.run_dir": str(run_dir.path),
        "python.version": platform.python_version(),
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
    if commit := _git_commit():
        tags["mlflow.source.git.commit"] = commit
    if model is not None:
        tags["model.num_parameters"] = str(sum(p.numel() for p in model.parameters()))
    return tags


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return None


def _git_commit() -> str | None:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
