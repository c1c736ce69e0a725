"""Packing: every token is in exactly one block, in order, and a block knows where its texts begin."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyspark.sql import SparkSession

from sparktrain.config import PrepareConfig, SplitConfig
from sparktrain.dataset.digest import digest_of
from sparktrain.errors import FeaturesInvalid
from sparktrain.features import FittedTokens, Numeric, Target, Tokens
from sparktrain.preparation import prepare
from sparktrain.preparation.packing import Packer

texts = st.lists(st.none() | st.lists(st.integers(1, 99), max_size=9), max_size=12)


@given(st.lists(texts, max_size=4), st.integers(1, 5), st.integers(1, 3))
def test_blocks_hold_every_token_once_in_order(
    chunks: list[list[list[int] | None]], size: int, multiple: int
) -> None:
    feature = FittedTokens(name="t", column="t", input_type="longs", block_size=size, pad_id=-7, pack=True)
    packer = Packer(feature, multiple)
    found, first = [], 0
    for chunk in chunks:
        row_id = pa.array(range(first, first + len(chunk)), pa.int64())
        first += len(chunk)
        blocks = packer.add(pa.table({"row_id": row_id, "t": pa.array(chunk, pa.list_(pa.int64()))}))
        if blocks is not None:
            assert len(blocks["t"]) % multiple == 0
            found.append(blocks)
    if (last := packer.flush()) is not None:
        found.append(last)
    rows = [row or [] for chunk in chunks for row in chunk]
    wanted = [token for row in rows for token in row]
    owners = [number for number, row in enumerate(rows) for _ in row]
    if not wanted:
        assert not found
        return
    tokens = np.concatenate([blocks["t"] for blocks in found])
    documents = np.concatenate([blocks["t_document"] for blocks in found])
    assert tokens[documents >= 0].tolist() == wanted
    assert np.all(tokens[documents < 0] == -7) and np.count_nonzero(documents < 0) < size
    assert np.all(documents[:, 0] == 0)
    # where the number stays, the text stays; where it grows, another one begins
    firsts = np.concatenate([blocks["row_id"] for blocks in found])
    place = 0
    for block, first_row in zip(documents, firsts, strict=True):
        mine = owners[place : place + size]
        assert first_row == mine[0]
        changes = np.flatnonzero(np.diff(block[: len(mine)]) > 0).tolist()
        assert changes == np.flatnonzero(np.diff(mine) > 0).tolist()
        place += size


@pytest.mark.spark
def test_a_dataset_of_packed_texts(spark: SparkSession, tmp_path: Path) -> None:
    df = spark.range(300).selectExpr("id", "repeat(string(id), cast(id % 7 as int)) as text")
    config = PrepareConfig(num_parts=2, rows_per_row_group=8, split=SplitConfig(validation=0.2, test=0.0))
    feature = Tokens("tokens", column="text", tokenizer="bytes", block_size=16, pack=True)
    dataset = prepare(df, [feature], (), config, root=tmp_path, key=["id"])
    assert dataset.manifest.rows_kept == 300
    total = 0
    for split in ("train", "validation"):
        table = dataset.to_arrow(split)
        tokens = np.array(table["tokens"].to_pylist())
        documents = np.array(table["tokens_document"].to_pylist())
        total += int(np.count_nonzero(documents >= 0))
        assert tokens.shape == documents.shape == (table.num_rows, 16)
    assert total == sum(len(str(n)) * (n % 7) for n in range(300))
    batch = next(iter(dataset.stream("train", 8, num_lanes=2)))
    assert tuple(batch["tokens"].shape) == (8, 16)
    for part in dataset.manifest.splits["train"].parts:
        with pq.ParquetFile(dataset.path / part.path) as file:
            assert digest_of(file, dataset.manifest.columns, dataset.manifest.layout) == part.digest
    served = dataset.features.transform(pa.table({"text": ["ab", None]}))
    assert served["tokens"][0, :3].tolist() == [98, 99, 0]
    assert served["tokens_document"].tolist() == [[0, 0] + [-1] * 14, [-1] * 16]


@pytest.mark.spark
@pytest.mark.parametrize("beside", ["feature", "target"])
def test_packed_texts_stand_alone(spark: SparkSession, tmp_path: Path, beside: str) -> None:
    df = spark.range(10).selectExpr("id", "string(id) as text", "id % 2 as y", "double(id) as x")
    packed = Tokens("text", tokenizer="bytes", block_size=4, pack=True)
    features = [packed, Numeric("x")] if beside == "feature" else [packed]
    with pytest.raises(FeaturesInvalid, match="packs texts into blocks; leave out other features"):
        prepare(df, features, Target("y") if beside == "target" else (), root=tmp_path)
