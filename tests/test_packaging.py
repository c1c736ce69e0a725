"""The first minute on a new machine: targets explain themselves, what is missing is said in one sentence."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
CHECK_JAVA = ROOT / ".ci" / "check-java"
CHECK_PYTHON = ROOT / ".ci" / "check-python"


def program(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def fake_java(path: Path, version: str, before: str = "") -> Path:
    lines = [before, f'openjdk version "{version}" 2025-04-15', "OpenJDK Runtime Environment"]
    return program(path, "\n".join(f"echo '{line}' >&2" for line in lines if line))


def check_java(path: Path, java_home: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = {"PATH": str(path)} | ({"JAVA_HOME": str(java_home)} if java_home else {})
    return subprocess.run([CHECK_JAVA], env=env, capture_output=True, text=True, timeout=20)


def assert_one_sentence(done: subprocess.CompletedProcess[str], *said: str) -> None:
    assert done.returncode != 0
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.endswith(".\n")
    for words in said:
        assert words in done.stderr


@pytest.mark.parametrize("version", ["17", "17.0.15", "21", "21.0.2", "26-ea"])
def test_java_that_spark_can_use_passes_silently(tmp_path: Path, version: str) -> None:
    fake_java(tmp_path / "java", version)
    done = check_java(tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("version", "major"), [("1.8.0_392", "8"), ("9", "9"), ("11.0.2", "11"), ("16-ea", "16")]
)
def test_older_java_is_named_with_the_way_out(tmp_path: Path, version: str, major: str) -> None:
    java = fake_java(tmp_path / "java", version)
    assert_one_sentence(
        check_java(tmp_path),
        "needs Java 17",
        f"{java} is Java {major} ({version})",
        "install a JDK",
        "JAVA_HOME",
    )


def test_no_java_at_all(tmp_path: Path) -> None:
    assert_one_sentence(check_java(tmp_path), "needs Java 17", "no java on the PATH", "install a JDK")


def test_lines_before_the_version_do_not_confuse(tmp_path: Path) -> None:
    fake_java(tmp_path / "java", "17.0.15", before="Picked up JAVA_TOOL_OPTIONS: -Xmx8g")
    assert check_java(tmp_path).returncode == 0


def test_java_home_wins_over_the_path(tmp_path: Path) -> None:
    fake_java(tmp_path / "new" / "bin" / "java", "21.0.2")
    fake_java(tmp_path / "old" / "bin" / "java", "11.0.2")
    assert check_java(tmp_path / "old" / "bin", java_home=tmp_path / "new").returncode == 0
    assert_one_sentence(
        check_java(tmp_path / "new" / "bin", java_home=tmp_path / "old"), str(tmp_path / "old"), "Java 11"
    )


def test_java_home_that_holds_no_java(tmp_path: Path) -> None:
    fake_java(tmp_path / "java", "17")
    assert_one_sentence(
        check_java(tmp_path, java_home=tmp_path / "gone"), f"JAVA_HOME is {tmp_path / 'gone'}"
    )


def test_java_that_cannot_start(tmp_path: Path) -> None:
    """macOS has such a java on its PATH until a real one is installed."""
    program(tmp_path / "java", "echo 'Unable to locate a Java Runtime.' >&2; exit 1")
    assert_one_sentence(check_java(tmp_path), f"{tmp_path / 'java'} -version failed")


def test_java_without_a_version(tmp_path: Path) -> None:
    program(tmp_path / "java", "echo hello")
    assert_one_sentence(check_java(tmp_path), "does not name a version")


def test_older_python_is_named_with_the_way_out(tmp_path: Path) -> None:
    old = program(tmp_path / "python3", 'if [ "$1" = -V ]; then echo Python 3.9.2; else exit 1; fi')
    done = subprocess.run([CHECK_PYTHON, old], capture_output=True, text=True, timeout=20)
    assert_one_sentence(done, "needs Python 3.11", f"'{old}' is Python 3.9.2", "make PYTHON=")


def test_python_that_is_not_there() -> None:
    done = subprocess.run(
        [CHECK_PYTHON, "python-that-is-not-there"], capture_output=True, text=True, timeout=20
    )
    assert_one_sentence(done, "there is no 'python-that-is-not-there'", "make PYTHON=")


@pytest.fixture
def fresh_checkout(tmp_path: Path) -> Path:
    """Only what make reads before it installs."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    return tmp_path


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("target", ["run", "test"])
def test_old_java_is_reported_before_the_install_begins(fresh_checkout: Path, target: str) -> None:
    fake_java(fresh_checkout / "jdk" / "bin" / "java", "11.0.2")
    done = subprocess.run(
        ["make", "-j4", target, f"JAVA_HOME={fresh_checkout / 'jdk'}", "PYTHON=must-not-be-reached"],
        cwd=fresh_checkout,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode != 0
    assert "is Java 11 (11.0.2)" in done.stderr
    assert "must-not-be-reached" not in done.stderr
    assert not (fresh_checkout / ".venv").exists()


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_alone_prints_help_for_every_public_target() -> None:
    done = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True, timeout=20, check=True)
    explained = set(re.findall(r"^ +make ([a-z0-9-]+) +\S", done.stdout, flags=re.MULTILINE))
    text = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY:(.*)$", text, flags=re.MULTILINE)
    assert phony is not None
    defined = set(re.findall(r"^([a-z][a-z0-9-]*):(?!=)", text, flags=re.MULTILINE))
    assert defined == set(phony[1].split())
    assert explained == defined - {"check-java"}


@pytest.mark.parametrize(
    ("file", "left_out"), [("constraints.txt", {"petastorm"}), ("constraints-spark35.txt", {"bench", "docs"})]
)
def test_constraints_pin_every_declared_dependency_within_its_range(file: str, left_out: set[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [lines for name, lines in project["optional-dependencies"].items() if name not in left_out]
    declared = [Requirement(line) for line in chain(project["dependencies"], *extras)]
    lines = (ROOT / file).read_text().splitlines()
    pinned = {}
    for requirement in (Requirement(line) for line in lines if line and not line.startswith("#")):
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", requirement
        assert "+" not in specifier.version, f"{requirement}: a local version is not to be had everywhere"
        pinned[canonicalize_name(requirement.name)] = specifier.version
    for requirement in declared:
        name = canonicalize_name(requirement.name)
        assert name in pinned, name
        assert requirement.specifier.contains(pinned[name]), requirement
