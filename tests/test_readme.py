"""The README does what it says: its tree names every file, its own-dataset example runs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def tree_in_readme() -> set[str]:
    """Paths of the files that the README's tree names."""
    section = README.split("## What is where")[1].split("\n## ")[0]
    parents: list[str] = []
    found = set()
    for line in re.findall(r"^    ( *)(\S+)", section, re.MULTILINE):
        depth, name = len(line[0]) // 2, line[1]
        parents = [*parents[:depth], name]
        if not name.endswith("/"):
            found.add("".join(parents))
    return found


def test_the_tree_names_every_file() -> None:
    there = {
        path.relative_to(ROOT).as_posix()
        for folder in ("sparktrain", "pipelines", "jobs", "conf", "notebooks")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".yaml", ".conf"} and path.name != "__init__.py"
    }
    assert tree_in_readme() == there


def test_every_make_target_in_the_readme_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:^    |`)make ([a-z0-9-]+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_command_in_the_readme_exists() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sparktrain.cli", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    for command in re.findall(r"^    sparktrain ([a-z]+) ", README, re.MULTILINE):
        assert command in done.stdout


@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_own_dataset_of_the_readme_trains_and_scores(tmp_path: Path) -> None:
    blocks = re.findall(r"```\w+\n# ((?:pipelines|conf)/\S+)\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 3
    shutil.copytree(ROOT / "pipelines", tmp_path / "pipelines", ignore=shutil.ignore_patterns("__pycache__"))
    for name, content in blocks:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "sparktrain.cli", "run", "conf/tumours.yaml", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=220,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["metrics"]["test/auroc"] > 0.9
    assert result["score"]["rows"] == 569
