"""Moving averages of the weights, which are often better than the weights; Polyak and Juditsky, 1992."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class MovingAverage:
    """An exponential moving average of each parameter; without a decay it holds none and does nothing.

    Attributes:
        tensors: by the parameter's name, of its shape and kind.
    """

    def __init__(self, model: nn.Module, decay: float | None) -> None:
        self._model = model
        self._update = get_ema_multi_avg_fn(decay or 0.0)  # type: ignore[no-untyped-call]
        named = model.named_parameters() if decay is not None else ()
        self.tensors: dict[str, Tensor] = {name: p.detach().clone() for name, p in named}

    @torch.no_grad()
    def update(self) -> None:
        if self.tensors:
            current = [p.detach() for name, p in self._model.named_parameters()]
            self._update(list(self.tensors.values()), current, 0)

    def forget(self) -> None:
        self.tensors = {}

    @contextmanager
    def in_place_of_weights(self) -> Iterator[None]:
        """Let the model have the averages for weights meanwhile."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._model.named_parameters() if self.tensors else ():
            average = self.tensors[name]
            weights = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(weights)
