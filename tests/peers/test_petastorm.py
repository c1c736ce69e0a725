"""Petastorm reads our datasets: where it is in use, a training of another framework can start from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sparktrain.dataset import Dataset
from sparktrain.testing import write_tiny_dataset
from tests.fixtures.petastorm import needs_petastorm

pytestmark = needs_petastorm

SHAPE = (2, 3)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("peers") / "tiny"
    return write_tiny_dataset(path, [[64, 3], [100]], validation_rows=10, vector_shape=SHAPE, text=True)


def url_of(directory: Path) -> str:
    return directory.resolve().as_uri()


def test_every_row_and_column_is_read_with_its_values(dataset: Dataset) -> None:
    from petastorm import make_batch_reader

    # one thread, so that row groups come in order
    url = url_of(dataset.path / "train")
    with make_batch_reader(url, num_epochs=1, reader_pool_type="dummy", shuffle_row_groups=False) as reader:
        batches = [batch._asdict() for batch in reader]
    assert [len(batch["row_id"]) for batch in batches] == [64, 3, 100]
    ours = dataset.to_arrow("train")
    assert sorted(batches[0]) == sorted(ours.column_names)
    for name in ours.column_names:
        theirs = np.concatenate([batch[name] for batch in batches])
        wanted = ours[name].combine_chunks()
        if name == "vector":  # a value of a shape is stored as its bytes
            theirs, wanted = np.frombuffer(b"".join(theirs), "<f4"), wanted.flatten()
        expected = wanted.to_numpy(zero_copy_only=False)
        np.testing.assert_array_equal(theirs, expected, err_msg=name)
        assert name == "text" or theirs.dtype == expected.dtype, name


def test_its_torch_loader_gives_the_tensors_of_a_split(dataset: Dataset) -> None:
    from petastorm import make_batch_reader
    from petastorm.pytorch import BatchedDataLoader

    columns = ["row_id", "numeric_0", "category_0", "label"]
    url = url_of(dataset.path / "validation")
    with make_batch_reader(url, schema_fields=columns, num_epochs=1, reader_pool_type="dummy") as reader:
        batches = list(BatchedDataLoader(reader, batch_size=4))
    ours = dataset.to_arrow("validation", columns)
    theirs = {name: torch.cat([batch[name] for batch in batches]) for name in columns}
    order = torch.argsort(theirs["row_id"])
    for name in columns:
        assert torch.equal(theirs[name][order], torch.from_numpy(ours[name].to_numpy())), name


def test_two_shards_read_every_row_once(dataset: Dataset) -> None:
    from petastorm import make_batch_reader

    rows: list[int] = []
    for shard in range(2):
        with make_batch_reader(
            url_of(dataset.path / "train"), num_epochs=1, cur_shard=shard, shard_count=2
        ) as reader:
            rows += [row for batch in reader for row in batch.row_id]
    assert sorted(rows) == dataset.to_arrow("train", ["row_id"])["row_id"].to_pylist()
