"""R9: a rank of an earlier attempt can't damage, delete or overtake what a later attempt committed."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from sparktrain.errors import AttemptSuperseded
from sparktrain.storage import AnyPath, RemotePath
from sparktrain.testing import run_ranks, write_tiny_dataset
from sparktrain.training.checkpoint import claim, committed, delete_old, newest_valid, verify_checkpoint
from sparktrain.training.loop import Loop
from sparktrain.world import World
from tests.fixtures.faulty_save import save_and_wait
from tests.fixtures.saves import save, weights_of
from tests.fixtures.tiny_task import TINY_CONFIG, TinyTask

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(300)]


@pytest.mark.slow
def test_a_commit_that_was_interrupted_anywhere_and_goes_on_later_changes_nothing(tmp_path: Path) -> None:
    endings = []
    for operation in range(1, 100):
        ending = hang_and_go_on(tmp_path / str(operation), tmp_path, operation)
        if ending == "never waited":
            break
        endings.append(ending)
    assert len(endings) >= 20, "the faults did not fire"
    assert {"superseded", "committed"} <= set(endings)


@pytest.mark.slow
def test_a_commit_that_was_interrupted_in_a_store_and_goes_on_later_changes_nothing(
    store: RemotePath, tmp_path: Path
) -> None:
    endings = []
    for operation in range(1, 100):
        ending = hang_and_go_on(store / f"leftover-{operation}", tmp_path, operation)
        if ending == "never waited":
            break
        endings.append(ending)
    assert len(endings) >= 10, "the faults did not fire"
    assert {"superseded", "committed"} <= set(endings)


def hang_and_go_on(directory: AnyPath, signals: Path, operation: int) -> str:
    """Let attempt 1 hang in its second save, attempt 2 make three, and attempt 1 go on."""
    save(directory, 1)
    paused, go_on = signals / f"paused-{operation}", signals / f"go-on-{operation}"
    endings: list[str] = []
    rank = threading.Thread(
        target=lambda: endings.extend(run_ranks(1, save_and_wait, directory, 2, operation, (paused, go_on)))
    )
    rank.start()
    while rank.is_alive() and not paused.exists():
        time.sleep(0.005)
    claim(directory, 2)
    ours = [save(directory, step, attempt=2) for step in (2, 3, 4)]
    delete_old(directory, keep=2, also_keep=None, attempt=2)
    go_on.touch()
    rank.join(60)
    assert newest_valid(directory) == ours[-1]
    assert weights_of(ours[-1]) == {4.0}
    assert [verify_checkpoint(path).path for path in committed(directory)][:2] == [ours[2].path, ours[1].path]
    (ending,) = endings
    return ending


def test_the_loop_of_an_earlier_attempt_stops_at_its_next_save(tmp_path: Path) -> None:
    dataset = write_tiny_dataset(tmp_path / "tiny", 650)
    events: list[dict[str, Any]] = []

    def later_attempt_begins(event: Any) -> None:
        events.append(dict(event))
        if event["kind"] == "checkpoint":
            claim(tmp_path / "saves", 2)

    loop = Loop(TinyTask(), dataset, TINY_CONFIG, World(), tmp_path / "saves", later_attempt_begins)
    with pytest.raises(AttemptSuperseded, match="attempt 2 has begun"):
        loop.run(None)
    assert [event["step"] for event in events if event["kind"] == "checkpoint"] == [20]
    saved = newest_valid(tmp_path / "saves")
    assert saved is not None and saved.step == 20
