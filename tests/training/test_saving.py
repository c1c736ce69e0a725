"""Saving in the background: the same bytes, training goes on meanwhile, and no error is lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparktrain.dataset import Dataset
from sparktrain.errors import CheckpointNotWritten
from sparktrain.storage import write_once
from sparktrain.training import checkpoint_write
from sparktrain.training.checkpoint import committed, newest_valid, verify_checkpoint
from sparktrain.training.checkpoint_read import read_tensors
from sparktrain.training.loop import Loop
from sparktrain.training.saving import Saver
from sparktrain.world import World
from tests.fixtures.tiny_task import TINY_CONFIG, TinyTask, train_here, train_tiny

ASYNC = TINY_CONFIG.model_copy(update={"async_checkpoints": True, "checkpoint_every_steps": 5})


class Disk:
    """A disk that takes nothing while it is busy, or fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_free, self.is_full = threading.Event(), False
        self.is_free.set()
        self.writing = 0
        self.most_at_once = 0
        monkeypatch.setattr(checkpoint_write, "write_once", self.write)

    def write(self, path: Path, content: bytes) -> None:
        self.writing += 1
        self.most_at_once = max(self.most_at_once, self.writing)
        try:
            assert self.is_free.wait(30), "nobody made it free"
            if self.is_full:
                raise OSError(28, "No space left on device", str(path))
            write_once(path, content)
        finally:
            self.writing -= 1


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk(monkeypatch)
    yield disk
    disk.is_free.set()


def digests(directory: Path) -> dict[str, Any]:
    found = [verify_checkpoint(path) for path in committed(directory)]
    return {saved.path.name: (saved.files, saved.state) for saved in found}


def test_what_is_written_in_the_background_is_the_same_to_the_bit(dataset: Dataset, tmp_path: Path) -> None:
    plan = ASYNC.model_copy(update={"keep_checkpoints": 100})
    task = TinyTask(dropout=0.3)
    sync = train_here(task, dataset, plan.model_copy(update={"async_checkpoints": False}), tmp_path / "sync")
    found = train_here(task, dataset, plan, tmp_path / "async")
    assert len(digests(tmp_path / "sync")) == 8
    assert digests(tmp_path / "async") == digests(tmp_path / "sync")
    assert found["metrics"] == sync["metrics"]
    kinds = [[event["kind"] for event in run["events"]].count("checkpoint") for run in (sync, found)]
    assert kinds == [8, 8]


@pytest.mark.ranks
def test_ranks_write_the_same_in_the_background(dataset: Dataset, tmp_path: Path) -> None:
    plan = ASYNC.model_copy(update={"keep_checkpoints": 100})
    task = TinyTask(dropout=-1.0)  # batch norm, whose statistics differ between ranks until they agree
    for name, in_background in (("sync", False), ("async", True)):
        changed = plan.model_copy(update={"async_checkpoints": in_background})
        train_tiny(task, dataset, changed, tmp_path / name, ranks=2)
    assert digests(tmp_path / "async") == digests(tmp_path / "sync")
    assert len(digests(tmp_path / "sync")) == 8


def test_training_goes_on_while_the_disk_is_busy(dataset: Dataset, tmp_path: Path, disk: Disk) -> None:
    disk.is_free.clear()
    done: list[int] = []

    class Freeing(TinyTask):
        def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
            if outputs.requires_grad:
                done.append(len(list(committed(tmp_path))))
                if len(done) == 9:
                    disk.is_free.set()
            return super().loss(outputs, target)

    train_here(Freeing(), dataset, ASYNC, tmp_path)
    assert done[:9] == [0] * 9, "the save of step 5 was to be in flight until step 9"
    assert disk.most_at_once == 1
    saved = newest_valid(tmp_path)
    assert saved is not None and saved.step == 40


def test_what_is_saved_is_what_was_there_at_the_call(tmp_path: Path, disk: Disk) -> None:
    model = nn.Linear(3, 3)
    saver = Saver(tmp_path, ASYNC, World(), lambda event: None)
    disk.is_free.clear()
    before = {f"model/{name}": tensor.clone() for name, tensor in model.state_dict().items()}
    saver.save(1, {f"model/{name}": tensor for name, tensor in model.state_dict().items()}, {"best": None})
    with torch.no_grad():
        model.weight.fill_(0.0)
    disk.is_free.set()
    saver.wait()
    saved = newest_valid(tmp_path)
    assert saved is not None
    found = {name: torch.empty_like(tensor) for name, tensor in before.items()}
    read_tensors(saved, found)
    assert all(torch.equal(found[name], before[name]) for name in before)


@pytest.mark.parametrize(("full_from", "raised_at"), [(7, 10), (37, 40)], ids=["next_save", "end"])
def test_an_error_in_the_background_reaches_the_loop(
    dataset: Dataset, tmp_path: Path, disk: Disk, full_from: int, raised_at: int
) -> None:
    class Filling(TinyTask):
        def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
            if outputs.requires_grad and loop.step + 1 == full_from:
                loop.saver.wait()  # the save before this one is to be whole
                disk.is_full = True
            return super().loss(outputs, target)

    loop = Loop(Filling(), dataset, ASYNC, World(), tmp_path, lambda event: None)
    with pytest.raises(CheckpointNotWritten, match="No space left on device"):
        loop.run(None)
    expected_end = raised_at + 5 if raised_at < 40 else 40
    assert loop.step == expected_end
    saved = newest_valid(tmp_path)
    assert saved is not None and saved.step == raised_at - 5


def test_an_unsaved_best_does_not_count_as_the_best(dataset: Dataset, tmp_path: Path, disk: Disk) -> None:
    plan = ASYNC.model_copy(
        update={"on_checkpoint_error": "warn", "checkpoint_every_steps": None, "epochs": 3}
    )

    class Filling(TinyTask):
        def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
            if outputs.requires_grad and loop.step in (20, 40):
                loop.saver.wait()  # its outcome is to be the disk's of its own epoch
                disk.is_full = loop.step == 20  # for the second epoch's save, that is
            return super().loss(outputs, target)

    events: list[dict[str, Any]] = []
    loop = Loop(Filling(), dataset, plan, World(), tmp_path, lambda event: events.append({**event}))
    outcome = loop.run(None)
    told = [(event["kind"], event["step"]) for event in events if event["kind"].startswith("checkpoint")]
    assert told[0] == ("checkpoint", 20) and told[1][0] == "checkpoint_failed"
    assert outcome.best.name in {path.name for path in committed(tmp_path)}
    assert outcome.best.name != "step-000000040-attempt-001"
