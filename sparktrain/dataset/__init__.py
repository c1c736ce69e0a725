"""From Parquet parts to batches that are equal at any world size: manifest, plan, read, stream. No Spark."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sparktrain.dataset.dataset import Dataset, open_dataset
from sparktrain.dataset.layout import ColumnSpec
from sparktrain.dataset.manifest import Manifest, Part, Split

if TYPE_CHECKING:
    from sparktrain.dataset.mixture import mix
    from sparktrain.dataset.stream import Batch, Stream

__all__ = ["Batch", "ColumnSpec", "Dataset", "Manifest", "Part", "Split", "Stream", "mix", "open_dataset"]


def __getattr__(name: str) -> Any:
    if name not in ("Batch", "Stream", "mix"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sparktrain.dataset import mixture, stream  # they need torch, which prepare must not

    return getattr(mixture if name == "mix" else stream, name)
