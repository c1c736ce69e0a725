"""Scoring: a logged model gives raw rows their predictions, on Spark or in a server without it.

`score` is loaded on first use: a server that only wants `ServedModel` has no pyspark.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparktrain.scoring.on_spark import score

__all__ = ["score"]


def __getattr__(name: str) -> Any:
    if name != "score":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sparktrain.scoring.on_spark import score

    return score
