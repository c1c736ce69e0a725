"""`sparktrain check`: the command around `check_dataset`. Needs no configuration, no Java."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from sparktrain.cli import app
from sparktrain.errors import EXIT_CONFIG, EXIT_DATA
from sparktrain.testing import write_tiny_dataset


def check(*arguments: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "160", "TERM": "dumb"}).invoke(app, ["check", *map(str, arguments)])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_tiny_dataset(tmp_path / "tiny", 10_000, validation_rows=300).path


def test_warnings_are_shown_and_allowed(path: Path) -> None:
    ended = check(path, "--num-lanes", "64", "--ranks", "1", "--ranks", "3")
    assert ended.exit_code == 0, ended.output
    for said in (
        "any number of ranks makes the same steps of 2,048 rows",
        "682 or 683",
        "158 row groups for 64 lanes, fewer than 512",
        "→ train.num_lanes=16, or prepare.rows_per_row_group=16",
        "dictionary on floats",
    ):
        assert said in ended.stdout


def test_json_is_one_object_on_stdout(path: Path) -> None:
    ended = check(path, "--json", "--global-batch-size", "4", "--num-lanes", "4")
    assert ended.exit_code == 0
    found = json.loads(ended.stdout)
    assert found["status"] == "finished"
    assert found["splits"][0]["steps_per_epoch"] == 2500
    assert [gang["num_ranks"] for gang in found["ranks"]] == [1, 2, 4], "a rank needs a row of each step"
    assert "findings" in ended.stderr


def test_a_damaged_dataset_ends_with_3_and_nothing_but_its_errors(path: Path) -> None:
    parts = sorted(path.glob("train/*.parquet"))
    parts[0].unlink()
    parts[1].write_bytes(b"")
    ended = check(path, "--json")
    assert ended.exit_code == EXIT_DATA
    for part in parts:
        assert f"train/{part.name}" in ended.stderr
    assert "warning" not in ended.stderr and "rows dropped" not in ended.stderr
    found = json.loads(ended.stdout)
    assert found["status"] == "failed"
    assert [f["level"] for f in found["findings"]].count("error") == 2


def test_what_is_no_dataset_is_one_message(tmp_path: Path) -> None:
    ended = check(tmp_path / "nowhere")
    assert ended.exit_code == EXIT_DATA
    assert "there is no such directory. Way out: " in ended.stderr
    assert "Traceback" not in ended.output


def test_lanes_that_do_not_divide_the_batch_are_a_wrong_configuration(path: Path) -> None:
    ended = check(path, "--num-lanes", "3")
    assert ended.exit_code == EXIT_CONFIG
    assert "num_lanes is 3" in ended.stderr


def test_the_help_has_an_example_and_the_defaults() -> None:
    text = " ".join(check("--help").stdout.split())
    for said in ("sparktrain check out/datasets/flight_delays", "2048", "--num-lanes", "--ranks", "--json"):
        assert said in text
    assert "default: 1, 2, 4, 8" in text and "Exit code 3" in text
