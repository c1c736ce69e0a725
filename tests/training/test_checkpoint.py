"""Checkpoints: what comes back is what was saved, and what is broken is noticed."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparktrain.errors import CheckpointInvalid
from sparktrain.storage import read_json
from sparktrain.training import checkpoint as checkpoints

FILES = (
    checkpoints.MODEL_FILE,
    checkpoints.OPTIMIZER_FILE,
    checkpoints.GENERATORS_FILE,
    checkpoints.MANIFEST_FILE,
)


def trained_model(value: float) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model whose weights are all `value`, after one update of its optimizer."""
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)
    model(torch.arange(12.0).view(4, 3)).square().sum().backward()
    optimizer.step()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    return model, optimizer


def save(directory: Path, step: int, attempt: int = 1, **state: Any) -> checkpoints.Checkpoint:
    """Commit a checkpoint whose weights are all `step`."""
    model, optimizer = trained_model(float(step))
    return checkpoints.save_checkpoint(
        directory / checkpoints.checkpoint_name(step, attempt),
        step=step,
        model=model,
        optimizer=optimizer,
        generators={"rank-0": torch.get_rng_state()},
        state={"stream": {"epoch": 1, "step": 13}, **state},
    )


def weights_of(saved: checkpoints.Checkpoint) -> set[float]:
    model, _ = trained_model(-1.0)
    checkpoints.load_weights(saved.path, model)
    return {value for parameter in model.parameters() for value in parameter.flatten().tolist()}


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_checkpoint_brings_back_weights_optimizer_generators_and_state(tmp_path: Path) -> None:
    model, optimizer = trained_model(0.5)
    generator = torch.get_rng_state()
    path = tmp_path / checkpoints.checkpoint_name(7, 1)
    state = {"best": {"metric": 0.1 + 0.2}}
    checkpoints.save_checkpoint(
        path, step=7, model=model, optimizer=optimizer, generators={"rank-0": generator}, state=state
    )
    saved = checkpoints.newest_valid(tmp_path)
    assert saved is not None
    assert (saved.path, saved.step, saved.state) == (path, 7, state)
    other, other_optimizer = trained_model(9.0)
    other_optimizer.param_groups[0]["lr"] = 3.0
    checkpoints.load_weights(path, other)
    checkpoints.load_optimizer(path, other, other_optimizer)
    assert_equal(other.state_dict(), model.state_dict())
    ours, theirs = other_optimizer.state_dict(), optimizer.state_dict()
    assert ours["param_groups"] == json.loads(json.dumps(theirs["param_groups"]))
    for number, slots in theirs["state"].items():
        assert_equal(ours["state"][number], slots)
    assert torch.equal(checkpoints.load_generators(path)["rank-0"], generator)


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_weights_that_share_memory_are_saved(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 4, bias=False))
    model[1].weight = model[0].weight
    path = tmp_path / checkpoints.checkpoint_name(1, 1)
    checkpoints.save_checkpoint(
        path, step=1, model=model, optimizer=torch.optim.AdamW(model.parameters()), generators={}, state={}
    )
    checkpoints.verify_checkpoint(path)
    expected = model[0].weight.detach().clone()
    nn.init.zeros_(model[0].weight)
    checkpoints.load_weights(path, model)
    assert torch.equal(model[0].weight, expected)
    assert model[0].weight is model[1].weight


def test_loading_runs_no_code_because_there_is_no_pickle(tmp_path: Path) -> None:
    saved = save(tmp_path, 1)
    assert names(saved.path) == sorted(FILES)
    for file in saved.path.iterdir():
        assert b"\x80\x04" not in file.read_bytes()[:2] and file.read_bytes()[:2] != b"PK"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("size", ["nothing", "half", "all but a byte"])
