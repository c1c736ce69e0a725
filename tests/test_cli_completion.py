"""What the shell completes, asked as a shell asks: by the environment of a fresh process."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from sparktrain.config import all_keys
from sparktrain.runs.directory import RunDirectory

# As `sparktrain` does; what a completion must not load can't be loaded.
PROGRAM = (
    "import sys; sys.modules.update(dict.fromkeys(['pyspark', 'torch', 'mlflow', 'pyarrow', 'sklearn']))\n"
    "sys.argv[0] = 'sparktrain'\n"
    "from sparktrain.cli import main; main()"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "conf").mkdir()
    for name in ("flights.yaml", "digits.yaml", "notes.txt"):
        (tmp_path / "conf" / name).touch()
    (tmp_path / "out" / "datasets" / "flights" / "0a1b").mkdir(parents=True)
    return tmp_path


def completed(folder: Path, *words: str) -> list[str]:
    """What bash is told for the last of the words."""
    env = {
        **os.environ,
        "_SPARKTRAIN_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(("sparktrain", *words)),
        "COMP_CWORD": str(len(words)),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_configurations_are_completed(folder: Path) -> None:
    assert completed(folder, "run", "conf/") == ["conf/digits.yaml", "conf/flights.yaml"]
    assert completed(folder, "train", "conf/f") == ["conf/flights.yaml"]


def test_keys_are_completed_and_those_given_are_left_out(folder: Path) -> None:
    found = completed(folder, "run", "conf/flights.yaml", "train.e")
    assert found == ["train.epochs=", "train.evaluate_every_steps=", "train.early_stopping_evaluations=",
                     "train.ema_decay="]  # fmt: skip
    found = completed(folder, "run", "conf/flights.yaml", "train.epochs=3", "train.ep")
    assert found == []


def test_every_key_that_takes_a_value_is_there(folder: Path) -> None:
    found = {
        name.partition("=")[0] for prefix in "pdrst" for name in completed(folder, "run", "x.yaml", prefix)
    }
    sections = {key.rpartition(".")[0] for key in all_keys()} - {""}
    assert found == {key for key in all_keys() if key not in sections}


def test_values_are_completed(folder: Path) -> None:
    assert completed(folder, "run", "conf/flights.yaml", "train.strategy=f") == ["train.strategy=fsdp"]
    assert completed(folder, "run", "conf/flights.yaml", "resume=t") == ["resume=true"]
    # two candidates, so that no space is set behind the only key
    assert completed(folder, "run", "x.yaml", "train.epo") == ["train.epochs=", "train.epochs=4"]


def test_values_are_completed_by_a_shell_that_breaks_words_at_the_equals_sign(folder: Path) -> None:
    assert completed(folder, "run", "conf/flights.yaml", "train.strategy", "=", "f") == ["fsdp"]
    assert completed(folder, "run", "conf/flights.yaml", "train.compile", "=") == ["true", "false"]


def test_what_makes_no_sense_is_no_traceback_in_the_line_that_is_typed(folder: Path) -> None:
    for words in (("=", ""), ("=", "t"), ("train.compile", "=", "=", "")):
        completed(folder, "run", "conf/flights.yaml", *words)  # nothing on stderr
    (folder / "out" / "runs").mkdir()
    (folder / "out" / "runs" / "x-20250101-101500-abcdef").symlink_to("gone")
    assert completed(folder, "runs", "show", "x") == []


def test_runs_and_datasets_are_completed(folder: Path) -> None:
    run = RunDirectory.create(folder / "out", "flights")
    assert completed(folder, "runs", "show", "fl") == [run.name]
    assert completed(folder, "runs", "compare", run.name, "fl") == []
    assert completed(folder, "replay", "out/r") == [f"out/runs/{run.name}"]
    assert completed(folder, "check", "out/") == ["out/datasets/flights", "out/datasets/flights/0a1b"]


def test_commands_are_completed(folder: Path) -> None:
    assert completed(folder, "ru") == ["run", "runs"]


def test_a_completion_takes_well_under_a_second(folder: Path) -> None:
    def used() -> float:
        spent = resource.getrusage(resource.RUSAGE_CHILDREN)
        return spent.ru_utime + spent.ru_stime

    before = used()
    assert completed(folder, "run", "conf/flights.yaml", "train.ra") == ["train.ranks=", "train.ranks=2"]
    assert used() - before < 1.0, "seconds of the processor: a clock would measure what else runs here"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_is_shown(folder: Path, shell: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "--show-completion", shell],
        cwd=folder, capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "_SPARKTRAIN_COMPLETE" in done.stdout
