"""The model: a small decoder-only transformer over bytes, which sees nothing of another file than its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import Metric

from pipelines.stdlib_lm import ngram
from sparktrain.config import TrainConfig
from sparktrain.dataset import Dataset
from sparktrain.features import FittedFeatures
from sparktrain.training.task import Batch, TrainTask

NUM_SYMBOLS = 257  # 0 stands for "nothing before", and for padding; a byte is its value plus one
NUM_ROWS = 16_381  # of the table for each length of context; a prime, so that remainders spread well
NUM_CONTEXTS = 4  # tables: of the last byte, the last two, and so on


@dataclass(frozen=True)
class Task(TrainTask):
    """Predicts each byte from those before it, of the same file and the same block.

    Attributes:
        width: of the vector at each position; a multiple of NUM_CONTEXTS.
        num_blocks: of attention and perceptron, one after the other.
        num_heads: of the attention; width / num_heads is even.
    """

    width: int = 128
    num_blocks: int = 3
    num_heads: int = 4

    def build_model(self, features: FittedFeatures) -> nn.Module:
        return ByteTransformer(self.width, self.num_blocks, self.num_heads)

    def optimizers(self, model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
        """AdamW, with larger steps for the embeddings: most of their rows are seen only now and then."""
        assert isinstance(model, ByteTransformer)
        tables = list(model.embeddings.parameters())
        others = [p for p in model.parameters() if not any(p is table for table in tables)]
        groups: list[dict[str, Any]] = [
            {"params": others, "weight_decay": config.weight_decay},
            {"params": tables, "lr": 10 * config.learning_rate, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.99))

    def loss(self, outputs: Tensor, target: object) -> Tensor:
        """Nats per byte of each block, shape [rows]."""
        return outputs[:, 0] / outputs[:, 1].clamp(min=1.0)  # a block that could not be read has none

    def predict(self, outputs: Tensor) -> Tensor:
        """Bits and bytes of each block, shape [rows, 2]: all that a metric needs, and little to keep."""
        return outputs / outputs.new_tensor([math.log(2), 1.0])

    def metrics(self) -> dict[str, Metric]:
        return {"bits_per_byte": BitsPerByte()}

    def reference(self, dataset: Dataset) -> Mapping[str, float]:
        return {"bits_per_byte": ngram.bits_per_byte(dataset)}


class BitsPerByte(Metric):
    """All bits over all bytes, so that a block that is half padding counts by half."""

    higher_is_better = False
    full_state_update = False
    bits_and_bytes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("bits_and_bytes", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: object) -> None:
        self.bits_and_bytes += prediction.double().sum(dim=0)

    def compute(self) -> Tensor:
        return self.bits_and_bytes[0] / self.bits_and_bytes[1]


class ByteTransformer(nn.Module):
    """Takes a batch of blocks, returns what each costs: nats and number of bytes, shape [rows, 2]."""

    def __init__(self, width: int, num_blocks: int, num_heads: int) -> None:
        super().__init__()
        part = width // NUM_CONTEXTS
        self.head_size = width // num_heads
        self.embeddings = nn.ModuleList(nn.Embedding(NUM_ROWS, part) for _ in range(NUM_CONTEXTS))
        self.blocks = nn.ModuleList(Block(width, num_heads) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(width)
        self.logits_of = nn.Linear(width, NUM_SYMBOLS)
        for embedding in self.embeddings:
            nn.init.normal_(embedding.weight, std=0.1)
        for parameter in self.logits_of.parameters():  # every symbol is as likely as any other at first
            nn.init.zeros_(parameter)

    def forward(self, batch: Batch) -> Tensor:
        symbols, document = batch["source"].long(), batch["source_document"]  # [rows, block_size]
        logits = self.logits(symbols, document)
        nats = functional.cross_entropy(logits.flatten(0, 1), symbols.flatten(), reduction="none")
        is_byte = document >= 0
        return torch.stack([(nats.view_as(symbols) * is_byte).sum(dim=1), is_byte.sum(dim=1)], dim=1)

    def logits(self, symbols: Tensor, document: Tensor) -> Tensor:
        """Return each position's logits before its byte is seen, shape [rows, block_size, NUM_SYMBOLS]."""
        context, parts = torch.zeros_like(symbols), []
        for distance, embedding in enumerate(self.embeddings, start=1):
            context = context * NUM_SYMBOLS + before(symbols, document, distance)
            parts.append(embedding(context % NUM_ROWS))
        x = torch.cat(parts, dim=2)
        mask = visible(document)
        turns = rotation(symbols.shape[1], self.head_size, symbols.device)
        for block in self.blocks:
            x = block(x, mask, turns)
        found: Tensor = self.logits_of(self.norm(x))
        return found


class Block(nn.Module):
    """Attention to what came before, then a perceptron; each adds to x, shape [rows, block_size, width]."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_size = num_heads, width // num_heads
        self.attention_norm, self.perceptron_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.attended = nn.Linear(width, width, bias=False)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        nn.init.zeros_(self.attended.weight)  # at first a block changes nothing
        nn.init.zeros_(self.narrow.weight)

    def forward(self, x: Tensor, mask: Tensor, turns: Tensor) -> Tensor:
        heads = self.query_key_value(self.attention_norm(x)).unflatten(2, (3, self.num_heads, self.head_size))
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # each [rows, heads, block_size, head_size]
        found = functional.scaled_dot_product_attention(
            turned(query, turns), turned(key, turns), value, attn_mask=mask
        )
        x = x + self.attended(found.transpose(1, 2).flatten(2))
        return x + self.narrow(functional.gelu(self.widen(self.perceptron_norm(x)), approximate="tanh"))


def before(symbols: Tensor, document: Tensor, distance: int) -> Tensor:
    """The symbol so many places before each, 0 where that is in another document or another block."""
    shifted = functional.pad(symbols, (distance, 0))[:, : symbols.shape[1]]
    owner = functional.pad(document, (distance, 0), value=-1)[:, : symbols.shape[1]]
    return shifted * (owner == document)


def visible(document: Tensor) -> Tensor:
    """Whether a position (of dimension 2) sees another (of 3), bool [rows, 1, block_size, block_size].

    A position holds the bytes before its own only, so that it may see itself.
    """
    same = document[:, None, :, None] == document[:, None, None, :]
    return same.tril()


def rotation(length: int, head_size: int, device: torch.device) -> Tensor:
    """Cosine and sine of each position's angles, shape [2, length, head_size / 2] (rotary embedding)."""
    rates = 10_000.0 ** -(torch.arange(0, head_size, 2, device=device) / head_size)
    angles = torch.arange(length, device=device)[:, None] * rates
    return torch.stack([angles.cos(), angles.sin()])


def turned(x: Tensor, turns: Tensor) -> Tensor:
    """Turn pairs of x by their position's angles, so that products depend on distances alone."""
    cosine, sine = turns
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cosine - right * sine, left * sine + right * cosine], dim=-1)