def test_a_truncated_file_makes_the_older_checkpoint_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, size: str
) -> None:
    old, new = save(tmp_path, 1), save(tmp_path, 2)
    content = (new.path / name).read_bytes()
    kept = {"nothing": 0, "half": len(content) // 2, "all but a byte": len(content) - 1}[size]
    (new.path / name).write_bytes(content[:kept])
    assert_older_one_is_used(tmp_path, old, new, caplog)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_makes_the_older_checkpoint_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    old, new = save(tmp_path, 1), save(tmp_path, 2)
    (new.path / name).unlink()
    if name == checkpoints.MANIFEST_FILE:
        assert checkpoints.newest_valid(tmp_path) == old  # it was never committed: nothing to warn of
    else:
        assert_older_one_is_used(tmp_path, old, new, caplog)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_makes_the_older_checkpoint_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    old, new = save(tmp_path, 1), save(tmp_path, 2)
    content = (new.path / name).read_bytes()
    for position in range(20):
        offset = position * (len(content) - 1) // 19
        damaged = bytearray(content)
        damaged[offset] ^= 1 << position % 8
        (new.path / name).write_bytes(damaged)
        assert_older_one_is_used(tmp_path, old, new, caplog)


def test_every_bit_of_the_manifest_counts(tmp_path: Path) -> None:
    saved = save(tmp_path, 2)
    content = (saved.path / checkpoints.MANIFEST_FILE).read_bytes()
    for offset in range(len(content)):
        damaged = bytearray(content)
        damaged[offset] ^= 1  # turns a digit into another digit
        (saved.path / checkpoints.MANIFEST_FILE).write_bytes(damaged)
        with pytest.raises(CheckpointInvalid):
            checkpoints.verify_checkpoint(saved.path)


def assert_older_one_is_used(
    directory: Path,
    old: checkpoints.Checkpoint,
    new: checkpoints.Checkpoint,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert checkpoints.newest_valid(directory) == old
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert str(new.path) in caplog.text
    assert "Trying the one before it" in caplog.text


def test_the_error_of_a_damaged_checkpoint_names_the_file(tmp_path: Path) -> None:
    saved = save(tmp_path, 2)
    (saved.path / checkpoints.OPTIMIZER_FILE).write_bytes(b"other")
    with pytest.raises(CheckpointInvalid, match=r"optimizer\.safetensors is not what was saved"):
        checkpoints.verify_checkpoint(saved.path)


def test_no_valid_checkpoint_is_none_and_not_an_error(tmp_path: Path) -> None:
    assert checkpoints.newest_valid(tmp_path / "never made") is None
    (save(tmp_path, 1).path / checkpoints.MODEL_FILE).write_bytes(b"")
    assert checkpoints.newest_valid(tmp_path) is None


class Crash(BaseException):
    """The machine is gone."""


@contextmanager
def crash_at(operation: int) -> Iterator[list[str]]:
    """Let file operations end at the `operation`-th: it and all after it fail, those of clean-ups too."""
    done: list[str] = []

    def wrap(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            done.append(name)
            if len(done) >= operation:
                raise Crash(name)
            return original(*args, **options)

        return wrapped

    def half_written(descriptor: int, *args: Any, **options: Any) -> Any:
        done.append("write")
        if len(done) < operation:
            return fdopen(descriptor, *args, **options)
        os.write(descriptor, b"half of it")
        raise Crash("write")

    fdopen = os.fdopen
    with pytest.MonkeyPatch.context() as patch:
        for name in ("open", "replace", "fsync", "chmod", "unlink", "mkdir", "rmdir"):
            patch.setattr(os, name, wrap(name, getattr(os, name)))
        patch.setattr(os, "fdopen", half_written)
        yield done


def test_a_crash_at_any_file_operation_leaves_the_old_or_the_new_state(tmp_path: Path) -> None:
    save(tmp_path / "before", 1)
    found: list[int] = []
    for operation in range(1, 1000):
        directory = shutil.copytree(tmp_path / "before", tmp_path / str(operation))
        try:
            with crash_at(operation) as done:
                new = save(directory, 2)
                checkpoints.delete_old(directory, keep=1, also_keep=None, attempt=1)
        except Crash:
            pass
        saved = checkpoints.newest_valid(directory)
        assert saved is not None
        assert weights_of(saved) == {float(saved.step)}, "a mix of two saves"
        for path in checkpoints.committed(directory):
            checkpoints.verify_checkpoint(path)  # half written or half deleted: not committed
        found.append(saved.step)
        if len(done) < operation:  # it went through
            assert names(directory) == [new.path.name]
            break
    assert len(found) > 25, "the faults did not fire"
    assert found == sorted(found), "once the new state was committed, the old one came back"
    assert set(found) == {1, 2}


def test_a_save_after_a_crash_is_the_newest(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(Crash), crash_at(12):
        save(tmp_path, 2)
    assert (tmp_path / checkpoints.checkpoint_name(2, 1)).exists()
    assert save(tmp_path, 2) == checkpoints.newest_valid(tmp_path)  # the same step of the same attempt
    assert save(tmp_path, 2, attempt=2) == checkpoints.newest_valid(tmp_path)


def test_the_newest_are_kept_and_the_best(tmp_path: Path) -> None:
    saved = [save(tmp_path, step) for step in (1, 2, 3, 4, 10)]
    checkpoints.delete_old(tmp_path, keep=2, also_keep=saved[1].path, attempt=1)
    assert [checkpoint.path.exists() for checkpoint in saved] == [False, True, False, True, True]


def test_what_was_not_committed_by_us_is_never_deleted(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    half = tmp_path / checkpoints.checkpoint_name(0, 1)
    foreign = [half, tmp_path / "step-notes", tmp_path / "notes"]
    for path in foreign:
        path.mkdir()
        (path / "mine.txt").write_text("mine")
    (tmp_path / "step-notes" / checkpoints.MANIFEST_FILE).write_text("{}")
    checkpoints.delete_old(tmp_path, keep=1, also_keep=None, attempt=1)
    assert names(tmp_path) == sorted([checkpoints.checkpoint_name(3, 1), *(path.name for path in foreign)])
    assert all((path / "mine.txt").exists() for path in foreign)


def test_a_broken_save_does_not_outlive_the_good_ones(tmp_path: Path) -> None:
    save(tmp_path, 20)
    broken = save(tmp_path, 30)
    (broken.path / checkpoints.MODEL_FILE).write_bytes(b"")
    went_on = save(tmp_path, 25, attempt=2)  # from step 20
    checkpoints.delete_old(tmp_path, keep=1, also_keep=None, attempt=2)
    assert checkpoints.newest_valid(tmp_path) == went_on


def test_a_leftover_rank_of_an_earlier_attempt_neither_overtakes_nor_deletes(tmp_path: Path) -> None:
    ours = [save(tmp_path, step, attempt=2) for step in (10, 20)]
    save(tmp_path, 990, attempt=1)
    save(tmp_path, 1000, attempt=1)
    checkpoints.delete_old(tmp_path, keep=1, also_keep=None, attempt=1)
    assert checkpoints.newest_valid(tmp_path) == ours[1]
    assert ours[0].path.exists()


def test_the_state_is_strict_json(tmp_path: Path) -> None:
    saved = save(tmp_path, 1, best=None)
    manifest = read_json(saved.path / checkpoints.MANIFEST_FILE)
    assert manifest["format"] == checkpoints.FORMAT
    with pytest.raises(ValueError, match="JSON"):
        save(tmp_path, 2, best=float("nan"))
