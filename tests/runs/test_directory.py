from __future__ import annotations

import stat
from pathlib import Path

import pytest

from sparktrain.errors import StorageUnwritable
from sparktrain.runs.directory import RunDirectory
from sparktrain.storage import commit_json, read_json


def started(root: Path, pipeline: str) -> RunDirectory:
    run = RunDirectory.create(root, pipeline)
    commit_json(run.spec_file, {})
    return run


def renamed(run: RunDirectory, time: str) -> RunDirectory:
    path = run.path.with_name(f"{run.name.split('-')[0]}-{time}-abcdef")
    return RunDirectory(run.path.rename(path))


def test_a_new_run_is_private_and_has_its_folders(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "flights")
    assert stat.S_IMODE(run.path.stat().st_mode) == 0o700
    assert run.path.parent == tmp_path / "runs"
    assert all(folder.is_dir() for folder in (run.events, run.checkpoints, run.predictions))
    assert run.path.is_absolute()


def test_runs_of_one_second_get_names_of_their_own(tmp_path: Path) -> None:
    assert len({RunDirectory.create(tmp_path, "flights").name for _ in range(20)}) == 20


def test_the_newest_unfinished_run_is_found(tmp_path: Path) -> None:
    older = renamed(started(tmp_path, "flights"), "20250101-000000")
    newer = renamed(started(tmp_path, "flights"), "20250102-000000")
    finished = renamed(started(tmp_path, "flights"), "20250103-000000")
    finished.write_result({"status": "finished"})
    failed = renamed(started(tmp_path, "flights"), "20241231-000000")
    failed.write_result({"status": "failed"})
    assert RunDirectory.newest_unfinished(tmp_path, "flights") == newer
    newer.write_result({"status": "finished"})
    older.write_result({"status": "finished"})
    assert RunDirectory.newest_unfinished(tmp_path, "flights") == failed


def test_a_run_without_a_spec_or_of_another_pipeline_is_not_resumed(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path, "flights")
    started(tmp_path, "flights_by_hour")
    assert RunDirectory.newest_unfinished(tmp_path, "flights") is None
    assert RunDirectory.newest_unfinished(tmp_path / "nowhere", "flights") is None


def test_attempts_count_on_from_the_highest(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "flights")
    assert run.next_attempt() == 1
    run.attempt(1).mkdir()
    run.attempt(12).mkdir()
    assert run.attempt(12).name == "attempt-012"
    assert run.next_attempt() == 13


def test_a_result_may_hold_a_metric_that_is_not_finite(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "flights")
    run.write_result({"status": "finished", "metrics": {"auroc": float("nan"), "loss": 0.5}})
    assert read_json(run.result_file)["metrics"] == {"auroc": None, "loss": 0.5}
    assert run.is_finished


def test_a_half_written_result_does_not_count_as_finished(tmp_path: Path) -> None:
    run = started(tmp_path, "flights")
    run.result_file.write_text('{"status": "fini')
    assert not run.is_finished


def test_a_root_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    root = tmp_path / "file"
    root.touch()
    with pytest.raises(StorageUnwritable, match=str(root)):
        RunDirectory.create(root, "flights")


def test_checkpoints_lie_in_the_run_or_in_a_folder_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = RunDirectory.create(tmp_path, "flights")
    assert run.checkpoints_in(None) == run.path / "checkpoints"
    assert run.checkpoints_in("saves") == tmp_path / "saves" / run.name, "ranks may have another folder"
    assert str(run.checkpoints_in("s3://bucket/saves?region=eu-west-1")) == (
        f"s3://bucket/saves/{run.name}?region=eu-west-1"
    )
