"""The language model: it sees nothing that it is to predict, and its bits are counted exactly."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from pyspark.sql import SparkSession
from torch import Tensor

import sparktrain
from pipelines.stdlib_lm import data
from pipelines.stdlib_lm.model import BitsPerByte, ByteTransformer, Task
from pipelines.stdlib_lm.ngram import NGram, with_contexts
from sparktrain.config import Config, load_config
from sparktrain.dataset import Dataset, open_dataset
from sparktrain.training.checkpoint import newest_valid
from sparktrain.training.checkpoint_state import load_weights
from tests.fixtures.command import ROOT

SIZE = 24
CONF = ROOT / "conf" / "stdlib_lm.yaml"


@pytest.fixture
def model() -> ByteTransformer:
    torch.manual_seed(0)
    model = ByteTransformer(width=32, num_blocks=2, num_heads=2)
    for parameter in model.parameters():  # those that are zero at first would hide what is seen
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def block(documents: list[int], padding: int = 0) -> tuple[Tensor, Tensor]:
    """A block of random bytes, of documents of these lengths: symbols and document, int32 [1, block_size]."""
    document = [number for number, length in enumerate(documents) for _ in range(length)] + [-1] * padding
    symbols = np.random.default_rng(7).integers(1, 257, len(document)) * (np.array(document) >= 0)
    return torch.tensor(symbols)[None].int(), torch.tensor(document)[None].int()


def test_a_prediction_depends_on_every_earlier_byte_of_its_document_and_on_no_other(
    model: ByteTransformer,
) -> None:
    symbols, document = block([9, 12], padding=3)
    before = model.logits(symbols.long(), document)[0]
    for place in range(21):
        changed = symbols.long().clone()
        changed[0, place] = changed[0, place] % 256 + 1
        moved = (model.logits(changed, document)[0] - before).abs().amax(dim=1) > 1e-6
        end = 9 if place < 9 else 21
        wanted = [place < other < end for other in range(21)]
        assert moved[:21].tolist() == wanted, f"after a change at {place}"


def test_a_document_costs_the_same_wherever_it_stands(model: ByteTransformer) -> None:
    symbols, document = block([9, 12], padding=3)
    second = {"source": symbols[:, 9:21], "source_document": document[:, 9:21]}
    first = {"source": symbols[:, :9], "source_document": document[:, :9]}
    both = model({"source": symbols, "source_document": document})
    torch.testing.assert_close(both, model(first) + model(second))
    assert both[0, 1] == 21


def test_an_untrained_model_knows_nothing() -> None:
    symbols, document = block([9, 12], padding=3)
    nats, num_bytes = ByteTransformer(32, 2, 2)({"source": symbols, "source_document": document})[0].tolist()
    assert num_bytes == 21 and nats == pytest.approx(21 * math.log(257), rel=1e-5)


def test_bits_per_byte_is_all_bits_over_all_bytes() -> None:
    outputs = torch.tensor([[2.0, 4.0], [6.0, 4.0], [3.0, 1.0]]) * torch.tensor([math.log(2), 1.0])
    task, metric = Task(), BitsPerByte()
    for rows in outputs.split([2, 1]):
        metric.update(task.predict(rows), {})
    assert float(metric.compute()) == pytest.approx(11 / 9)
    losses = task.loss(outputs, {}) / math.log(2)
    torch.testing.assert_close(losses, torch.tensor([0.5, 1.5, 3.0]))


def as_blocks(*texts: bytes) -> tuple[np.ndarray, np.ndarray]:
    """One block of texts, as packing makes it."""
    symbols = np.frombuffer(b"".join(texts), np.uint8).astype(np.int32) + 1
    return symbols[None], np.repeat(np.arange(len(texts)), [len(text) for text in texts])[None]


def by_hand(texts: list[bytes], context: bytes | None, byte: int) -> float:
    """Witten and Bell's mixture by counting; a context is as long as its order, with None for a start."""
    if context is None:
        return 1 / 256
    order = len(context)
    seen: Counter[int] = Counter()
    for text in texts:
        padded = bytes([0] * order) + text  # no text here holds a 0
        seen.update(padded[i] for i in range(order, len(padded)) if padded[i - order : i] == context)
    lower = by_hand(texts, context[1:] if order else None, byte)
    total, kinds = sum(seen.values()), len(seen)
    return (seen[byte] + kinds * lower) / (total + kinds) if total else lower


def test_ngram_probabilities_are_those_counted_by_hand() -> None:
    texts = [b"abracadabra", b"ab", b"cabal"]
    model = NGram.fit(*as_blocks(*texts))
    for text in [b"abraz", b"a", b"xyz", b"cada"]:
        found = model.probabilities(*with_contexts(*as_blocks(text)))
        padded = b"\0\0\0" + text
        wanted = [by_hand(texts, padded[i : i + 3], byte) for i, byte in enumerate(text)]
        np.testing.assert_allclose(found, wanted, rtol=1e-12)
        bits = model.bits_per_byte(*as_blocks(text))
        assert bits == pytest.approx(-np.log2(wanted).mean())
    assert by_hand(texts, b"bra", ord("c")) == pytest.approx(0.5 * (1 + 1 * by_hand(texts, b"ra", ord("c"))))


