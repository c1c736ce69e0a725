"""Packed columns: the same numbers, side by side, and no copy where a block has them so already."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sparktrain.dataset import Dataset
from sparktrain.errors import ConfigError, NameUnknown
from sparktrain.testing import write_tiny_dataset


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    home = tmp_path_factory.mktemp("packed")
    options: Any = {"num_numeric": 5, "num_categorical": 3, "vector_shape": (2,), "text": True}
    return {
        layout: write_tiny_dataset(home / layout, [[17, 3, 64], [1], [40]], layout=layout, **options)
        for layout in ("columns", "blocks")
    }


PACKS = [
    {"x": [f"numeric_{i}" for i in range(5)], "codes": [f"category_{i}" for i in range(3)]},
    {"x": ["numeric_1", "numeric_2"]},
    {"x": ["numeric_4", "numeric_0"], "y": ["numeric_0"]},
    {"ids": ["row_id"], "labels": ["label"]},
    {"x": ["label", "numeric_3"]},
]


@pytest.mark.parametrize("layout", ["columns", "blocks"])
@pytest.mark.parametrize("pack", PACKS)
@pytest.mark.parametrize("shuffle", [True, False])
def test_packed_columns_have_the_values_of_the_columns(
    layouts: dict[str, Dataset], layout: str, pack: dict[str, list[str]], shuffle: bool
) -> None:
    dataset = layouts[layout]
    options: Any = {"tail": "mask", "shuffle": shuffle}
    plain = list(dataset.stream("train", 16, **options))
    packed = list(dataset.stream("train", 16, pack=pack, **options))
    assert len(plain) == len(packed) == 8
    members = {name for names in pack.values() for name in names}
    for columns, batch in zip(plain, packed, strict=True):
        assert set(batch) == (set(columns) - members) | set(pack)
        for name, names in pack.items():
            assert torch.equal(batch[name], torch.stack([columns[n] for n in names], dim=1))
        for name in set(columns) - members:
            assert torch.equal(batch[name], columns[name])


def test_columns_that_a_block_has_side_by_side_are_a_view_of_it(layouts: dict[str, Dataset]) -> None:
    batch = next(iter(layouts["blocks"].stream("train", 16, pack=PACKS[0])))
    assert batch["x"].is_contiguous() and batch["codes"].is_contiguous()
    plain = layouts["blocks"].delivery(pack=PACKS[0])
    assert not any(stack.packed for stack in plain.stacks), "nothing has to be put side by side"
    assert any(stack.packed for stack in layouts["columns"].delivery(pack=PACKS[0]).stacks)


def test_columns_alone_are_contiguous_where_they_are_stored_alone(layouts: dict[str, Dataset]) -> None:
    batch = next(iter(layouts["columns"].stream("train", 16)))
    assert all(values.is_contiguous() for values in batch.values())


def test_packed_and_chosen_columns_go_together(layouts: dict[str, Dataset]) -> None:
    for dataset in layouts.values():
        stream = dataset.stream("train", 16, columns=["row_id"], pack={"x": ["numeric_0", "numeric_1"]})
        assert list(next(iter(stream))) == ["row_id", "x", "row_weight"]


@pytest.mark.parametrize(
    ("pack", "error", "said"),
    [
        (
            {"x": ["numeric_0", "category_0"]},
            ConfigError,
            "x of columns of float32, int32; pack those of one",
        ),
        ({"x": []}, ConfigError, r"pack has x=\[\]; give one or more columns"),
        ({"x": ["numeric_0", "numeric_0"]}, ConfigError, "each once"),
        ({"x": ["vector"]}, ConfigError, "vector .* no column of single numbers"),
        ({"x": ["text"]}, ConfigError, "text .* no column of single numbers"),
        ({"x": ["numeric_9"]}, NameUnknown, "no column `numeric_9`"),
        (
            {"label": ["numeric_0"]},
            ConfigError,
            "pack has label, which another column of the batch is called",
        ),
        ({"row_weight": ["numeric_0"]}, ConfigError, "choose another name"),
    ],
)
def test_what_can_not_be_packed_is_refused(
    layouts: dict[str, Dataset], pack: Any, error: type[Exception], said: str
) -> None:
    for dataset in layouts.values():
        with pytest.raises(error, match=said):
            dataset.stream("train", 16, pack=pack)


def test_a_pack_may_have_the_name_of_its_member(tmp_path: Path) -> None:
    dataset = write_tiny_dataset(tmp_path / "tiny", 50)
    assert next(iter(dataset.stream("train", 16, pack={"label": ["label"]})))["label"].shape == (16, 1)
