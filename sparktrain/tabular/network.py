"""The network: embeddings of the categorical columns, beside numbers and vectors, through a perceptron."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from sparktrain.features import FittedFeatures, FittedPassthrough, Output
from sparktrain.training.task import Batch


class TabularNetwork(nn.Module):
    """Takes a batch of columns; returns [rows] if `num_outputs` is 1, else [rows, num_outputs].

    What a Passthrough hands on is no input.

    Args:
        features: says which columns there are: numbers, codes, and vectors of float32, which are flattened.
        num_outputs: how many numbers a row gives.
        hidden_sizes: width of each hidden layer; none: a linear model.
        embedding_size: length of each categorical column's vector.
        dropout: fraction of hidden values set to zero while training.
        scaling: of vectors by name: mean and scale of each of their numbers, flattened; (x - mean) * scale is
            what goes in.

    Raises:
        ValueError: there is no input, or one of a kind that needs another network (an image, tokens).
    """

    def __init__(
        self,
        features: FittedFeatures,
        num_outputs: int,
        hidden_sizes: Sequence[int] = (128, 64),
        embedding_size: int = 8,
        dropout: float = 0.1,
        scaling: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    ) -> None:
        super().__init__()
        inputs = [
            output
            for feature in features.features
            if not isinstance(feature, FittedPassthrough)
            for output in feature.outputs
        ]
        _check(inputs)
        self.numeric = [output.name for output in inputs if output.num_codes is None and not output.shape]
        widths = {output.name: math.prod(output.shape) for output in inputs if output.shape}
        self.vectors = list(widths)
        # lists: a column's name can't name a module when it has a dot
        self.scaling = nn.ModuleList(
            _Scaling(*scaling[name]) if scaling and name in scaling else nn.Identity() for name in widths
        )
        codes = {output.name: output.num_codes for output in inputs if output.num_codes is not None}
        self.categorical = list(codes)
        self.embeddings = nn.ModuleList(nn.Embedding(count, embedding_size) for count in codes.values())
        for parameter in self.embeddings.parameters():
            nn.init.normal_(parameter, std=0.1)
        width = len(self.numeric) + sum(widths.values()) + embedding_size * len(codes)
        layers: list[nn.Module] = []
        for given, wanted in pairwise([width, *hidden_sizes]):
            layers += [nn.Linear(given, wanted), nn.ReLU(), nn.Dropout(dropout)]
        self.perceptron = nn.Sequential(*layers, nn.Linear([width, *hidden_sizes][-1], num_outputs))
        self.num_outputs = num_outputs

    def forward(self, batch: Batch) -> Tensor:
        columns = [batch[name].unsqueeze(1) for name in self.numeric]
        columns += [
            scale(batch[name].flatten(1)) for name, scale in zip(self.vectors, self.scaling, strict=True)
        ]
        columns += [embed(batch[name]) for name, embed in zip(self.categorical, self.embeddings, strict=True)]
        outputs: Tensor = self.perceptron(torch.cat(columns, dim=1))  # [rows, num_outputs]
        return outputs.squeeze(1) if self.num_outputs == 1 else outputs


class _Scaling(nn.Module):
    """Brings each number of a vector to the size that layers are made for; buffers: it learns nothing."""

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Sequence[float], scale: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))

    def forward(self, values: Tensor) -> Tensor:
        return (values - self.mean) * self.scale


def _check(inputs: Sequence[Output]) -> None:
    foreign = [o.name for o in inputs if o.num_codes is None and o.dtype != "float32"]
    if foreign:
        raise ValueError(
            f"this network takes numbers, categories and vectors of float32, not {', '.join(foreign)}: write "
            "a Task of your own, or leave them out"
        )
    if not inputs:
        raise ValueError("there is no feature to learn from: declare one that is no Passthrough")
