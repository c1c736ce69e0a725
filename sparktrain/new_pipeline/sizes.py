"""Sizes that suit so many rows: of splits, parts, row groups, batches, and how long to train."""

from __future__ import annotations

import math
from typing import Any

_FEW_ROWS = 2_000  # whose validation split has too few rows for most metrics
_ROWS_FOR_TWO = 50_000  # below, a second rank costs more time than it saves
_STEPS = 1_500  # that a network of this size wants, about


def sizes_for(rows: int, kind: str) -> dict[str, dict[str, Any]]:
    """What a configuration has other than the defaults, by section and key.

    Args:
        rows: that have a target.
        kind: of the target.
    """
    is_small = rows < _FEW_ROWS
    held_out = 0.15 if is_small else 0.1
    train_rows = max(int(rows * (1 - 2 * held_out)), 1)
    batch = _power_of_two(train_rows / 50, 16 if train_rows >= 32 else 8, 2048)  # the split may have fewer
    steps = max(train_rows // batch, 1)
    return {
        "prepare": {
            "split": {"validation": held_out, "test": held_out},
            "num_parts": min(max(rows // 250_000, 2), 64),
            "rows_per_row_group": _power_of_two(train_rows / 64, 16, 4096),
        },
        "train": {
            "ranks": 1 if rows < _ROWS_FOR_TWO else 2,
            "epochs": min(max(math.ceil(_STEPS / steps), 3), 40),
            "global_batch_size": batch,
            "learning_rate": 0.003,
            "early_stopping_evaluations": 8,
            "best_metric": _metric(kind, is_small),
            "reference": "logistic_regression" if kind == "binary" else "none",
        },
    }


def hidden_sizes_for(rows: int) -> tuple[int, int]:
    return (32, 16) if rows < _FEW_ROWS else (128, 64)


def _metric(kind: str, is_small: bool) -> str:
    """What picks the best checkpoint: of few rows the loss, which tells most."""
    if is_small or kind == "multiclass":
        return "loss"
    return "auroc" if kind == "binary" else "r2"


def _power_of_two(wanted: float, least: int, most: int) -> int:
    return min(max(1 << round(math.log2(max(wanted, 1))), least), most)
