"""What happens to a step whose loss or gradient is NaN or infinite; and that no such state is ever saved."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from sparktrain.errors import NonFiniteLoss, StepFailed
from sparktrain.world import World

OnNonFinite = Literal["stop", "skip"]

MAX_SKIPPED_IN_A_ROW = 10
_MAX_SKIPPED_SCALED = 40  # fp16 halves its scale, from 2**16 on, at each step that overflows


class GuardedStep:
    """With "skip", leaves a step out on all ranks when any rank's loss or gradient is not finite.

    With "stop" it does nothing: the log window looks at the mean loss and gradient, and stops.

    Args:
        is_scaled: losses are scaled for fp16, so that an overflow now and then is in order; skips those.
    """

    def __init__(self, on_nonfinite: OnNonFinite, model: nn.Module, *, is_scaled: bool = False) -> None:
        self._is_on = on_nonfinite == "skip" or is_scaled
        self._most = _MAX_SKIPPED_SCALED if is_scaled else MAX_SKIPPED_IN_A_ROW
        self._model = model
        self._buffers: list[Tensor] = []
        self._num_skipped = 0

    def begin(self) -> None:
        """Remember the buffers: a forward pass changes running statistics."""
        if self._is_on:
            self._buffers = [buffer.clone() for buffer in self._model.buffers()]

    def backward(self, mean: Tensor) -> None:
        """Go backward from `mean`, a number; one that is not finite makes every gradient NaN.

        A loss can be infinite while its gradient is 0. The other ranks would not hear of it, because ranks
        exchange gradients alone: so they are told by these, which costs no further exchange.
        """
        if not self._is_on:
            mean.backward()  # type: ignore[no-untyped-call]
            return
        start = torch.where(mean.detach().isfinite(), 1.0, math.nan).to(mean.dtype)
        mean.backward(start)  # type: ignore[no-untyped-call]

    def must_skip(self, norm: Tensor, step: int) -> bool:
        """Say whether to leave this step out; `norm` is that of the gradients of all ranks together.

        Raises:
            NonFiniteLoss: after many such steps in a row: nothing is learned any more.
        """
        if not self._is_on:
            return False
        if math.isfinite(float(norm)):
            self._num_skipped = 0
            return False
        for buffer, before in zip(self._model.buffers(), self._buffers, strict=True):
            buffer.copy_(before)
        self._num_skipped += 1
        if self._num_skipped >= self._most:
            what = f"loss or the gradient of {self._num_skipped} steps in a row"
            raise NonFiniteLoss(step, float(norm), what)
        return True


def refuse_non_finite_state(tensors: Iterable[Tensor], world: World, step: int) -> None:
    """Stop all ranks alike if any of them holds a weight, a buffer or a state that is not finite.

    A finite gradient can still overflow a weight. It shows in the next step's loss, after the save.

    Raises:
        StepFailed: because of `NonFiniteLoss`.
    """
    is_finite = torch.tensor([float(all(map(_is_finite, tensors)))], device=world.device)
    if world.size > 1:
        dist.all_reduce(is_finite, dist.ReduceOp.MIN)
    if not is_finite.item():
        raise StepFailed(step) from NonFiniteLoss(step, math.nan, what="state of the model or the optimizer")


def _is_finite(tensor: Tensor) -> bool:
    if isinstance(tensor, DTensor):
        tensor = tensor.to_local()  # each rank looks at its own part
    # NaN and infinities survive a sum, which needs no memory; finite numbers can overflow in it
    return math.isfinite(float(tensor.sum())) or bool(tensor.isfinite().all())
