"""Checkpoints: what comes back is what was saved, and what is broken is noticed."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from sparktrain.errors import EXIT_CONFIG, AttemptSuperseded, CheckpointInvalid, CheckpointOutdated
from sparktrain.storage import read_json, to_json
from sparktrain.testing import run_ranks
from sparktrain.training import checkpoint as checkpoints
from sparktrain.training.checkpoint_read import read_tensors
from sparktrain.training.checkpoint_state import (
    export_weights,
    load_weights,
    restore,
    settings_of,
    tensors_of,
)
from sparktrain.training.checkpoint_write import write_checkpoint
from tests.fixtures.saves import save, trained_model

FILES = (checkpoints.rank_file(0), checkpoints.MANIFEST_FILE)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_checkpoint_brings_back_weights_optimizer_generator_and_state(tmp_path: Path) -> None:
    model, optimizer = trained_model(0.5)
    generator = torch.get_rng_state()
    path = tmp_path / checkpoints.checkpoint_name(7, 1)
    state = {"best": {"metric": 0.1 + 0.2}, "optimizer": settings_of(model, {"all": optimizer})}
    write_checkpoint(path, step=7, tensors=tensors_of(model, {"all": optimizer}, generator, 0), state=state)
    saved = checkpoints.newest_valid(tmp_path)
    assert saved is not None
    assert (saved.path, saved.step, saved.state) == (path, 7, json.loads(json.dumps(state)))
    other, other_optimizer = trained_model(9.0)
    other_optimizer.param_groups[0]["lr"] = 3.0
    found = restore(saved, other, {"all": other_optimizer}, rank=0).generator
    assert found is not None and torch.equal(found, generator)
    assert_equal(other.state_dict(), model.state_dict())
    ours, theirs = other_optimizer.state_dict(), optimizer.state_dict()
    assert ours["param_groups"] == json.loads(json.dumps(theirs["param_groups"]))
    for number, slots in theirs["state"].items():
        assert_equal(ours["state"][number], slots)


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


class Named(nn.Module):
    """Two layers of one shape, registered in the order of their names, or in another."""

    def __init__(self, order: str) -> None:
        super().__init__()
        for name in order:
            self.add_module(name, nn.Linear(2, 2))


def test_the_optimizers_state_goes_by_name_and_not_by_order(tmp_path: Path) -> None:
    model = Named("ab")
    optimizer = torch.optim.AdamW(model.parameters())
    for number, parameter in enumerate(model.parameters(), start=1):
        parameter.grad = torch.full_like(parameter, float(number))
    optimizer.step()
    path = tmp_path / checkpoints.checkpoint_name(1, 1)
    state = {"optimizer": settings_of(model, {"all": optimizer})}
    write_checkpoint(
        path, step=1, tensors=tensors_of(model, {"all": optimizer}, torch.get_rng_state(), 0), state=state
    )
    other = Named("ba")
    other_optimizer = torch.optim.AdamW(other.parameters())
    restore(checkpoints.open_checkpoint(path), other, {"all": other_optimizer}, rank=None)
    for name, parameter in model.named_parameters():
        there = other_optimizer.state[other.get_parameter(name)]["exp_avg"]
        assert torch.equal(there, optimizer.state[parameter]["exp_avg"]), name
    with pytest.raises(CheckpointInvalid, match=r"the model has nothing that is called model/b\.bias"):
        restore(checkpoints.open_checkpoint(path), Named("a"), {"all": other_optimizer}, rank=None)
    with pytest.raises(CheckpointInvalid, match=r"it has no model/c\.weight; wanted is shape \[2, 2\]"):
        restore(checkpoints.open_checkpoint(path), Named("abc"), {"all": other_optimizer}, rank=None)


def test_weights_can_be_had_alone(tmp_path: Path) -> None:
    saved = save(tmp_path, 3)
    export_weights(saved, tmp_path / "weights.safetensors")
    model, _ = trained_model(-1.0)
    load_weights(saved, model)
    assert_equal(safetensors.torch.load_file(tmp_path / "weights.safetensors"), model.state_dict())


def test_weights_that_share_memory_are_saved(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 4, bias=False))
    model[1].weight = model[0].weight
    path = tmp_path / checkpoints.checkpoint_name(1, 1)
    tensors = tensors_of(model, {"all": torch.optim.AdamW(model.parameters())}, torch.get_rng_state(), 0)
    write_checkpoint(path, step=1, tensors=tensors, state={})
    expected = model[0].weight.detach().clone()
    nn.init.zeros_(model[0].weight)
    load_weights(checkpoints.verify_checkpoint(path), model)
    assert torch.equal(model[0].weight, expected)
    assert model[0].weight is model[1].weight


def test_loading_runs_no_code_because_there_is_no_pickle(tmp_path: Path) -> None:
    saved = save(tmp_path, 1)
    assert names(saved.path) == sorted(FILES)
    for file in saved.path.iterdir():
        assert b"\x80\x04" not in file.read_bytes()[:2] and file.read_bytes()[:2] != b"PK"


def test_the_error_of_a_damaged_checkpoint_names_the_file(tmp_path: Path) -> None:
    saved = save(tmp_path, 2)
    (saved.path / FILES[0]).write_bytes(b"other")
    with pytest.raises(CheckpointInvalid, match=r"rank-000\.safetensors is not what was saved"):
        checkpoints.verify_checkpoint(saved.path)


def test_no_valid_checkpoint_is_none_and_not_an_error(tmp_path: Path) -> None:
    assert checkpoints.newest_valid(tmp_path / "never made") is None
    (save(tmp_path, 1).path / FILES[0]).write_bytes(b"")
    assert checkpoints.newest_valid(tmp_path) is None


def test_the_newest_are_kept_and_the_best(tmp_path: Path) -> None:
    saved = [save(tmp_path, step) for step in (1, 2, 3, 4, 10)]
    checkpoints.delete_old(tmp_path, keep=2, also_keep=saved[1].path.name, attempt=1)
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
    (broken.path / FILES[0]).write_bytes(b"")
    went_on = save(tmp_path, 25, attempt=2)  # from step 20
    checkpoints.delete_old(tmp_path, keep=1, also_keep=None, attempt=2)
    assert checkpoints.newest_valid(tmp_path) == went_on


def test_a_leftover_rank_of_an_earlier_attempt_neither_commits_nor_deletes(tmp_path: Path) -> None:
    before = [save(tmp_path, step) for step in (5, 7)]
    ours = [save(tmp_path, step, attempt=2) for step in (10, 20)]
    with pytest.raises(AttemptSuperseded, match="Attempt 1 of this run is over: attempt 2 has begun"):
        save(tmp_path, 990)
    assert not (tmp_path / checkpoints.checkpoint_name(990, 1)).exists()
    checkpoints.delete_old(tmp_path, keep=1, also_keep=None, attempt=1)
    assert checkpoints.newest_valid(tmp_path) == ours[1]
    assert all(saved.path.exists() for saved in [*before, *ours])


def test_an_attempt_that_has_begun_keeps_what_it_may_go_on_from(tmp_path: Path) -> None:
    before = [save(tmp_path, step) for step in (5, 7)]
    checkpoints.claim(tmp_path, 2)
    checkpoints.delete_old(tmp_path, keep=1, also_keep=None, attempt=1)
    assert all(saved.path.exists() for saved in before)
    checkpoints.delete_old(tmp_path, keep=1, also_keep=None, attempt=2)
    assert [saved.path.exists() for saved in before] == [False, True]


def test_errors_survive_the_way_from_rank_to_rank() -> None:
    error = AttemptSuperseded("step-1", 1, 2)
    error.result = {"run_id": "r"}
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.result) == (AttemptSuperseded, str(error), {"run_id": "r"})


def test_the_state_is_strict_json(tmp_path: Path) -> None:
    saved = save(tmp_path, 1, best=None)
    manifest = read_json(saved.path / checkpoints.MANIFEST_FILE)
    assert manifest["format"] == checkpoints.FORMAT
    with pytest.raises(ValueError, match="JSON"):
        save(tmp_path, 2, best=float("nan"))


def test_a_checkpoint_of_the_old_format_is_refused_and_not_passed_over(tmp_path: Path) -> None:
    manifest: dict[str, Any] = {"format": "sparktrain.checkpoint/1", "step": 1, "state": {}, "files": {}}
    digest = hashlib.sha256(to_json(manifest).encode()).hexdigest()
    path = tmp_path / checkpoints.checkpoint_name(1, 1)
    path.mkdir()
    (path / checkpoints.MANIFEST_FILE).write_text(to_json({**manifest, "sha256": digest}))
    with pytest.raises(CheckpointOutdated, match=r"sparktrain\.checkpoint/1.*resume=false") as refused:
        checkpoints.newest_valid(tmp_path)
    assert refused.value.exit_code == EXIT_CONFIG


def test_a_manifest_that_names_files_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    saved = save(tmp_path, 1)
    for name in ("../mine.txt", "/etc/hosts", "rank-000.safetensors/../../mine.txt"):
        manifest = read_json(saved.path / checkpoints.MANIFEST_FILE)
        del manifest["sha256"]
        manifest["files"][name] = "0" * 64
        digest = hashlib.sha256(to_json(manifest).encode()).hexdigest()
        (saved.path / checkpoints.MANIFEST_FILE).write_text(to_json({**manifest, "sha256": digest}))
        with pytest.raises(CheckpointInvalid, match="which is none of a rank's"):
            checkpoints.open_checkpoint(saved.path)


@pytest.mark.ranks
@pytest.mark.timeout(60)
def test_each_rank_writes_a_share_and_any_number_of_ranks_reads_it_back(tmp_path: Path) -> None:
    run_ranks(2, save_shards, tmp_path)
    saved = checkpoints.newest_valid(tmp_path)
    assert saved is not None
    assert set(saved.files) == {checkpoints.rank_file(0), checkpoints.rank_file(1)}
    sizes = [(saved.path / file).stat().st_size for file in sorted(saved.files)]
    assert max(sizes) < 1.5 * min(sizes), "what both ranks hold was to be shared out"
    shards = safetensors.torch.load_file(saved.path / checkpoints.rank_file(1))
    assert shards["model/sharded[3:5,0:4]"].shape == (2, 4)
    for ranks in (1, 2, 3):
        for found in run_ranks(ranks, read_shards, saved):
            assert found == list(range(20))
    whole = torch.empty(5, 4)
    read_tensors(saved, {"model/sharded": whole})
    assert torch.equal(whole, torch.arange(20.0).view(5, 4))


def save_shards(directory: Path) -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    sharded = distribute_tensor(torch.arange(20.0).view(5, 4), mesh, [Shard(0)])
    copies = {f"model/copy-{number}": torch.full((1000,), float(number)) for number in range(8)}
    write_checkpoint(
        directory / checkpoints.checkpoint_name(1, 1),
        step=1,
        tensors={"model/sharded": sharded, **copies},
        state={},
        rank=dist.get_rank(),
        group=dist.group.WORLD,
    )


def read_shards(saved: checkpoints.Checkpoint) -> list[float]:
    """Read into shards along the other dimension."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    sharded = distribute_tensor(torch.zeros(5, 4), mesh, [Shard(1)])
    read_tensors(saved, {"model/sharded": sharded})
    assert isinstance(sharded, DTensor)
    found: list[float] = sharded.full_tensor().flatten().tolist()
    return found
