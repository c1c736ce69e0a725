"""The README's commands are run, line by line, in its order and in one folder, by people's own words.

What is long there is made short by keys behind the line, which the README says may be changed.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.command import Ended, Workplace
from tests.test_readme import RUN_ELSEWHERE, lines_of_shell

pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.timeout(300)]

LINES = [line for line in lines_of_shell() if line not in RUN_ELSEWHERE]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A folder as a fresh clone is one; what a line leaves is there for the next."""
    return Workplace.create(tmp_path_factory.mktemp("clone"))


@pytest.fixture(scope="module")
def ended(clone: Workplace, flights: Path) -> Iterator[dict[str, Ended]]:
    """How each line ended, in their order: `train` needs what `prepare` has left."""
    short = {
        "prepare": [f"prepare.source.directory={flights}"],
        "train": ["train.max_steps=12", "train.global_batch_size=512", "train.reference=none"],
        "score": [f"score.source.directory={flights}"],
    }
    found = {}
    for line in LINES:
        program, *arguments = shlex.split(line)
        [command] = [
            word
            for word in arguments
            if word in ("prepare", "check", "train", "score", "doctor", "replay", "runs")
        ]
        if command == "replay":
            runs = sorted((clone.path / "out" / "runs").iterdir())
            arguments = [word.replace("out/runs/flight_delays-…", str(runs[0])) for word in arguments]
        found[line] = clone.run(*arguments, *short.get(command, []), "--json", program=program)
    yield found


@pytest.mark.timeout(1200)  # the first one waits for all lines
@pytest.mark.parametrize("line", LINES)
def test_a_line_of_the_readme_ends_well(line: str, ended: dict[str, Ended]) -> None:
    assert ended[line].exit_code == 0, ended[line].stderr
    assert ended[line].json["status"] == "finished"


def test_what_the_lines_leave_is_where_the_readme_says(ended: dict[str, Ended], clone: Workplace) -> None:
    results = {line: one.json for line, one in ended.items()}
    prepared = next(result for line, result in results.items() if " prepare " in line)
    dataset = Path(prepared["dataset"]["path"])
    assert dataset.parent == clone.path / "out" / "datasets" / "flight_delays"
    assert dataset.name == prepared["dataset"]["fingerprint"]
    trained = [result for line, result in results.items() if re.search(r"\btrain\b", line)]
    assert [result["world_size"] for result in trained] == [2, 2, 1, 2]
    versions = [result["model_uri"] for result in trained]
    assert versions == [f"models:/flight_delays/{number}" for number in range(1, len(trained) + 1)]
    assert {path.name for path in clone.path.iterdir()} == {"conf", "pipelines", "out"}
