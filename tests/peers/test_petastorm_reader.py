"""Training through Petastorm: every row once, equal steps, our tensors, and nothing of ours to resume by."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from sparktrain.config import TrainConfig
from sparktrain.dataset import Dataset, open_dataset
from sparktrain.errors import DatasetInvalid, PetastormCannotSeek, StreamMoved
from sparktrain.testing import run_ranks, write_tiny_dataset
from sparktrain.training.checkpoint import newest_valid
from sparktrain.training.loop import Loop
from sparktrain.world import World
from tests.fixtures.petastorm import needs_petastorm
from tests.fixtures.temporary import temporary_files
from tests.fixtures.tiny_task import TINY_CONFIG, TinyTask, last_save

__all__ = ["temporary_files"]

pytestmark = [needs_petastorm, pytest.mark.timeout(120)]

ROOT = Path(__file__).resolve().parents[2]
UNEQUAL = [[17, 3, 64], [], [1], [64, 64, 40], [5] * 12]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("data") / "tiny set"
    write_tiny_dataset(path, UNEQUAL, validation_rows=50, test_rows=40, text=True)
    return open_dataset(path, reader="petastorm")


def epochs_of(dataset: Dataset, size: int, number: int = 1, **options: Any) -> list[Any]:
    """[epoch][rank][step]: batches."""
    streams = [dataset.stream("train", 32, world=World(rank, size), **options) for rank in range(size)]
    return [[list(stream) for stream in streams] for _ in range(number)]


def real_rows(batches: list[dict[str, torch.Tensor]]) -> list[int]:
    return list(chain.from_iterable(b["row_id"][b["row_weight"] > 0].tolist() for b in batches))


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("shuffle", [True, False])
def test_each_epoch_has_every_row_once_in_equal_steps(dataset: Dataset, size: int, shuffle: bool) -> None:
    everything = list(range(dataset.num_rows("train")))
    for ranks in epochs_of(dataset, size, number=2, shuffle=shuffle):
        assert len({len(batches) for batches in ranks}) == 1, "unequal steps hang a gang"
        assert sorted(chain.from_iterable(map(real_rows, ranks))) == everything
        for batches in ranks:
            assert len({len(batch["row_id"]) for batch in batches}) == 1
            assert set(torch.cat([batch["row_id"] for batch in batches]).tolist()) <= set(everything)
            assert set(torch.cat([batch["row_weight"] for batch in batches]).tolist()) <= {0.0, 1.0}


def test_unequal_shards_are_evened_out_by_padding(dataset: Dataset) -> None:
    [ranks] = epochs_of(dataset, 5)
    rows = [len(real_rows(batches)) for batches in ranks]
    assert max(rows) > 2 * min(rows), "the shards were to be unequal"
    assert any((batch["row_weight"] == 0).all() for batches in ranks for batch in batches)


@pytest.mark.parametrize("layout", ["columns", "blocks"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64", "uint8"])
def test_tensors_are_as_in_our_own_stream(tmp_path: Path, layout: Any, dtype: Any) -> None:
    shape = (2, 3)
    ours = write_tiny_dataset(
        tmp_path / "d", 100, layout=layout, vector_shape=shape, vector_dtype=dtype, weight=True, num_numeric=3
    )
    theirs = open_dataset(ours.path, reader="petastorm")
    [expected] = ours.stream("train", 100, num_lanes=1, shuffle=False)
    [found] = theirs.stream("train", 100, shuffle=False)
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert found[name].dtype == values.dtype, name
        assert torch.equal(found[name], values), name


def test_the_order_depends_on_seed_and_epoch_alone(dataset: Dataset) -> None:
    (first, second), (again, _) = epochs_of(dataset, 2, number=2), epochs_of(dataset, 2, number=2)
    [other] = epochs_of(dataset, 2, seed=1)
    rows, after, same, else_ = ([real_rows(b) for b in ranks] for ranks in (first, second, again, other))
    assert rows == same
    assert rows != after and rows != else_
    assert [sorted(b) for b in rows] == [sorted(b) for b in after], "a rank keeps its row groups"


def test_an_epoch_is_begun_at_its_first_row_or_not_at_all(dataset: Dataset) -> None:
    stream = dataset.stream("train", 32)
    iteration = iter(stream)
    next(iteration)
    with pytest.raises(PetastormCannotSeek, match="step 1 of epoch 0"):
        next(iter(stream))
    with pytest.raises(StreamMoved):
        next(iteration)
    again = dataset.stream("train", 32)
    list(again)
    state = again.state_dict()
    expected = real_rows(list(again))
    later = dataset.stream("train", 32)
    later.load_state_dict(state)
    assert real_rows(list(later)) == expected


def test_no_thread_outlives_an_iteration(dataset: Dataset) -> None:
    before = set(threading.enumerate())
    iteration = iter(dataset.stream("train", 8))
    next(iteration)
    assert set(threading.enumerate()) - before, "Petastorm was to read ahead in threads"
    iteration.close()  # type: ignore[attr-defined]
    assert set(threading.enumerate()) <= before


def test_a_damaged_part_ends_the_iteration_with_the_datasets_name(tmp_path: Path) -> None:
    path = write_tiny_dataset(tmp_path / "d", [[100, 100], [100]]).path
    part = min((path / "train").iterdir())
    content = bytearray(part.read_bytes())
    content[10:300] = bytes(290)
    part.write_bytes(content)
    with pytest.raises(DatasetInvalid, match=r"Petastorm can't read split `train`"):
        list(open_dataset(path, reader="petastorm").stream("train", 10))


def test_rows_that_the_manifest_does_not_know_end_the_epoch(tmp_path: Path) -> None:
    path = write_tiny_dataset(tmp_path / "d", [[10], [20]]).path
    first, second = sorted((path / "train").iterdir())
    second.write_bytes(first.read_bytes())
    with pytest.raises(DatasetInvalid, match="rank 0 20 rows of split `train`, the manifest says 30"):
        list(open_dataset(path, reader="petastorm").stream("train", 10))


def test_a_pickle_among_the_parts_is_never_read(dataset: Dataset, tmp_path: Path) -> None:
    """Petastorm unpickles the schema of a directory that has one; ours are read file by file."""
    import pyarrow.parquet as pq
    from petastorm.etl.dataset_metadata import UNISCHEMA_KEY

    path = write_tiny_dataset(tmp_path / "d", 50).path
    schema = pq.read_schema(min((path / "train").iterdir()))
    evil = b"cos\nmkdir\n(S'%s'\ntR." % str(tmp_path / "was_run").encode()
    pq.write_metadata(schema.with_metadata({UNISCHEMA_KEY: evil}), path / "train" / "_common_metadata")
    assert len(real_rows(list(open_dataset(path, reader="petastorm").stream("train", 10)))) == 50
    assert not (tmp_path / "was_run").exists()


def train_rank(dataset: Path, config: TrainConfig, directory: Path, attempt: int) -> dict[str, Any]:
    world = replace(World.from_environment(), attempt=attempt)
    opened = open_dataset(dataset, reader="petastorm")
    events: list[dict[str, Any]] = []
    loop = Loop(
        TinyTask(dropout=0.3), opened, config, world, directory, lambda event: events.append({**event})
    )
    ledger: list[list[int]] = []  # by step: rows that were trained on, without padding

    def note(model: torch.nn.Module, inputs: Any) -> None:
        if model.training:
            ledger.append(real_rows([inputs[0]]))

    loop.model.register_forward_pre_hook(note)
    outcome = loop.run(newest_valid(directory))
    return {"steps": outcome.steps, "metrics": outcome.metrics, "events": events, "ledger": ledger}


@pytest.mark.ranks
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_training_sees_every_row_once_an_epoch(dataset: Dataset, tmp_path: Path, ranks: int) -> None:
    config = TINY_CONFIG.model_copy(update={"ranks": ranks, "epochs": 8})
    found = run_ranks(ranks, train_rank, dataset.path, config, tmp_path, 1)
    steps = dataset.stream("train", 32, world=World(size=ranks)).steps_per_epoch
    assert [len(rank["ledger"]) for rank in found] == [8 * steps] * ranks
    for first in range(0, 8 * steps, steps):
        rows = [row for rank in found for step in rank["ledger"][first : first + steps] for row in step]
        assert sorted(rows) == list(range(dataset.num_rows("train")))
    assert found[0]["metrics"] == found[-1]["metrics"]
    assert found[0]["metrics"]["test/auroc"] > 0.8, "it was to learn"


@pytest.mark.ranks
def test_a_logged_loss_is_that_of_rows_and_not_of_padding(tmp_path: Path) -> None:
    path = write_tiny_dataset(tmp_path / "d", [[640], [16]]).path
    config = TINY_CONFIG.model_copy(update={"ranks": 2, "epochs": 1, "learning_rate": 1e-9})
    found = run_ranks(2, train_rank, path, config, tmp_path, 1)
    losses = [e["values"]["train/loss"] for e in found[0]["events"] if "train/loss" in e.get("values", {})]
    assert len(losses) == 4
    # Nothing was learnt, so all steps have about the same loss, also those where one rank is all padding.
    assert max(losses) < 1.2 * min(losses), losses


@pytest.mark.ranks
def test_a_training_goes_on_from_an_epochs_end_bit_by_bit(dataset: Dataset, tmp_path: Path) -> None:
    config = TINY_CONFIG.model_copy(update={"ranks": 2, "epochs": 2, "warmup_fraction": 0.0})
    for directory in ("straight", "resumed"):
        (tmp_path / directory).mkdir()
    run_ranks(2, train_rank, dataset.path, config, tmp_path / "straight", 1)
    run_ranks(2, stop_after_first_epoch, dataset.path, config, tmp_path / "resumed")
    assert last_save(tmp_path / "resumed")["stream"]["epoch"] == 1
    run_ranks(2, train_rank, dataset.path, config, tmp_path / "resumed", 2)
    assert last_save(tmp_path / "resumed") == last_save(tmp_path / "straight")


def stop_after_first_epoch(dataset: Path, config: TrainConfig, directory: Path) -> None:
    world = World.from_environment()
    opened = open_dataset(dataset, reader="petastorm")
    loop = Loop(TinyTask(dropout=0.3), opened, config, world, directory, lambda event: None)
    loop._train_epoch()


@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_whole_job_trains_through_petastorm(tmp_path: Path) -> None:
    options = ["prepare.source.fraction=0.03", "train.epochs=2", "train.global_batch_size=512"]
    options += ["data.reader=petastorm", f"storage.root={tmp_path / 'out'}"]
    done = subprocess.run(
        [sys.executable, "-m", "sparktrain.cli", "run", "conf/flight_delays.yaml", *options, "--json"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    saved = newest_valid(Path(result["run_dir"]) / "checkpoints")
    assert saved is not None
    assert saved.state["stream"]["reader"] == "petastorm"
    assert result["metrics"]["test/auroc"] > 0.55
