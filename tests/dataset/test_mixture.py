"""Several datasets in one stream: in proportion, at any world size, from any step on, rows once an epoch."""

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparktrain.dataset import Dataset, Stream, mix, open_dataset
from sparktrain.dataset.mixture import share_lanes
from sparktrain.errors import ConfigError, DatasetsDiffer, NameUnknown, StreamStateMismatch
from sparktrain.testing import write_tiny_dataset
from sparktrain.world import World

SIZES = {"news": 300, "books": 700, "code": 100}
G = 32


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    home = tmp_path_factory.mktemp("mixture")
    return {
        name: write_tiny_dataset(home / name, rows, rows_per_row_group=24, num_parts=2, seed=number)
        for number, (name, rows) in enumerate(SIZES.items())
    }


def mixed(datasets: dict[str, Dataset], weights: Any = None, **options: Any) -> Stream:
    wanted = weights or {"news": 1, "books": 2, "code": 1}
    return mix(datasets, wanted, G, **{"num_lanes": 16, "steps_per_epoch": 40, **options})


def rows(batches: Iterator[dict[str, torch.Tensor]] | Stream) -> list[list[tuple[int, int]]]:
    """(dataset, row) of every batch."""
    return [
        list(zip(batch["row_source"].tolist(), batch["row_id"].tolist(), strict=True)) for batch in batches
    ]


def gang(datasets: dict[str, Dataset], size: int, **options: Any) -> list[list[tuple[int, int]]]:
    ranks = [rows(mixed(datasets, world=World(rank, size), **options)) for rank in range(size)]
    return [[row for part in parts for row in part] for parts in zip(*ranks, strict=True)]


def test_every_batch_has_each_dataset_in_proportion(datasets: dict[str, Dataset]) -> None:
    for batch in mixed(datasets):
        assert Counter(batch["row_source"].tolist()) == {0: G // 4, 1: G // 2, 2: G // 4}
        assert batch["row_source"].dtype == torch.int32


def test_values_are_those_of_the_dataset_that_the_batch_names(datasets: dict[str, Dataset]) -> None:
    stored = [dataset.to_arrow("train").to_pydict() for dataset in datasets.values()]
    place = [{row: i for i, row in enumerate(columns["row_id"])} for columns in stored]
    for batch in mixed(datasets):
        for i, (source, row) in enumerate(
            zip(batch["row_source"].tolist(), batch["row_id"].tolist(), strict=True)
        ):
            for name in ("numeric_0", "category_0", "label"):
                assert batch[name][i].item() == stored[source][name][place[source][row]]


SCHEDULE = [
    (0, {"news": 3, "books": 1}),
    (25, {"news": 1, "books": 2, "code": 1}),
    (57, {"books": 1}),
    (90, {"books": 2, "code": 2, "news": 1}),
]


@pytest.mark.parametrize("weights", [None, SCHEDULE])
def test_global_batches_are_the_same_at_any_world_size(datasets: dict[str, Dataset], weights: Any) -> None:
    alone = gang(datasets, 1, weights=weights)
    for size in (2, 3, 5, 6, 8, 12, 16):
        assert gang(datasets, size, weights=weights) == alone


def test_a_dataset_gives_each_row_once_in_each_of_its_epochs(datasets: dict[str, Dataset]) -> None:
    seen: dict[int, list[int]] = {0: [], 1: [], 2: []}
    stream = mixed(datasets)
    for _ in range(2):
        for batch in rows(stream):
            for source, row in batch:
                seen[source].append(row)
    for source, (name, size) in enumerate(SIZES.items()):
        per_step = len(seen[source]) // 80
        per_epoch = size // per_step * per_step
        epochs = [seen[source][i : i + per_epoch] for i in range(0, len(seen[source]), per_epoch)]
        assert len(epochs) >= 2 or name == "books"
        for epoch in epochs:
            assert len(set(epoch)) == len(epoch)
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs), "every epoch has another order"


def test_a_schedule_changes_the_shares_at_its_steps_of_the_training(datasets: dict[str, Dataset]) -> None:
    stream = mixed(datasets, SCHEDULE)
    shares = [Counter(source for source, _ in batch) for _ in range(3) for batch in rows(stream)]
    assert shares[:25] == [{0: 24, 1: 8}] * 25
    assert shares[25:57] == [{0: 8, 1: 16, 2: 8}] * 32
    assert shares[57:90] == [{1: 32}] * 33
    for share in shares[90:]:
        assert share[1] in (12, 14) and share[2] in (12, 14) and share[0] == 6


@pytest.mark.parametrize("weights", [None, SCHEDULE])
def test_a_resume_at_any_step_goes_on_as_if_nothing_had_happened(
    datasets: dict[str, Dataset], weights: Any
) -> None:
    whole = mixed(datasets, weights)
    straight = [batch for _ in range(3) for batch in rows(whole)]
    for at in (0, 1, 24, 25, 26, 39, 41, 56, 57, 58, 89, 95, 119):
        epoch, step = divmod(at, 40)
        second = mixed(datasets, weights)
        second.load_state_dict({**second.state_dict(), "epoch": epoch, "step": step})
        found: list[list[tuple[int, int]]] = []
        while second.epoch < 3:
            found += rows(second)
        assert found == straight[at:]


