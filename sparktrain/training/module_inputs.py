"""Which columns of a batch go to which argument of a module that takes tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from sparktrain.errors import nearest
from sparktrain.features import FittedFeatures, FittedPassthrough
from sparktrain.training.task import Batch

Inputs = Sequence[str | Sequence[str]]
"""An entry for each argument: a column's name, or several names of plain numbers that go side by side."""


def take_inputs(inputs: Inputs, batch: Batch) -> tuple[Tensor, ...]:
    """Return the arguments: columns of shape [rows, *shape], several side by side [rows, names]."""
    return tuple(
        batch[entry] if isinstance(entry, str) else torch.stack([batch[name] for name in entry], dim=1)
        for entry in inputs
    )


def default_inputs(features: FittedFeatures) -> tuple[str | tuple[str, ...], ...] | str:
    """What `inputs` is if nobody says; or, in words, why that is not known."""
    handed_on = {f.name for f in features.features if isinstance(f, FittedPassthrough)}
    outputs = [output for output in features.outputs if output.name not in handed_on]
    if len(outputs) == 1:
        return (outputs[0].name,)
    numbers = tuple(output.name for output in features.numeric if output.name not in handed_on)
    left_out = [output.name for output in outputs if output.name not in numbers]
    if not left_out and numbers:
        return (numbers,)
    if not outputs:
        return "inputs: there is no feature but those that are passed through; name the columns to take"
    example = f"inputs = ({numbers or '…'}, {left_out[0]!r})"
    names = ", ".join(left_out)
    return f"inputs: these are no numbers to put side by side: {names}; say what goes where, like {example}"


def wrong_inputs(inputs: Inputs, features: FittedFeatures) -> Iterator[str]:
    """Say what of `inputs` a batch can't give."""
    there = {output.name: output for output in features.outputs if output.dtype != "string"}
    for entry in inputs:
        names = (entry,) if isinstance(entry, str) else tuple(entry)
        if not names:
            yield "inputs: an empty tuple of names"
        for name in names:
            if name not in there:
                yield f"inputs: {unknown('feature', name, there)}"
            elif not isinstance(entry, str) and there[name].shape:
                yield f"inputs: `{name}` is of shape {there[name].shape}; name it alone, outside of a tuple"


def unknown(what: str, given: str, known: Iterable[str]) -> str:
    """Say that there is no such name, and which there are."""
    hint = nearest(given, known)
    did_you_mean = f" (did you mean `{hint}`?)" if hint else ""
    return f"there is no {what} `{given}`{did_you_mean}; there are: {', '.join(known) or 'none'}"
