"""What Petastorm's reader promises without Petastorm: arithmetic, refusals, the face of a stream."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparktrain import config as configuration
from sparktrain.config import parse_config
from sparktrain.dataset import Dataset, open_dataset
from sparktrain.dataset.petastorm_reader import PetastormDataset, PetastormStream, _rebatch
from sparktrain.errors import ConfigError, NameUnknown, PetastormCannotSeek, StreamStateMismatch, TooFewRows
from sparktrain.gang.supervise import check_training
from sparktrain.storage import RemotePath
from sparktrain.testing import write_tiny_dataset
from sparktrain.world import World

UNEQUAL = [[17, 3, 64], [], [1], [64, 64, 40], [5] * 12]
SIZES = [rows for part in UNEQUAL for rows in part]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("data") / "tiny"
    return write_tiny_dataset(path, UNEQUAL, validation_rows=50, num_parts=2)


def stream(dataset: Dataset, rank: int = 0, size: int = 1, **changes: Any) -> PetastormStream:
    options: dict[str, Any] = {"seed": 0, "shuffle": True, "split": "train", "columns": ["row_id"]}
    options |= {"global_batch_size": 32, **changes}
    rows = dataset.num_rows(options["split"])
    return PetastormStream(dataset.path, dataset.manifest, num_rows=rows, world=World(rank, size), **options)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 11])
@pytest.mark.parametrize("global_batch_size", [11, 32, 64, 1000])
def test_all_ranks_count_the_steps_of_the_rank_with_the_most(
    dataset: Dataset, size: int, global_batch_size: int
) -> None:
    ranks = [stream(dataset, rank, size, global_batch_size=global_batch_size) for rank in range(size)]
    assert sum(rank.rows_per_step for rank in ranks) == global_batch_size
    needed = [-(-sum(SIZES[r::size]) // rank.rows_per_step) for r, rank in enumerate(ranks)]
    assert {rank.steps_per_epoch for rank in ranks} == {max(needed)}


@pytest.mark.parametrize("size", [1, 4, 32])
def test_row_groups_of_any_size_become_batches(size: int) -> None:
    def row_groups() -> Any:
        first = 0
        for rows in SIZES:
            numbers = np.arange(first, first + rows)
            yield {"a": numbers, "b": np.stack([numbers, -numbers], axis=1)}
            first += rows

    batches = list(_rebatch(row_groups(), size))
    assert {len(batch["a"]) for batch in batches[:-1]} == {size}
    assert 1 <= len(batches[-1]["a"]) <= size
    assert np.array_equal(np.concatenate([batch["a"] for batch in batches]), np.arange(sum(SIZES)))
    assert all(np.array_equal(batch["b"][:, 1], -batch["a"]) for batch in batches)


def test_it_has_all_that_training_asks_of_a_stream(dataset: Dataset) -> None:
    training = Path(configuration.__file__).parent / "training"
    text = "".join(file.read_text() for file in training.glob("*.py"))
    asked = set(re.findall(r"\bstream\.(?!stream\b)([a-z_]+)\b", text)) - {"Stream"}
    assert {"epoch", "step", "steps_per_epoch", "wait_seconds", "state_dict", "load_state_dict"} <= asked
    assert not [name for name in asked if not hasattr(stream(dataset), name)]


def test_a_rank_without_a_row_group_is_refused_with_the_way_out(dataset: Dataset) -> None:
    said = r"1 of 3 ranks would have no row of split `validation`: .* whole row groups; set train.ranks"
    with pytest.raises(ConfigError, match=said):
        stream(dataset, size=3, split="validation")
    with pytest.raises(ConfigError, match="global_batch_size is 2 for 3 ranks"):
        stream(dataset, size=3, global_batch_size=2)


def test_an_empty_split_has_too_few_rows(dataset: Dataset) -> None:
    with pytest.raises(TooFewRows, match="`test`"):
        stream(dataset, split="test")


def test_only_the_start_of_an_epoch_can_be_loaded(dataset: Dataset) -> None:
    later = stream(dataset, size=2)
    later.load_state_dict({**later.state_dict(), "epoch": 3})
    assert (later.epoch, later.step) == (3, 0)
    with pytest.raises(
        PetastormCannotSeek, match=r"step 5 of epoch 3: .* first row group.*data.reader=spark"
    ):
        later.load_state_dict({**later.state_dict(), "step": 5})
    with pytest.raises(StreamStateMismatch, match=r"seed: the state has 9, the stream 0"):
        later.load_state_dict({**later.state_dict(), "seed": 9})
    assert (later.epoch, later.step) == (3, 0)


def test_a_state_of_ours_is_not_taken_for_petastorms(dataset: Dataset) -> None:
    with pytest.raises(StreamStateMismatch, match="reader: the state has None, the stream 'petastorm'"):
        stream(dataset).load_state_dict(dataset.stream("train", 32).state_dict())
    with pytest.raises(StreamStateMismatch, match="num_lanes"):
        dataset.stream("train", 32).load_state_dict(stream(dataset).state_dict())


def test_names_and_paths_that_petastorm_cannot_take_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    columns = [c.model_copy(update={"name": "a-b"}) for c in dataset.manifest.columns[:1]]
    odd = dataset.manifest.model_copy(update={"columns": tuple(columns)})
    with pytest.raises(ConfigError, match="column `a-b`: Petastorm hands rows out as named tuples"):
        stream(Dataset(dataset.path, odd), columns=["a-b"])
    elsewhere = Dataset(tmp_path / "who?", dataset.manifest)
    with pytest.raises(ConfigError, match="can't be written as a URL"):
        stream(elsewhere)


@pytest.fixture
def working_petastorm(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if Petastorm were there: streams open nothing before they are read."""
    monkeypatch.setattr("sparktrain.dataset.petastorm_reader.petastorm_problem", lambda: None)