def test_a_state_of_another_mixture_is_refused(datasets: dict[str, Dataset]) -> None:
    state = mixed(datasets).state_dict()
    with pytest.raises(StreamStateMismatch, match="lanes: the state has"):
        mixed(datasets, {"news": 1, "books": 1}).load_state_dict(state)
    turned = dict(reversed(datasets.items()))
    with pytest.raises(StreamStateMismatch, match="datasets: the state has"):
        mixed(turned).load_state_dict(state)


def test_what_is_masked_is_named_by_its_dataset(datasets: dict[str, Dataset], tmp_path: Path) -> None:
    copies = {name: shutil.copytree(dataset.path, tmp_path / name) for name, dataset in datasets.items()}
    opened = {name: open_dataset(path) for name, path in copies.items()}
    for name in ("news", "books"):
        part = opened[name].manifest.splits["train"].parts[0]
        (copies[name] / part.path).unlink()
    stream = mixed(opened, on_bad_data="mask")
    lost = sum(int((batch["row_weight"] == 0).sum()) for _ in range(2) for batch in stream)
    assert lost > 0 and {where.partition(":")[0] for where in stream.masked} == {"news", "books"}


@pytest.mark.parametrize("weights", [None, SCHEDULE])
def test_explain_names_the_rows_of_a_batch(datasets: dict[str, Dataset], weights: Any) -> None:
    stream = mixed(datasets, weights)
    stored: dict[tuple[str, str, int, int], int] = {}
    for name, dataset in datasets.items():
        ids = iter(dataset.to_arrow("train")["row_id"].to_pylist())
        for part in dataset.manifest.splits["train"].parts:
            for group, count in enumerate(part.row_groups):
                stored |= {(name, part.path, group, row): next(ids) for row in range(count)}
    for _ in range(3):
        epoch = stream.epoch
        for step, batch in enumerate(rows(stream)):
            if step % 7:
                continue
            told = stream.explain(step, epoch).to_pylist()
            names = [stored[t["dataset"], t["part"], t["row_group"], t["row"]] for t in told]
            assert names == [row for _, row in batch]
            assert [list(SIZES).index(t["dataset"]) for t in told] == [source for source, _ in batch]


def test_rows_can_be_chosen_of_each_dataset(datasets: dict[str, Dataset]) -> None:
    some = mixed(datasets, where={"books": [("row_id", "<", 100)]})
    seen = {row for batch in rows(some) for source, row in batch if source == 1}
    assert seen == set(range(100))


def test_an_epoch_is_the_rows_of_all_unless_said_otherwise(datasets: dict[str, Dataset]) -> None:
    assert mixed(datasets, steps_per_epoch=None).steps_per_epoch == sum(SIZES.values()) // G


@given(weights=st.lists(st.floats(0, 100), min_size=1, max_size=8), num_lanes=st.integers(8, 100))
def test_lanes_follow_the_weights(weights: list[float], num_lanes: int) -> None:
    if sum(weights) <= 1e-6:
        return
    lanes = share_lanes(weights, num_lanes)
    assert len(lanes) == num_lanes
    small = sum(w > 0 and w / sum(weights) * num_lanes < 1 for w in weights)
    for number, weight in enumerate(weights):
        count, wanted = lanes.count(number), weight / sum(weights) * num_lanes
        assert (count > 0) == (weight > 0)
        assert abs(count - wanted) <= 1 + small


def test_lanes_of_a_dataset_are_spread(datasets: dict[str, Dataset]) -> None:
    lanes = share_lanes([1, 2, 1], 16)
    for first in range(0, 16, 4):
        assert Counter(lanes[first : first + 4]) == {0: 1, 1: 2, 2: 1}


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ([(5, {"news": 1})], r"the schedule's steps are \[5\]; begin with 0"),
        ([(0, {"news": 1}), (0, {"books": 1})], r"steps are \[0, 0\]"),
        ([], r"steps are \[\]"),
        ({"news": -1, "books": 2}, "weights from step 0 on are .* give numbers, one above 0"),
        ({"news": 0}, "give numbers, one above 0"),
        ({"news": float("nan")}, "give numbers"),
        ({"news": "1"}, "give numbers"),
        ({"news": 1e308, "books": 1e308}, "give numbers"),
        ([(0, {"news": 1}), (1.5, {"news": 1})], r"steps are \[0, 1.5\]"),
    ],
)
def test_weights_that_make_no_sense_are_refused(
    datasets: dict[str, Dataset], weights: Sequence[Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        mix(datasets, weights, G)


def test_what_can_not_be_mixed_is_refused(datasets: dict[str, Dataset], tmp_path: Path) -> None:
    with pytest.raises(NameUnknown, match=r"no dataset `new`.*Did you mean `news`"):
        mixed(datasets, {"new": 1})
    with pytest.raises(ConfigError, match="num_lanes is 2, fewer than the 3 datasets"):
        mixed(datasets, num_lanes=2)
    with pytest.raises(ConfigError, match="`code` has 100 rows in train, and is to give 256 to each step"):
        mix(datasets, {"code": 1}, 256)
    blocks = write_tiny_dataset(tmp_path / "blocks", 100, layout="blocks")
    with pytest.raises(DatasetsDiffer, match="columns or layout differ"):
        mix({"news": datasets["news"], "other": blocks}, {"news": 1}, G)
    other = Dataset(blocks.path, datasets["code"].manifest.model_copy(update={"features_sha256": "0" * 64}))
    with pytest.raises(DatasetsDiffer, match=r"fitted features differ.* with fitted="):
        mix({"news": datasets["news"], "other": other}, {"news": 1}, G)
