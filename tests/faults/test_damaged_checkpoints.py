"""R11, R12: a checkpoint whose files were cut off or changed is passed over for the one before, loudly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.distributed as dist

from sparktrain.errors import CheckpointInvalid
from sparktrain.storage import AnyPath, RemotePath
from sparktrain.testing import run_ranks
from sparktrain.training.checkpoint import (
    MANIFEST_FILE,
    Checkpoint,
    newest_valid,
    open_checkpoint,
    rank_file,
    verify_checkpoint,
)
from tests.fixtures.saves import assert_older_one_is_used, save, weights_of

FILES = (rank_file(0), rank_file(1), MANIFEST_FILE)

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(120)]


def save_together(directory: AnyPath) -> None:
    for step in (1, 2):
        save(directory, step, rank=dist.get_rank(), group=dist.group.WORLD)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("two-ranks")
    run_ranks(2, save_together, directory)
    return directory


@pytest.fixture(params=["disk", "store"])
def both(made: Path, request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Checkpoint, Checkpoint]:
    """Two checkpoints of two ranks, the older one first."""
    target: AnyPath = (
        tmp_path if request.param == "disk" else request.getfixturevalue("store") / tmp_path.name
    )
    found = []
    for source in sorted(made.glob("step-*")):
        for file in source.iterdir():
            copy = target / source.name / file.name
            if isinstance(copy, Path):
                copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(file.read_bytes())
        found.append(verify_checkpoint(target / source.name))
    old, new = found
    assert newest_valid(target) == new, "before the fault"
    return old, new


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_makes_the_older_checkpoint_count(
    both: tuple[Checkpoint, Checkpoint], caplog: pytest.LogCaptureFixture, name: str
) -> None:
    old, new = both
    content = (new.path / name).read_bytes()
    for kept in (0, len(content) // 2, len(content) - 1):
        (new.path / name).write_bytes(content[:kept])
        assert len((new.path / name).read_bytes()) == kept < len(content), "the fault did not fire"
        assert_older_one_is_used(old.path.parent, old, new, caplog)
    assert weights_of(old) == {1.0}


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_makes_the_older_checkpoint_count(
    both: tuple[Checkpoint, Checkpoint], caplog: pytest.LogCaptureFixture, name: str
) -> None:
    old, new = both
    (new.path / name).unlink()
    assert not (new.path / name).is_file(), "the fault did not fire"
    if name == MANIFEST_FILE:
        assert newest_valid(old.path.parent) == old  # it was never committed: nothing to warn of
    else:
        assert_older_one_is_used(old.path.parent, old, new, caplog)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_makes_the_older_checkpoint_count(
    both: tuple[Checkpoint, Checkpoint], caplog: pytest.LogCaptureFixture, name: str
) -> None:
    old, new = both
    if isinstance(new.path, RemotePath) and name != MANIFEST_FILE:
        pytest.skip("as on disk: the bytes that come are held against the same hash")
    content = (new.path / name).read_bytes()
    for position in range(20):
        offset = position * (len(content) - 1) // 19
        damaged = bytearray(content)
        damaged[offset] ^= 1 << position % 8
        (new.path / name).write_bytes(bytes(damaged))
        assert (new.path / name).read_bytes() != content, "the fault did not fire"
        assert_older_one_is_used(old.path.parent, old, new, caplog)


def test_what_is_damaged_after_it_was_chosen_is_not_loaded(both: tuple[Checkpoint, Checkpoint]) -> None:
    """The driver chooses a checkpoint, the ranks read it later."""
    _, new = both
    chosen = open_checkpoint(new.path)
    name = chosen.tensors["model/0.weight"]["chunks"][0]["file"]
    content = bytearray((new.path / name).read_bytes())
    content[-1] ^= 1
    (new.path / name).write_bytes(bytes(content))
    with pytest.raises(CheckpointInvalid, match=rf"{name} is not what was saved"):
        weights_of(chosen)