@pytest.mark.usefixtures("working_petastorm")
def test_options_that_change_rows_are_refused_and_those_of_speed_are_not(dataset: Dataset) -> None:
    opened = open_dataset(dataset.path, reader="petastorm")
    assert isinstance(opened, PetastormDataset)
    assert opened.stream("train", 32, num_lanes=4, num_threads=9, tail="drop").rows_per_step == 32
    with pytest.raises(ConfigError, match="Petastorm has no on_no_account"):
        opened.stream("train", 32, on_no_account=True)
    with pytest.raises(ConfigError, match="Petastorm has no where"):
        opened.stream("train", 32, where=[("row_id", "<", 9)], on_bad_data="fail")
    with pytest.raises(NameUnknown):
        opened.stream("tain", 32)


@pytest.mark.usefixtures("working_petastorm")
def test_a_dataset_in_an_object_store_is_refused(dataset: Dataset) -> None:
    remote = PetastormDataset(RemotePath("s3://bucket/flights"), dataset.manifest)
    with pytest.raises(ConfigError, match=r"s3://bucket/flights lies in an object store; copy the dataset"):
        remote.stream("train", 32)


@pytest.mark.usefixtures("working_petastorm")
def test_too_many_ranks_are_told_before_a_gang_starts(dataset: Dataset) -> None:
    from pipelines.flight_delays.model import Task

    tree = {"pipeline": "flight_delays", "train": {"ranks": 3, "global_batch_size": 30, "num_lanes": 1}}
    tree |= {"spark": {"master": "local[4]"}}
    config = parse_config(tree)
    asked = config.model_copy(update={"data": config.data.model_copy(update={"reader": "petastorm"})})
    with pytest.raises(ConfigError, match="1 of 3 ranks would have no row of split `validation`"):
        check_training(dataset, Task(), asked)


def test_without_petastorm_the_configuration_says_so(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", without_petastorm(configuration.importlib.util.find_spec))
    said = r"data.reader: petastorm given, which is not installed; .*sparktrain\[petastorm\]"
    with pytest.raises(ConfigError, match=said):
        parse_config({"pipeline": "flight_delays", "data": {"reader": "petastorm"}})
    with pytest.raises(ConfigError, match=said):
        open_dataset(dataset.path, reader="petastorm").stream("train", 32)


def without_petastorm(find_spec: Any) -> Any:
    return lambda name, *rest: None if name == "petastorm" else find_spec(name, *rest)


def test_a_pyarrow_that_is_too_new_is_told_with_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("importlib.metadata.version", lambda name: "25.0.1")
    problem = configuration.petastorm_problem()
    assert problem is not None and "works with pyarrow 14 and nothing newer; there is 25.0.1" in problem


def test_checkpoints_within_an_epoch_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = {"data": {"reader": "petastorm"}, "train": {"checkpoint_every_steps": 10}}
    with pytest.raises(ConfigError, match=r"checkpoint_every_steps: 10 given, and data\.reader=petastorm"):
        parse_config({"pipeline": "flight_delays", **tree})
