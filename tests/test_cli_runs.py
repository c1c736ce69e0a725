"""`sparktrain runs`: from run directories alone, in this process, without Spark, torch or MLflow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from sparktrain.cli import app
from sparktrain.config import Config
from sparktrain.errors import EXIT_CONFIG, ConfigError, DatasetInvalid, ResumeRefused, RunUnknown
from sparktrain.gang.supervise import _run_to_resume
from sparktrain.runs.directory import RunDirectory
from sparktrain.runs.record import RunRecord, best_of, mark_killed
from sparktrain.stages import newest_dataset
from sparktrain.storage import commit_json, read_json

Making = Callable[..., RunDirectory]


@pytest.fixture
def make(tmp_path: Path) -> Making:
    """Make the directory of a run that began at some day of 2025, as training leaves it behind."""

    def run(
        day: int,
        status: str | None = "finished",
        pipeline: str = "flights",
        attempts: int = 1,
        **settings: Any,
    ) -> RunDirectory:
        made = RunDirectory.create(tmp_path, pipeline)
        made = RunDirectory(
            made.path.rename(made.path.with_name(f"{pipeline}-202501{day:02d}-101500-abcde{day}"))
        )
        tree = Config(pipeline=pipeline, train=settings.pop("train", {})).model_dump(mode="json")
        commit_json(made.spec_file, {"dataset": "0" * 32, **tree})
        for number in range(1, attempts + 1):
            made.attempt(number).mkdir()
        if status is not None:
            metrics = settings.get(
                "metrics", {"validation/auroc": 0.7 + day / 100, "test/loss": day / 10, "new": 1.0}
            )
            result = {"status": status, "steps": 100 * day, "metrics": metrics, "world_size": 2}
            model = f"models:/flights/{day}" if status == "finished" else None
            made.write_result({**result, "model_uri": model, "seconds": {"train": 3599.0, "publish": 2.0}})
        return made

    return run


def command(root: Path, *arguments: str, columns: int = 160) -> Result:
    env = {"COLUMNS": str(columns), "TERM": "dumb"}
    return CliRunner(env=env).invoke(app, ["runs", *arguments, "--root", str(root)])


def answer(root: Path, *arguments: str) -> dict[str, Any]:
    ended = command(root, *arguments, "--json")
    assert ended.exit_code == 0, ended.output
    return json.loads(ended.stdout)


def test_runs_are_listed_with_the_newest_first(make: Making, tmp_path: Path) -> None:
    names = [make(1).name, make(3, "failed").name, make(2, pipeline="digits").name]
    told = command(tmp_path, "list")
    lines = told.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [names[1], names[2], names[0]]
    for word in ("finished", "1 h 00 min", "100", "auroc 0.71", "version 1"):
        assert word in lines[3]
    found = answer(tmp_path, "list", "--pipeline", "flights", "--status", "finished")["runs"]
    assert [run["run"] for run in found] == [names[0]]
    assert found[0]["started"] == "2025-01-01T10:15:00+00:00" and found[0]["model_uri"] == "models:/flights/1"
    assert "2 older ones: --limit 3" in command(tmp_path, "list", "--limit", "1").stdout


@pytest.mark.parametrize(
    ("columns", "words", "left_out"),
    [
        (160, ["finished", "1 h 00 min", "100", "auroc 0.71", "version 1"], None),
        (80, ["finished", "100", "auroc 0.71", "version 1"], "took"),
        (66, ["finished", "auroc 0.71"], "took, steps, model"),
        (48, ["finished"], "took, steps, model, best"),
    ],
)
def test_in_a_narrow_terminal_columns_are_left_out_and_no_name_is_cut(
    make: Making, tmp_path: Path, columns: int, words: list[str], left_out: str | None
) -> None:
    name = make(1, pipeline="flight_delays").name
    first, *others = command(tmp_path, "list", columns=columns).stdout.splitlines()[1:]
    assert len(first) <= columns and first.split() == [name, *" ".join(words).split()]
    assert others == ([f"no room for: {left_out}"] if left_out else [])


def test_a_name_that_is_wider_than_the_terminal_is_folded(make: Making, tmp_path: Path) -> None:
    name = make(1, pipeline="a_pipeline_with_quite_a_name_for_an_example").name
    lines = command(tmp_path, "list", columns=40).stdout.splitlines()
    assert name in "".join(line.removesuffix("finished").strip() for line in lines)
    assert "…" not in "".join(lines)


def test_no_run_is_no_error(tmp_path: Path) -> None:
    assert f"no run under {tmp_path}" in command(tmp_path, "list").stdout
    assert answer(tmp_path, "list") == {"status": "finished", "runs": []}


def test_a_run_that_is_led_is_running_and_one_whose_driver_is_gone_is_stale(
    make: Making, tmp_path: Path
) -> None:
    led, gone = make(1, None), make(2, None)
    with gone.only_reporter():
        pass
    with led.only_reporter() as alone:
        assert alone
        states = {run["run"]: run["status"] for run in answer(tmp_path, "list")["runs"]}
    assert states == {led.name: "running", gone.name: "stale"}


def test_a_run_of_another_host_is_stale_after_ten_silent_minutes(make: Making, tmp_path: Path) -> None:
    run = make(1, None)
    (run.path / "reporter.lock").write_text("another-host")
    assert run.is_led
    before = time.time() - 3600
    for path in (run.path, run.events, *run.path.glob("*.json")):
        os.utime(path, (before, before))
    assert not run.is_led
    assert answer(tmp_path, "stale")["stale"] == [run.name]


def test_a_run_that_was_killed_within_the_lock_is_stale(make: Making, tmp_path: Path) -> None:
    run = make(1, None)
    program = (
        "import os, sys, signal; from pathlib import Path\n"
        "from sparktrain.runs.directory import RunDirectory\n"
        "with RunDirectory(Path(sys.argv[1])).only_reporter() as alone:\n"
        "    assert alone; os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(run.path)], timeout=60, check=False)
    assert done.returncode == -9
    told = command(tmp_path, "stale", "--mark")
    assert run.name in told.stdout
    result = read_json(run.result_file)
    assert result["status"] == "killed" and result["attempts"] == 1
    assert result["dataset"]["fingerprint"] == "0" * 32
    assert answer(tmp_path, "stale")["stale"] == []
    assert RunDirectory.newest_unfinished(tmp_path, "flights") == run, "it can still be resumed"


def test_steps_of_a_run_without_a_result_come_from_its_events(make: Making, tmp_path: Path) -> None:
    run = make(1, None)
    lines = [{"kind": "progress", "step": 7, "num_steps": 9}, {"kind": "metrics", "step": 8, "values": {}}]
    (run.events / "a001-r000-000000.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert answer(tmp_path, "show", run.name)["steps"] == 8


def test_one_run_is_shown_whole(make: Making, tmp_path: Path) -> None:
    run = make(1, "failed", attempts=2, train={"epochs": 9, "model": {"dropout": 0.5}})
    commit_json(run.failure_file(1), {"error": "RankLost", "text": "rank 1 was lost\nmore", "time": 0.0})
    run.report_file.write_text("<html>")
    commit_json(run.mlflow_file, {"run_id": "77", "tracking_uri": "http://mlflow:5000", "experiment": "x"})
    told = answer(tmp_path, "show", "flights-2025")
    assert told["run"] == run.name
    assert told["settings"] == {"train.epochs": 9, "train.model.dropout": 0.5}
    assert told["failures"] == {"1": "rank 1 was lost"}
    assert told["places"]["report"] == str(run.report_file)
    assert told["places"]["mlflow"] == "http://mlflow:5000 run 77"
    text = command(tmp_path, "show", run.name).stdout
    for said in (
        "train.epochs  9",
        "rank 1 was lost",
        "test/loss  0.1",
        f"sparktrain runs resume {run.name}",
    ):
        assert said in text


def test_runs_are_compared_by_what_differs(make: Making, tmp_path: Path) -> None:
    first, second = make(1, train={"epochs": 9}), make(2, train={"learning_rate": 0.1})
    told = answer(tmp_path, "compare", first.name, second.name)
    assert told["settings"] == {"train.epochs": [9, 4], "train.learning_rate": [0.002, 0.1]}
    assert told["metrics"]["validation/auroc"] == [0.71, 0.72]
    assert told["better"] == {"new": None, "test/loss": first.name, "validation/auroc": second.name}
    text = command(tmp_path, "compare", first.name, second.name).stdout
    assert "★ 0.72" in text and "★ 0.1" in text and "★ 1" not in text
    elsewhere = make(3, pipeline="houses")
    told = answer(tmp_path, "compare", first.name, elsewhere.name)
    assert told["metrics"]["test/loss"] == [0.1, 0.3] and set(told["better"].values()) == {None}
    assert "★" not in command(tmp_path, "compare", first.name, elsewhere.name).stdout
    ended = command(tmp_path, "compare", first.name)
    assert ended.exit_code == EXIT_CONFIG and "two runs" in ended.stderr


@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [
        ("validation/loss", [0.2, 0.1, None], 1),
        ("test/rmse", [3.0, 2.0], 1),
        ("test/r2", [-0.5, 0.5], 1),
        ("test/auroc", [0.5, 0.5], None),
        ("test/auroc", [0.5, None], None),
        ("test/its_own", [1.0, 2.0], None),
        ("test/closs", [1.0, 2.0], None),
    ],
)
def test_a_metric_is_better_where_everybody_knows_which_way(
    metric: str, values: list[float | None], best: int | None
) -> None:
    assert best_of(metric, values) == best


def test_an_unknown_run_is_told_with_those_there_are(make: Making, tmp_path: Path) -> None:
    first, second = make(1), make(2)
    for given, said in (("nope", "There is no run nope"), ("flights", "2 runs begin with flights")):
        ended = command(tmp_path, "show", given)
        assert ended.exit_code == EXIT_CONFIG
        assert said in ended.stderr and first.name in ended.stderr and second.name in ended.stderr
    ended = command(tmp_path / "nowhere", "show", "x")
    assert "another --root" in ended.stderr


def test_what_has_finished_is_not_resumed_and_told_before_spark_starts(make: Making, tmp_path: Path) -> None:
    ended = command(tmp_path, "resume", make(1).name)
    assert ended.exit_code == EXIT_CONFIG and "only what broke off" in ended.stderr
    assert not (tmp_path / "logs").exists()


def test_a_run_is_resumed_by_its_name(make: Making, tmp_path: Path) -> None:
    older, newer, finished = make(1, "failed"), make(2, "failed"), make(3)
    assert _run_to_resume(tmp_path, "flights", True) == newer
    assert _run_to_resume(tmp_path, "flights", older.name) == older
    with pytest.raises(ConfigError, match="has finished"):
        _run_to_resume(tmp_path, "flights", finished.name)
    with pytest.raises(ConfigError, match="no run of digits"):
        _run_to_resume(tmp_path, "digits", older.name)
    with pytest.raises(RunUnknown):
        _run_to_resume(tmp_path, "flights", "flights-2031")


def test_a_run_that_trained_is_resumed_rather_than_a_newer_one_that_never_began(
    make: Making, tmp_path: Path
) -> None:
    trained, never_began = make(1, "failed"), make(2, "failed", attempts=0)
    assert RunDirectory.newest_unfinished(tmp_path, "flights") == trained
    trained.write_result({"status": "finished"})
    assert RunDirectory.newest_unfinished(tmp_path, "flights") == never_began


def test_looking_at_runs_loads_neither_spark_nor_torch_nor_mlflow(make: Making, tmp_path: Path) -> None:
    make(1)
    program = (
        "import sys; sys.modules.update(dict.fromkeys(['pyspark', 'torch', 'mlflow', 'pyarrow']))\n"
        "from sparktrain.cli import main; main()"
    )
    for arguments in (["list"], ["show", "flights"], ["stale"]):
        done = subprocess.run(
            [sys.executable, "-c", program, "runs", *arguments, "--root", str(tmp_path)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def test_a_run_that_came_back_to_life_or_to_an_end_is_not_marked(make: Making) -> None:
    led, ended, written = (RunRecord(make(day, None)) for day in (1, 2, 3))
    for record in (led, ended, written):
        with record.run.only_reporter():
            pass
        assert record.status == "stale"
    with led.run.only_reporter() as alone:
        assert alone
        assert not mark_killed(led)
    ended.run.write_result({"status": "finished"})
    assert not mark_killed(ended)
    assert not led.run.result_file.exists() and read_json(ended.run.result_file) == {"status": "finished"}
    assert mark_killed(written) and read_json(written.run.result_file)["status"] == "killed"
    with written.run.only_reporter() as alone:
        assert alone, "the lock is given back"


def test_a_driver_of_another_host_that_writes_again_is_left_alone(make: Making) -> None:
    run = make(1, None)
    lock = run.path / "reporter.lock"
    lock.write_text("another-host")
    before = time.time() - 3600
    for path in (run.path, run.events, *run.path.glob("*.json")):
        os.utime(path, (before, before))
    record = RunRecord(run)
    assert record.status == "stale"
    os.utime(run.events)
    assert not mark_killed(record) and not run.result_file.exists()
    assert lock.read_text() == "another-host", "so that it still counts as led"


def test_a_folder_that_is_no_run_is_no_run(make: Making, tmp_path: Path) -> None:
    run = make(1)
    (tmp_path / "datasets").mkdir()
    ended = command(tmp_path, "show", str(tmp_path / "datasets"))
    assert ended.exit_code == EXIT_CONFIG and "There is no run" in ended.stderr and run.name in ended.stderr
    assert answer(tmp_path / "elsewhere", "show", str(run.path))["run"] == run.name


def test_a_status_that_there_is_not_is_refused_with_those_there_are(make: Making, tmp_path: Path) -> None:
    ended = command(tmp_path, "list", "--status", "finishd")
    assert ended.exit_code == EXIT_CONFIG
    for status in ("finished", "failed", "killed", "running", "stale", "unstarted"):
        assert f"'{status}'" in ended.stderr


def test_the_command_that_continues_a_run_names_where_it_lies(
    make: Making, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make(1, "failed")
    assert (
        f"sparktrain runs resume {run.name} --root {tmp_path}\n" in command(tmp_path, "show", run.name).stdout
    )
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "out").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path / "here")
    assert f"sparktrain runs resume {run.name}\n" in command(tmp_path, "show", run.name).stdout


def test_a_run_whose_dataset_is_gone_says_which(make: Making, tmp_path: Path) -> None:
    run = make(1, "failed")
    (tmp_path / "datasets" / "flights" / ("1" * 32)).mkdir(parents=True)
    config = Config.model_validate(
        {"pipeline": "flights", "resume": run.name, "storage": {"root": str(tmp_path)}}
    )
    with pytest.raises(DatasetInvalid, match=f"{'0' * 32} that {run.name} trained on is gone"):
        newest_dataset(config)


def test_another_dataset_is_refused_with_the_ways_out() -> None:
    refused = str(ResumeRefused("/data/runs/flights-1", {"dataset": ("0a", "0b")}))
    assert "sparktrain runs resume flights-1 --root /data`" in refused
    assert "resume=false" in refused and "/data/runs/flights-1 is removed" in refused
    assert "is removed" not in str(ResumeRefused("/data/runs/flights-1", {"train.seed": (0, 1)}))
