"""Versions: what a process runs on, and which differences between processes would break a gang.

Imports nothing but Python's own library, so that it can be asked of an executor that lacks everything else.
"""

from __future__ import annotations

import importlib
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata

MISSING = "missing"
PACKAGES = ("torch", "pyarrow", "numpy", "sparktrain", "pyspark")

Versions = Mapping[str, str]
"""Version of Python and of each package, by name; `MISSING` where there is none."""


def here() -> dict[str, str]:
    """The versions of this process; a millisecond: packages with metadata are not imported for it."""
    return {"Python": platform.python_version(), **{name: _version_of(name) for name in PACKAGES}}


def _version_of(package: str) -> str:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    # Spark's own files come as a zip without metadata, ours may by --py-files: both are quick to import.
    with suppress(ImportError):
        return str(getattr(importlib.import_module(package), "__version__", MISSING))
    return MISSING


def compare(driver: Versions, others: Mapping[str, Versions]) -> list[str]:
    """Refuse environments that must not train together; return words of warning about other differences.

    What is refused, and why:
        Python, by minor version: functions travel as byte code, which another one can't run.
        torch: collectives between two versions of it hang, or give other bits. Builds of one version for CPU
            and for CUDA ("2.6.0+cpu", "2.6.0+cu124") fit together: the driver often has no GPU.
        pyarrow, numpy: they read the rows, and values of theirs travel to the driver.
        sparktrain: the ranks would not agree on the order of rows, or on the files of a run.
        a package that is missing on one side only.
    What is mentioned: Python's patch version, torch's build, and pyspark, where a client of Spark Connect may
    differ from its server, and Spark refuses the rest by itself.

    Args:
        driver: `here()` of the driver.
        others: `here()` of each rank or executor, by who it is, such as "rank 0 on host-a".

    Raises:
        VersionsDiffer: with a table of what differs.
    """
    # Not at the top: an executor that is asked for its versions may have no sparktrain.
    from sparktrain.errors import VersionsDiffer

    everyone = {"driver": driver, **others}
    names = {name: None for versions in everyone.values() for name in versions}
    if breaking := [name for name in names if _differ([_what_counts(name, v) for v in everyone.values()])]:
        raise VersionsDiffer(_distinct(everyone, breaking))
    return [
        f"{name} differs: " + "; ".join(f"{found[name]} ({who})" for who, found in environments.items())
        for name in names
        if len(environments := _distinct(everyone, [name])) > 1
    ]


def _differ(values: Sequence[str]) -> bool:
    return len(set(values)) > 1


def _distinct(versions_of: Mapping[str, Versions], names: Sequence[str]) -> dict[str, Versions]:
    """One entry for each environment, as far as it is `names`: all who have it, in a few words."""
    who_has: dict[tuple[str, ...], list[str]] = {}
    for who, versions in versions_of.items():
        who_has.setdefault(tuple(versions.get(name, MISSING) for name in names), []).append(who)
    return {_in_few_words(who): dict(zip(names, found, strict=True)) for found, who in who_has.items()}


def _in_few_words(who: Sequence[str], limit: int = 4) -> str:
    more = len(who) - limit
    return ", ".join(who) if more <= 0 else f"{', '.join(who[:limit])} and {more} more"


def _what_counts(name: str, versions: Versions) -> str:
    version = versions.get(name, MISSING)
    if version == MISSING:
        return MISSING
    match name:
        case "Python":
            return ".".join(version.split(".")[:2])
        case "pyspark":
            return "any"
        case "torch":
            return version.partition("+")[0]
        case _:
            return version
