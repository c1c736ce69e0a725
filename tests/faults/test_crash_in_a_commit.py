"""R13: a crash at any file operation of a commit leaves the old state or the new one, never a mix."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sparktrain.errors import RankLost
from sparktrain.storage import AnyPath, RemotePath
from sparktrain.testing import run_ranks
from sparktrain.training.checkpoint import committed, newest_valid
from tests.fixtures.faulty_save import KILLED, save_and_crash
from tests.fixtures.saves import save, weights_of

pytestmark = [pytest.mark.ranks, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.parametrize("late", [False, True], ids=["before_or_half", "after"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_crash_of_a_rank_on_a_disk(tmp_path: Path, rank: int, late: bool) -> None:
    save(tmp_path / "before", 1)

    def begin(name: str) -> Path:
        return shutil.copytree(tmp_path / "before", tmp_path / name)

    found = crash_everywhere(begin, ranks=2, rank=rank, late=late)
    assert len(found) >= (20 if rank == 0 else 8), "the faults did not fire"


@pytest.mark.parametrize("late", [False, True], ids=["before_or_half", "after"])
def test_a_crash_in_a_store(store: RemotePath, late: bool) -> None:
    def begin(name: str) -> RemotePath:
        save(store / f"{late}-{name}", 1)
        return store / f"{late}-{name}"

    found = crash_everywhere(begin, ranks=1, rank=0, late=late)
    assert len(found) > 10, "the faults did not fire"


def crash_everywhere(begin: Callable[[str], AnyPath], ranks: int, rank: int, late: bool) -> list[int]:
    """Crash at each operation in turn, until none is left; returns the steps that a loader saw."""
    found: list[int] = []
    for operation in itertools.count(1):
        directory: AnyPath = begin(str(operation))
        try:
            done = run_ranks(ranks, save_and_crash, directory, 2, operation, late, rank)[rank]
        except RankLost as lost:
            assert f"exit code {KILLED}" in str(lost)
        else:
            assert done == operation - 1, "it was to crash at each operation"
            assert [path.name[:14] for path in committed(directory)] == ["step-000000002"]
            break
        saved = newest_valid(directory)
        assert saved is not None
        assert weights_of(saved) == {float(saved.step)}, "a mix of two saves"
        again = save(directory, 3, attempt=2)
        assert newest_valid(directory) == again, "what is left must not stop the next attempt"
        found.append(saved.step)
    if rank == 0:
        assert set(found) == {1, 2}
        assert found == sorted(found), "once the new state was committed, the old one came back"
    else:
        assert set(found) == {1}, "the other rank had not written"
    return found
