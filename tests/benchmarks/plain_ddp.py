"""The yardstick of our engine: the shortest loop of DistributedDataParallel, over tensors held in memory."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.parallel import DistributedDataParallel

from sparktrain.config import TrainConfig


class PlainLoop:
    """What one writes for torchrun.

    Args:
        columns: this rank's rows by name, as the batches of a stream have them.
    """

    def __init__(self, model: nn.Module, columns: Mapping[str, Tensor], config: TrainConfig) -> None:
        self._model, self._columns = DistributedDataParallel(model), columns
        self._optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self._size = config.global_batch_size // dist.get_world_size()
        self._rows = len(columns["label"]) // self._size * self._size
        self._clip = config.clip_gradient_norm or float("inf")
        self._next = 0

    def train(self, steps: int) -> None:
        for _ in range(steps):
            rows = slice(self._next, self._next + self._size)
            batch = {name: column[rows] for name, column in self._columns.items()}
            self._optimizer.zero_grad(set_to_none=True)
            binary_cross_entropy_with_logits(self._model(batch), batch["label"]).backward()
            nn.utils.clip_grad_norm_(self._model.parameters(), self._clip)
            self._optimizer.step()
            self._next = rows.stop % self._rows
