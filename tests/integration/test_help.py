"""--help teaches: what a command does, with which file, and how to change a key."""

from __future__ import annotations

import sys

import pytest
from typer.testing import CliRunner

from sparktrain.cli import app
from tests.fixtures.command import Workplace

COMMANDS = ("init", "runs", "prepare", "append", "train", "score", "run", "doctor", "check", "replay")


def help_of(workplace: Workplace, *command: str) -> str:
    ended = workplace.run(*command, "--help", COLUMNS="100", TERM="dumb")
    assert ended.exit_code == 0, ended.stderr
    assert ended.seconds < 15, "help needs neither Spark nor torch"
    return " ".join(ended.stdout.split())


def test_help_shows_the_way_and_every_command(workplace: Workplace) -> None:
    text = help_of(workplace)
    assert "DataFrame → prepare → dataset → train → MLflow run → model → score" in text
    assert "sparktrain run conf/flight_delays.yaml train.epochs=2" in text
    assert all(command in text for command in COMMANDS)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("prepare", ["quarantine/", "fingerprint", "prepare.source.fraction=0.03"]),
        ("append", ["new version", "KEY", "prepare.source.directory=/data/2014-01"]),
        ("train", ["resume=true", "checkpoint", "train.ranks=4"]),
        ("score", ["probability", "score.model=models:/flight_delays/1", "score.output"]),
        ("run", ["prepare, train, register, score", "storage.root=/tmp/try"]),
        ("doctor", ["before one is started", "way out"]),
    ],
)
def test_the_help_of_a_command_has_an_example_with_its_keys(
    workplace: Workplace, command: str, words: list[str]
) -> None:
    text = help_of(workplace, command)
    assert f"sparktrain {command} conf/flight_delays.yaml" in text
    assert "CONFIG" in text and "SECTION.KEY=VALUE" in text and "--json" in text
    for word in words:
        assert word in text, f"{word!r} is not in the help of {command}: {text}"


@pytest.mark.parametrize("command", ["init", "prepare", "append", "check", "replay", "runs resume"])
def test_a_paragraph_of_a_help_has_no_line_ends_but_the_terminal_s(command: str) -> None:
    lines = _prose(command).splitlines()
    usage, what, how, example = (line.strip() for line in lines if line.strip())
    assert usage.startswith("Usage: sparktrain") and example.startswith("Example: sparktrain")
    assert what.endswith(".") and how.endswith(".") and len(how) > 120


def test_the_help_of_runs_says_that_it_lists_and_has_an_example() -> None:
    assert "alone, it lists" in _prose("runs") and "Example: sparktrain runs compare flights" in _prose(
        "runs"
    )


def _prose(command: str) -> str:
    """What stands above the first box, in a terminal that is wide enough for every paragraph."""
    runner = CliRunner(env={"COLUMNS": "1000", "TERM": "dumb"})
    ended = runner.invoke(app, [*command.split(), "--help"])
    assert ended.exit_code == 0, ended.output
    return ended.stdout.partition("╭")[0]


def test_no_arguments_show_the_help(workplace: Workplace) -> None:
    ended = workplace.run()
    assert "Usage: sparktrain" in ended.stdout + ended.stderr


def test_an_unknown_command_is_told_with_the_nearest(workplace: Workplace) -> None:
    ended = workplace.run("tain", "conf/flight_delays.yaml")
    assert ended.exit_code == 2
    assert "train" in ended.stderr and "Traceback" not in ended.stderr


def test_the_module_is_the_same_command(workplace: Workplace) -> None:
    ended = workplace.run("-m", "sparktrain.cli", "--help", program=PYTHON)
    assert ended.exit_code == 0
    assert "prepare → dataset → train" in " ".join(ended.stdout.split())


PYTHON = sys.executable.rpartition("/")[2]
