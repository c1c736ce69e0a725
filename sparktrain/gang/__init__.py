"""The only room that knows both Spark and torch.distributed: it starts a gang of ranks and answers for it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparktrain.gang.launch import Gang
    from sparktrain.gang.supervise import TrainResult, train

__all__ = ["Gang", "TrainResult", "train"]

# No module here may bear the name of a function: once imported, the module would stand in its place.
_HOMES = {"Gang": "launch", "TrainResult": "supervise", "train": "supervise"}


def __getattr__(name: str) -> Any:
    # Lazy, so that a gang of plain functions does not import MLflow, nor a rank pyspark's SQL side.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
