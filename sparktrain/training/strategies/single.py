"""One rank alone: nothing to send, nothing to agree on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn


class Single:
    """A gang of one, on which the other strategies build: each replaces what it does in another way."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.forward: nn.Module = model

    def accumulating(self) -> AbstractContextManager[None]:
        return nullcontext()

    def is_synchronous(self, step: int) -> bool:
        return True

    def reduce(self) -> None:
        pass

    def clip(self, parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
        return nn.utils.clip_grad_norm_(parameters, max_norm)

    def stepped(self, step: int) -> None:
        pass

    def agree(self, optimizers: Iterable[torch.optim.Optimizer], others: Iterable[Tensor] = ()) -> None:
        pass

    def evaluating(self) -> AbstractContextManager[None]:
        return nullcontext()

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def restore(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        pass
