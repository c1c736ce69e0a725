"""What the reference says of keys and commands, made of the configuration's models and of the commands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import annotated_types
import typer
import typer.cli
import typer.main
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from sparktrain.cli import app
from sparktrain.config import Config, section_of

_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "length ≥"}


def configuration() -> str:
    """A table for each section: every key with its type, default, bounds and meaning."""
    return "\n".join(_sections(Config, ""))


def _sections(model: type[BaseModel], prefix: str) -> Iterator[str]:
    title = f"`{prefix.rstrip('.')}`" if prefix else "The whole file"
    yield f"{'###' if prefix.count('.') > 1 else '##'} {title}\n\n{_first_line(model)}\n"
    yield "| key | type | default | |\n|---|---|---|---|"
    inner = []
    for name, field in model.model_fields.items():
        section = section_of(field)
        if section is not None:
            inner.append((section, f"{prefix}{name}."))
            yield f"| [`{prefix}{name}`](#{_anchor(prefix + name)}) | section | | {_first_line(section)} |"
        else:
            meaning = _escape(field.description or "")
            yield f"| `{prefix}{name}` | {_type(field)} | {_default(field)} | {meaning} |"
    yield ""
    for section, path in inner:
        yield from _sections(section, path)


def _anchor(key: str) -> str:
    return re.sub(r"[^a-z0-9_ -]", "", key)


def _first_line(model: type[BaseModel]) -> str:
    return _escape((model.__doc__ or "").strip().splitlines()[0])


def _type(field: FieldInfo) -> str:
    text = _type_name(field.annotation)
    bounds = [
        f"{sign} {getattr(rule, name):g}"
        for rule in field.metadata
        for name, sign in _BOUNDS.items()
        if isinstance(rule, annotated_types.BaseMetadata) and hasattr(rule, name)
    ]
    pattern = next((rule.pattern for rule in field.metadata if getattr(rule, "pattern", None)), None)
    return ", ".join([text, *bounds, *([f"matches `{pattern}`"] if pattern else [])])


def _type_name(kind: Any) -> str:
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return f"{{{', '.join(kind.model_fields)}}}"
    if type(None) in arguments:
        return " or ".join([*(_type_name(one) for one in arguments if one is not type(None)), "empty"])
    if get_origin(kind) is None and arguments:  # a union
        return " or ".join(map(_type_name, arguments))
    origin = get_origin(kind)
    if origin is dict:
        return f"mapping: {_type_name(arguments[1])} by name"
    if origin in (list, tuple):
        return f"list of {', '.join(map(_type_name, arguments))}"
    names = {Any: "anything", str: "text", int: "whole number", float: "number", bool: "`true` or `false`"}
    return names.get(kind, {"Path": "path"}.get(getattr(kind, "__name__", ""), f"`{kind}`"))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be given"
    default = field.get_default(call_default_factory=True)
    if default is None or default is PydanticUndefined or default in ({}, []):
        return "empty"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _escape(text: str) -> str:
    """Of plain text what Markdown would take for its own."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def command_line() -> str:
    """What `--help` says of every command."""
    command: Any = typer.main.get_command(app)
    text = typer.cli.get_docs_for_click(obj=command, ctx=typer.Context(command), name="sparktrain")
    # the page has a title, and a heading for each command
    text = re.sub(r"\A# .*?\n|\*\*Commands\*\*:\n\n(\* .*\n)+", "", text)
    text = re.sub(r"^Example: (.*)$", r"Example: `\1`", text, flags=re.MULTILINE)
    parts = re.split(r"(```.*?```|`[^`\n]*`)", text, flags=re.DOTALL)
    parts[::2] = [_escape(part) for part in parts[::2]]
    return "".join(parts).replace("```console\n$ ", "```text\n")


PARTS = {"<!-- the configuration's keys -->": configuration, "<!-- the commands -->": command_line}
