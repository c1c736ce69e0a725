"""The configuration of a new pipeline: every key, with what it is for, and sizes that suit its rows."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from sparktrain.config import Config, section_of
from sparktrain.new_pipeline.sizes import hidden_sizes_for, sizes_for
from sparktrain.new_pipeline.source import Source
from sparktrain.new_pipeline.wording import WIDTH
from sparktrain.preparation.guess import Guess

_COLUMN = 33  # where comments begin


def configuration(name: str, source: Source, guess: Guess) -> str:
    """The text of conf/<name>.yaml."""
    rows = guess.columns[guess.target.source].rows
    missing = 1 - rows / guess.rows
    own: dict[str, Any] = {"pipeline": name, **sizes_for(rows, guess.target.kind)}
    own["prepare"]["source"] = {"table" if source.kind == "table" else "path": source.place}
    if missing > 0:
        own["prepare"]["max_quarantined_fraction"] = min(round(missing + 0.1, 2), 1.0)
    own["train"]["model"] = {
        "hidden_sizes": list(hidden_sizes_for(rows)),
        "embedding_size": 8,
        "dropout": 0.1,
    }
    own["spark"] = {"app_name": name, "conf": {"spark.driver.memory": "2g" if rows < 1_000_000 else "4g"}}
    own["tracking"] = {"experiment": name, "registered_model": name}
    head = [
        f"# {name}: sizes for {rows:,} rows. Any key can be changed on the command line, too:",
        f"# sparktrain run conf/{name}.yaml train.epochs=2",
        "",
    ]
    return "\n".join([*head, *_section(Config, own, 0)]) + "\n"


def _section(model: type[BaseModel], own: Mapping[str, Any], depth: int) -> Iterator[str]:
    for key, field in model.model_fields.items():
        indent = "  " * depth
        inner = section_of(field)
        if inner is not None:
            yield from ["", f"{indent}{key}:"] if depth == 0 else [f"{indent}{key}:"]
            yield from _section(inner, own.get(key, {}), depth + 1)
            continue
        value = own[key] if key in own else field.get_default(call_default_factory=True)
        yield from _line(f"{indent}{key}:", value, field.description)


def _line(key: str, value: Any, comment: str | None) -> Iterator[str]:
    """A key and its value, with the comment behind, or above where the line would be too long."""
    text = f"{key} {_plain(value)}"
    behind = f"{text:<{_COLUMN}}  # {comment}"
    if comment and len(behind) > WIDTH:
        indent = key[: len(key) - len(key.lstrip())]
        yield from textwrap.wrap(
            comment, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
        )
    yield behind if comment and len(behind) <= WIDTH else text


def _plain(value: Any) -> str:
    """A value as YAML in one line."""
    if isinstance(value, Path):
        value = str(value) if value.is_absolute() else f"./{value}"
    dumped: str = yaml.safe_dump(
        value, default_flow_style=True, width=10_000, allow_unicode=True, sort_keys=False
    )
    return dumped.removesuffix("\n").removesuffix("\n...")
