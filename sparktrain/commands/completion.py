"""What the shell completes: files, keys and values of the configuration, runs, datasets.

Imports neither Spark nor torch nor MLflow: a person waits for it at each press of the key.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

import typer

OUT = Path("./out")
_Given = ParamSpec("_Given")
_Found = TypeVar("_Found")


def _or_nothing(complete: Callable[_Given, list[_Found]]) -> Callable[_Given, list[_Found]]:
    """Complete nothing where something fails: a traceback would land in the line that a person types."""

    @functools.wraps(complete)
    def completed(*args: _Given.args, **kwargs: _Given.kwargs) -> list[_Found]:
        try:
            return complete(*args, **kwargs)
        except Exception:
            return []

    return completed


@_or_nothing
def complete_config(incomplete: str) -> list[str]:
    """YAML files of conf/, or of the folder that was begun."""
    begun = Path(incomplete)
    folder = begun if incomplete.endswith("/") else begun.parent
    folders = [folder, *([Path("conf")] if folder == Path(".") else [])]
    found = [str(p) for place in folders for p in sorted(place.glob("*.yaml"))]
    inner = [f"{p}/" for p in sorted(folder.glob("*/")) if incomplete and p.is_dir()]
    return [name for name in [*found, *inner] if name.startswith(incomplete)]


@_or_nothing
def complete_override(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """`section.key=`, with what the key is for; of the only key that fits, the values that it may have."""
    found = dict(_keys())
    given = [str(text) for text in ctx.params.get("overrides") or ()]
    # bash breaks words at =, and what lies before it comes as words of their own
    before = [text for text in given if text != "="]
    if before and (given[-1] == "=" or (not incomplete and given[-1] in found)):
        return [(value, "") for value in found.get(before[-1], ("", []))[1] if value.startswith(incomplete)]
    key, equals, _ = incomplete.partition("=")
    taken = {text.partition("=")[0] for text in given}
    keys = [key] if equals else [name for name in found if name.startswith(key) and name not in taken]
    if len(keys) == 1 and keys[0] in found:
        # more than one candidate, so that the shell sets no space after the equals sign
        candidates = [f"{keys[0]}={value}" for value in ["", *found[keys[0]][1]]]
        return [(text, found[keys[0]][0]) for text in candidates if text.startswith(incomplete)]
    return [(f"{name}=", found[name][0]) for name in keys]


@_or_nothing
def complete_run(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of runs under --root, the newest first."""
    from sparktrain.runs.directory import RunDirectory

    root = Path(ctx.params.get("root") or OUT)
    named = {str(name) for name in ctx.params.get("runs") or ()}
    names = [run.name for run in RunDirectory.all_in(root)]
    return [name for name in names if name.startswith(incomplete) and name not in named]


@_or_nothing
def complete_run_dir(incomplete: str) -> list[str]:
    return [path for path in _places("runs/*") if path.startswith(incomplete)]


@_or_nothing
def complete_dataset(incomplete: str) -> list[str]:
    """Folders of datasets under ./out: each one's, and above it that of its newest."""
    found = _places("datasets/*") + _places("datasets/*/*")
    return [path for path in sorted(found) if path.startswith(incomplete) and "/." not in path]


def _places(pattern: str) -> list[str]:
    return [str(path) for path in sorted(Path("out").glob(pattern)) if path.is_dir()]


def _keys(model: Any = None, prefix: str = "") -> Iterator[tuple[str, tuple[str, list[str]]]]:
    """Every key of the configuration that takes a value, its description and the values of a choice."""
    from sparktrain.config import Config, section_of

    for name, field in (model or Config).model_fields.items():
        if section := section_of(field):
            yield from _keys(section, f"{prefix}{name}.")
            continue
        kinds = _kinds(field.annotation)
        values = [str(v) for kind in kinds if get_origin(kind) is Literal for v in get_args(kind)]
        values += ["true", "false"] if bool in kinds else []
        if not values and isinstance(field.default, (int, float, str)):
            values = [str(field.default)]
        yield f"{prefix}{name}", (field.description or "", values)


def _kinds(annotation: Any) -> tuple[Any, ...]:
    is_union = get_origin(annotation) in (Union, types.UnionType)
    return get_args(annotation) if is_union else (annotation,)
