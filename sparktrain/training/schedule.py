"""The learning rate as a function of the step, so that resuming needs no state of it."""

from __future__ import annotations

import math

from sparktrain.config import TrainConfig


def rate_factor(step: int, total_steps: int, config: TrainConfig) -> float:
    """Return what learning rates are multiplied with at a step, counted from 0.

    Linear warm-up over `warmup_fraction` of all steps, then by `schedule` down to
    `final_learning_rate_fraction`: half a cosine, a straight line, or no way down at all.
    """
    warmup = round(total_steps * config.warmup_fraction)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(total_steps - warmup, 1)
    final = config.final_learning_rate_fraction
    match config.schedule:
        case "constant":
            return 1.0
        case "linear":
            return final + (1.0 - final) * (1.0 - progress)
        case "cosine":
            return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))
