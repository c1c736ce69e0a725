"""Which versions may train together, and how a difference is told."""

from __future__ import annotations

import platform
import re

import pytest
import torch

from sparktrain import versions
from sparktrain.errors import EXIT_CONFIG, VersionsDiffer

HOME = {
    "Python": "3.11.9",
    "torch": "2.6.0+cpu",
    "pyarrow": "19.0.1",
    "numpy": "2.1.0",
    "sparktrain": "0.1.0",
    "pyspark": "4.0.0",
}


def test_a_process_knows_its_own_versions() -> None:
    found = versions.here()
    assert found["Python"] == platform.python_version()
    assert found["torch"] == torch.__version__
    assert found.keys() == HOME.keys()
    assert versions.MISSING not in found.values()


def test_equal_versions_give_no_word() -> None:
    assert versions.compare(HOME, {"rank 0 on a": HOME, "rank 1 on b": dict(HOME)}) == []


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("Python", "3.12.1"),
        ("torch", "2.6.1+cpu"),
        ("pyarrow", "19.0.2"),
        ("numpy", "2.1.1"),
        ("sparktrain", "0.2.0"),
        ("pyspark", versions.MISSING),
    ],
)
def test_what_breaks_a_gang_is_refused_in_a_table(name: str, other: str) -> None:
    ranks = {"rank 0 on a": HOME, "rank 1 on b": HOME | {name: other}}
    with pytest.raises(VersionsDiffer) as refused:
        versions.compare(HOME, ranks)
    assert refused.value.exit_code == EXIT_CONFIG
    assert refused.value.environments == {
        "driver, rank 0 on a": {name: HOME[name]},
        "rank 1 on b": {name: other},
    }
    head, row = str(refused.value).splitlines()[1:3]
    assert re.split(" {3,}", head)[-2:] == ["driver, rank 0 on a", "rank 1 on b"]
    assert row.split() == [name, HOME[name], other]
    assert "Way out" in str(refused.value)


@pytest.mark.parametrize(
    ("name", "other"), [("Python", "3.11.2"), ("torch", "2.6.0+cu124"), ("pyspark", "4.1.0")]
)
def test_what_may_differ_is_mentioned(name: str, other: str) -> None:
    [warning] = versions.compare(HOME, {"rank 0 on a": HOME | {name: other}})
    assert warning == f"{name} differs: {HOME[name]} (driver); {other} (rank 0 on a)"


def test_only_what_must_not_differ_is_in_the_table() -> None:
    with pytest.raises(VersionsDiffer) as refused:
        versions.compare(HOME, {"rank 0 on a": HOME | {"numpy": "1.26.4", "pyspark": "4.1.0"}})
    assert [set(found) for found in refused.value.environments.values()] == [{"numpy"}, {"numpy"}]


def test_a_large_gang_is_told_in_few_words() -> None:
    old = HOME | {"torch": "2.5.0", "numpy": "1.26.4"}
    with pytest.raises(VersionsDiffer) as refused:
        versions.compare(HOME, {f"rank {n} on a": old for n in range(64)})
    lines = str(refused.value).splitlines()
    assert "rank 0 on a, rank 1 on a, rank 2 on a, rank 3 on a and 60 more" in lines[1]
    assert [line.split()[0] for line in lines[2:4]] == ["torch", "numpy"]
