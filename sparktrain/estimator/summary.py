"""What a fit leaves to look at: losses by epoch, metrics, and where the run lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingSummary:
    """How a model was trained; gone when the model is saved and loaded, as with Spark's own models.

    Attributes:
        objectiveHistory: the training loss of each epoch, the mean over its steps.
        validationHistory: the validation loss after each epoch, and after other evaluations that `config`
            asks for; empty without validation rows.
        totalIterations: epochs that were trained, as `maxIter` counts them; one that was broken off counts.
        metrics: "validation/…" of the best checkpoint, and "test/…" if there were such rows.
        runId: MLflow's; None without MLflow.
        runDirectory: None if it was a temporary one.
        seconds: by phase.
    """

    objectiveHistory: tuple[float, ...]
    validationHistory: tuple[float, ...]
    totalIterations: int
    metrics: Mapping[str, float]
    runId: str | None
    runDirectory: str | None
    seconds: Mapping[str, float]


def losses_by_epoch(curve: Sequence[tuple[int, float]], steps_per_epoch: int) -> tuple[float, ...]:
    """Return the mean loss of each epoch's steps.

    Args:
        curve: (step, mean loss of the steps since the point before, or since the epoch began), in order of
            steps, the first of which is 1; no point is of two epochs.
    """
    sums: dict[int, float] = {}
    weights: dict[int, int] = {}
    before = 0
    for step, loss in curve:
        epoch = (step - 1) // steps_per_epoch
        num_steps = step - max(before, epoch * steps_per_epoch)
        sums[epoch] = sums.get(epoch, 0.0) + loss * num_steps
        weights[epoch] = weights.get(epoch, 0) + num_steps
        before = step
    return tuple(total / weights[epoch] for epoch, total in sums.items())
