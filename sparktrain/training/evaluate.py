"""Evaluation: every row of a split exactly once over all ranks, metrics exact."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics import MetricCollection

from sparktrain.dataset import Dataset
from sparktrain.training.task import Batch, TrainTask
from sparktrain.world import World


@dataclass(frozen=True)
class Evaluation:
    """What evaluating a split gave.

    Attributes:
        metrics: over all ranks' rows, "loss" among them.
        row_id, prediction, target: this rank's rows (int64, float32, float32), each of shape [rows].
    """

    metrics: dict[str, float]
    row_id: NDArray[np.int64]
    prediction: NDArray[np.float32]
    target: NDArray[np.float32]


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    task: TrainTask,
    dataset: Dataset,
    split: str,
    global_batch_size: int,
    num_lanes: int,
    world: World,
) -> Evaluation:
    """Evaluate `model` on a split; a collective call, all ranks together."""
    target_name = dataset.features.target.name
    metrics = MetricCollection(dict(task.metrics())).to(world.device)
    stream = dataset.stream(
        split, global_batch_size, num_lanes=num_lanes, world=world, tail="mask", shuffle=False
    )
    loss_and_rows = torch.zeros(2, dtype=torch.float64, device=world.device)
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    model.eval()
    for batch in stream:
        real = batch["row_weight"] > 0
        rows = {name: column[real].to(world.device) for name, column in batch.items()}
        target = rows[target_name]
        if not len(target):
            continue
        outputs = model(rows)
        prediction = task.predict(outputs).float()
        metrics.update(prediction, target.long())
        loss_and_rows[0] += task.loss(outputs, target).double().sum()
        loss_and_rows[1] += len(target)
        kept.append((rows["row_id"], prediction, target))
    model.train()
    if not kept:
        _update_without_rows(metrics, world.device)
    if world.size > 1:
        dist.all_reduce(loss_and_rows)
    values = {name: float(value) for name, value in metrics.compute().items()}
    values["loss"] = float(loss_and_rows[0] / loss_and_rows[1])
    return Evaluation(values, *_concatenate(kept))


def _update_without_rows(metrics: MetricCollection, device: str) -> None:
    """Give the lists of rows their types: torchmetrics guesses float, and gloo aborts where ranks differ."""
    none = torch.empty(0, device=device)
    for metric in metrics.values():
        if any(isinstance(state, list) for state in metric.metric_state.values()):
            metric.update(none, none.long())


def _concatenate(
    kept: list[tuple[Tensor, Tensor, Tensor]],
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
    if not kept:
        empty = np.empty(0, np.float32)
        return np.empty(0, np.int64), empty, empty
    row_id, prediction, target = (torch.cat(column).cpu().numpy() for column in zip(*kept, strict=True))
    return row_id, prediction, target


def rows_to_device(batch: Batch, device: str) -> Batch:
    """Copy a batch to a rank's device; on the CPU it stays where it is."""
    if device == "cpu":
        return batch
    return {name: column.to(device, non_blocking=True) for name, column in batch.items()}