@pytest.mark.parametrize("context", [b"", b"a", b"zz", b"abr", b"zab"])
def test_ngram_probabilities_of_all_bytes_sum_to_one(context: bytes) -> None:
    model = NGram.fit(*as_blocks(b"abracadabra", b"ab", b"cabal"))
    found = [
        model.probabilities(*with_contexts(*as_blocks(context + bytes([byte]))))[-1] for byte in range(256)
    ]
    assert sum(found) == pytest.approx(1.0, abs=1e-12) and min(found) > 0


def test_modules_are_the_librarys_own_sources(tmp_path: Path) -> None:
    for name in ("json/decoder.py", "json/tests/test_a.py", "site-packages/x.py", "abc.py", "json/c.so"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"# -*- coding: latin-1 -*-\n# \xe9\n")
    found = dict(data.modules(tmp_path))
    assert list(found) == ["abc", "json.decoder"]
    assert data.source(found["abc"]).endswith("# é\n")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    root = tmp_path_factory.mktemp("lm")
    small = ["train.global_batch_size=16", "train.num_lanes=4", "train.epochs=1", "prepare.num_parts=2"]
    small += ["prepare.split.validation=0.2", "prepare.split.test=0.2"]
    small += ["train.model={width: 32, num_blocks: 1, num_heads: 2}", "train.learning_rate=0.01"]
    return load_config(CONF, [f"storage.root={root}", *small])


@pytest.fixture(scope="module")
def dataset(spark: SparkSession, config: Config, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A thirtieth of the modules."""
    df = data.read(spark, tmp_path_factory.mktemp("workspace"), fraction=1 / 30)
    return sparktrain.prepare(
        df,
        data.FEATURES,
        data.TARGET,
        config.prepare,
        name=config.pipeline,
        root=config.storage.root,
        rules=data.RULES,
        key=data.KEY,
    )


@pytest.mark.spark
@pytest.mark.slow
def test_no_module_is_in_two_splits_and_no_byte_is_lost(
    spark: SparkSession, dataset: Dataset, tmp_path: Path
) -> None:
    sources = [row.source.encode() for row in data.read(spark, tmp_path, fraction=1 / 30).collect()]
    found = {}
    for split in ("train", "validation", "test"):
        symbols, document = data_blocks(dataset, split)
        assert len(symbols), f"no block for {split}"
        found[split] = bytes((symbols[document >= 0] - 1).astype(np.uint8))
    assert sum(map(len, found.values())) == sum(map(len, sources))
    for source in sources:
        if len(source) > 2 * data.BLOCK_SIZE:
            # blocks are shuffled, so look for what lies in one block at least
            pieces = [source[i : i + 64] for i in range(0, len(source) - 64, 64)]
            shares = [sum(piece in text for piece in pieces) / len(pieces) for text in found.values()]
            assert max(shares) > 0.7, shares


@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_gang_learns_and_its_bits_per_byte_are_exact(
    spark: SparkSession, dataset: Dataset, config: Config
) -> None:
    task = Task(**config.train.model)
    losses: list[float] = []

    def keep(event: object) -> None:
        if isinstance(event, dict) and "train/loss" in event.get("values", {}):
            losses.append(event["values"]["train/loss"])

    result = sparktrain.train(dataset, task, config, spark=spark, on_event=keep)
    assert result.world_size == 2 and result.steps >= 30
    assert losses[-1] < 0.8 * losses[0] < 0.8 * math.log(257)

    run = Path(result.run_dir)
    assert not list(run.glob("predictions/*")), "of a block there is nothing to keep"
    model = task.build_model(dataset.features)
    saved = newest_valid(run / "checkpoints")
    assert saved is not None and saved.step == result.steps, "the only one, at the end of the only epoch"
    load_weights(saved, model)
    symbols, document = data_blocks(dataset, "test")
    with torch.inference_mode():
        outputs = model({"source": torch.tensor(symbols), "source_document": torch.tensor(document)})
    bits, num_bytes = outputs.double().sum(dim=0).tolist()
    assert num_bytes == np.count_nonzero(document >= 0)
    assert result.metrics["test/bits_per_byte"] == pytest.approx(bits / num_bytes / math.log(2), rel=1e-5)
    fitted = NGram.fit(*data_blocks(dataset, "train"))
    assert result.metrics["reference/bits_per_byte"] == pytest.approx(fitted.bits_per_byte(symbols, document))
    assert 1.5 < result.metrics["reference/bits_per_byte"] < 4.0


def data_blocks(dataset: Dataset, split: str) -> tuple[np.ndarray, np.ndarray]:
    table = open_dataset(dataset.path).to_arrow(split, columns=["source", "source_document"])
    symbols, document = (np.array(table[name].to_pylist()) for name in table.column_names)
    return symbols, document
