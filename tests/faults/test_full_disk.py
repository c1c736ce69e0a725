"""R14: a disk that is full while saving: it says so, the old checkpoint stays, all ranks act alike."""

from __future__ import annotations

import re
import resource
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sparktrain.config import TrainConfig
from sparktrain.dataset import Dataset
from sparktrain.errors import EXIT_INFRASTRUCTURE, CheckpointNotWritten, RankFailed
from sparktrain.storage import AnyPath, RemotePath
from sparktrain.testing import run_ranks, write_tiny_dataset
from sparktrain.training.checkpoint import newest_valid
from sparktrain.training.loop import Loop
from sparktrain.world import World
from tests.fixtures.tiny_task import TINY_CONFIG, TinyTask, train_rank, train_tiny

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(120)]

TASK = TinyTask(width=5000)  # a checkpoint of 300 kB
LIMIT_BYTES = 100_000


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """20 steps an epoch at 32 rows a step."""
    return write_tiny_dataset(tmp_path_factory.mktemp("full") / "tiny", 650, validation_rows=50)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system on which six checkpoints have room."""
    path = tmp_path / "small-disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2200k", "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True, timeout=10, check=False).returncode:
        pytest.skip("only root can mount a small disk; the test with a limit runs everywhere")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], timeout=10, check=True)


def config(**changes: Any) -> TrainConfig:
    return TINY_CONFIG.model_copy(update={"checkpoint_every_steps": 5, "keep_checkpoints": 10, **changes})


@pytest.mark.parametrize("in_background", [False, True], ids=["sync", "async"])
def test_a_full_disk_fails_the_run_and_the_old_checkpoints_stay(
    dataset: Dataset, small_disk: Path, in_background: bool
) -> None:
    with pytest.raises(RankFailed) as failed:
        train_tiny(TASK, dataset, config(async_checkpoints=in_background), small_disk, ranks=2)
    text = str(failed.value)
    assert f"The checkpoint {small_disk}/step-000000035-attempt-001 could not be written" in text
    found = re.search(
        rf"No space left on device \(([\d,]+) bytes were to be written, ([\d,]+) .*{small_disk}", text
    )
    assert found is not None
    needed, free = (int(number.replace(",", "")) for number in found.groups())
    assert 140_000 < needed < 170_000 and free < 2 * needed
    assert "storage.checkpoints" in text and "train.keep_checkpoints" in text
    assert failed.value.exit_code == EXIT_INFRASTRUCTURE
    saved = newest_valid(small_disk)
    assert saved is not None and saved.step == 30
    assert not (small_disk / "step-000000035-attempt-001").exists(), "half a checkpoint was left"


@pytest.mark.parametrize("in_background", [False, True], ids=["sync", "async"])
def test_a_full_disk_is_only_told_where_that_is_asked_for(
    dataset: Dataset, small_disk: Path, in_background: bool
) -> None:
    plan = config(on_checkpoint_error="warn", async_checkpoints=in_background)
    found = train_tiny(TASK, dataset, plan, small_disk, ranks=2)
    failed = [event for event in found[0]["events"] if event["kind"] == "checkpoint_failed"]
    assert [event["step"] for event in failed] == [35, 40], "the fault did not fire"
    assert "No space left on device" in failed[0]["problem"]
    assert [rank["steps"] for rank in found] == [40, 40]
    saved = newest_valid(small_disk)
    assert saved is not None and saved.step == 30
    assert {rank["best"] for rank in found} == {"step-000000020-attempt-001"}


def limited(*args: Any) -> dict[str, Any]:
    """Train, with files of rank 1 cut off at a size."""
    if World.from_environment().rank == 1:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, hard))
    return train_rank(*args)


def test_a_rank_that_can_not_write_fails_all_of_them_at_once(dataset: Dataset, tmp_path: Path) -> None:
    train_tiny(TASK, dataset, config(epochs=1), tmp_path, ranks=2)
    started = time.monotonic()
    with pytest.raises(RankFailed, match=r"rank 1: .*rank-001\.safetensors: File too large") as failed:
        run_ranks(2, limited, TASK, dataset.path, config(ranks=2), tmp_path, 2)
    assert time.monotonic() - started < 30
    assert "rank 0:" not in str(failed.value).partition("Full logs")[0].partition("could not be written")[2]
    saved = newest_valid(tmp_path)
    assert saved is not None and saved.step == 20
    assert not list(tmp_path.glob("*-attempt-002")), "rank 0 left its share"


def test_ranks_go_on_alike_when_one_can_not_write(dataset: Dataset, tmp_path: Path) -> None:
    train_tiny(TASK, dataset, config(epochs=1), tmp_path, ranks=2)
    plan = config(ranks=2, on_checkpoint_error="warn")
    found = run_ranks(2, limited, TASK, dataset.path, plan, tmp_path, 2)
    assert [rank["steps"] for rank in found] == [40, 40]
    told = [event["step"] for event in found[0]["events"] if event["kind"] == "checkpoint_failed"]
    assert told == [25, 30, 35, 40], "the fault did not fire"
    assert {rank["best"] for rank in found} == {"step-000000020-attempt-001"}
    saved = newest_valid(tmp_path)
    assert saved is not None and saved.step == 20


def test_a_run_without_any_checkpoint_fails_also_where_errors_are_only_told(
    dataset: Dataset, tmp_path: Path
) -> None:
    plan = config(ranks=2, on_checkpoint_error="warn", epochs=1)
    with pytest.raises(RankFailed, match="File too large"):
        run_ranks(2, limited, TASK, dataset.path, plan, tmp_path, 1)
    assert newest_valid(tmp_path) is None


def test_a_store_that_takes_nothing_is_told_like_a_full_disk(dataset: Dataset, store: RemotePath) -> None:
    elsewhere: AnyPath = replace(store, uri=store.uri.replace("s3://bucket", "s3://no-such-bucket"))
    events: list[dict[str, Any]] = []
    loop = Loop(
        TinyTask(), dataset, config(epochs=1), World(), store / "refused", lambda e: events.append({**e})
    )
    loop.saver.directory = elsewhere  # after the check at the start
    with pytest.raises(CheckpointNotWritten, match=r"no-such-bucket.*did not take"):
        loop.run(None)
    assert loop.step == 5
    assert not any(event["kind"].startswith("checkpoint") for event in events)
