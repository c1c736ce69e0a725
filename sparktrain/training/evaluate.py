"""Evaluation: every row of a split exactly once over all ranks, metrics exact; what a row's loss is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics import MetricCollection

from sparktrain import pulse
from sparktrain.dataset import Dataset
from sparktrain.errors import LossNotByRow
from sparktrain.features import FittedFeatures
from sparktrain.training.task import Batch, TrainTask
from sparktrain.world import World

Columns = NDArray[np.float32 | np.int64] | Mapping[str, NDArray[np.float32 | np.int64]]
"""One column of rows, or several by name."""


@dataclass(frozen=True)
class Evaluation:
    """What evaluating a split gave.

    Attributes:
        metrics: over all ranks' rows, "loss" among them: the mean that the rows' weights give. All others are
            without weights.
        row_id, prediction, target: this rank's rows: int64 [rows], float32 [rows, ...] as the Task predicts,
            float32 or int64 [rows]; dicts of these by name where there are several targets or predictions.
            The last two are None where nothing is predicted of a target.
        masked: rows that this rank could not read and left out: "part, row group n" -> why.
    """

    metrics: dict[str, float]
    row_id: NDArray[np.int64]
    prediction: Columns | None
    target: Columns | None
    masked: Mapping[str, str]


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    task: TrainTask,
    dataset: Dataset,
    split: str,
    global_batch_size: int,
    num_lanes: int,
    world: World,
    stream_options: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Evaluate `model` on a split; a collective call, all ranks together."""
    features = dataset.features
    metrics = MetricCollection(dict(task.metrics())).to(world.device)
    lanes: dict[str, Any] = {"num_lanes": num_lanes, "world": world, **(stream_options or {})}
    stream = dataset.stream(split, global_batch_size, tail="mask", shuffle=False, **lanes)
    loss_and_weight = torch.zeros(2, dtype=torch.float64, device=world.device)
    row_ids: list[Tensor] = []
    kept: list[tuple[Any, Any]] = []
    modes = {module: module.training for module in model.modules()}
    model.eval()
    for batch in stream:
        pulse.beat()
        real = batch["row_weight"] > 0
        is_padding = not bool(real.any())
        # Also for nothing but copies of real rows: under a strategy that gathers weights all ranks take part.
        rows = {n: (column if is_padding else column[real]).to(world.device) for n, column in batch.items()}
        outputs = model(rows)
        prediction = _each(torch.Tensor.float, task.predict(outputs))
        if is_padding:
            continue
        metrics.update(prediction, _metric_target(features, rows))
        weights = weights_of(features, rows)
        losses = weighted(task, task.loss(outputs, target_of(features, rows)), weights)
        loss_and_weight += torch.stack([losses.double().sum(), weights.double().sum()])
        row_ids.append(rows["row_id"])
        kept.append((prediction, target_of(features, rows)))
    if not row_ids:
        # Only padding came to this rank: what was made of it has the right shape, dtype.
        none = {name: column[:0] for name, column in rows.items()}
        prediction = _each(lambda column: column[:0], prediction)
        _update_without_rows(metrics, prediction, _metric_target(features, none))
        row_ids.append(none["row_id"])
        kept.append((prediction, target_of(features, none)))
    for module, was_training in modes.items():  # some may be meant to stay as in evaluation
        module.training = was_training
    if world.size > 1:
        dist.all_reduce(loss_and_weight)
    values = {name: float(value) for name, value in metrics.compute().items()}
    values["loss"] = float(loss_and_weight[0] / loss_and_weight[1])
    row_id = torch.cat(row_ids).cpu().numpy()
    if not features.targets:
        return Evaluation(values, row_id, None, None, stream.masked)
    predictions, targets = zip(*kept, strict=True)
    return Evaluation(values, row_id, _joined(predictions), _joined(targets), stream.masked)


def target_of(features: FittedFeatures, batch: Batch) -> Tensor | dict[str, Tensor]:
    """Return what a Task's loss takes as target: a column, or columns by name unless there is exactly one."""
    targets = {target.name: batch[target.name] for target in features.targets}
    return targets.popitem()[1] if len(targets) == 1 else targets


def weights_of(features: FittedFeatures, batch: Batch) -> Tensor:
    """Return what each row's loss is multiplied with, [rows]; padding has weight 0."""
    weights = batch["row_weight"]
    return weights if features.weight is None else weights * batch[features.weight.name]


def weighted(task: TrainTask, losses: Tensor, weights: Tensor) -> Tensor:
    """Return each row's loss times its weight, [rows] like both.

    Raises:
        LossNotByRow: the Task's loss is not of shape [rows].
    """
    if losses.shape != weights.shape:  # torch would spread one over the other, and train on something else
        raise LossNotByRow(type(task).__module__, tuple(losses.shape), len(weights))
    return losses * weights


def _metric_target(features: FittedFeatures, batch: Batch) -> Tensor | dict[str, Tensor]:
    binary = {
        target.name: batch[target.name].long() for target in features.targets if target.kind == "binary"
    }
    return target_of(features, {**batch, **binary})


def _each(function: Callable[[Tensor], Tensor], predicted: Any) -> Any:
    if isinstance(predicted, Mapping):
        return {name: function(column) for name, column in predicted.items()}
    return function(predicted)


def _joined(parts: Sequence[Any]) -> Columns:
    if isinstance(parts[0], Mapping):
        return {name: _joined_column([part[name] for part in parts]) for name in parts[0]}
    return _joined_column(parts)


def _joined_column(parts: Sequence[Tensor]) -> NDArray[np.float32 | np.int64]:
    column: NDArray[np.float32 | np.int64] = torch.cat(list(parts)).cpu().numpy()
    return column


def _update_without_rows(metrics: MetricCollection, *none: Any) -> None:
    """Give the lists of rows their types: torchmetrics guesses float, and gloo aborts where ranks differ."""
    for metric in metrics.values():
        if any(isinstance(state, list) for state in metric.metric_state.values()):
            metric.update(*none)


def rows_to_device(batch: Batch, device: str) -> Batch:
    """Copy a batch to a rank's device; on the CPU it stays where it is."""
    if device == "cpu":
        return batch
    return {name: column.to(device, non_blocking=True) for name, column in batch.items()}
