"""How the documents become a site: `make docs`. Their sources are Markdown that a code host shows as well."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import generated  # noqa: E402  (needs the path above)

import sparktrain  # noqa: E402

project = "sparktrain"
author = copyright = "the sparktrain authors"
version = release = sparktrain.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"sparktrain {release}"
html_show_sphinx = False
html_copy_source = False
exclude_patterns = ["images"]

myst_heading_anchors = 3  # as a code host makes them: [text](page.md#a-heading) is checked
pygments_style = "friendly"

default_role = "code"  # docstrings write `names` in single backticks
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
autodoc_type_aliases = {"Feature": "Feature"}
autodoc_default_options = {"exclude-members": "model_config"}
nitpicky = True
# Types of other projects have no pages to lead to without a network. What is raised must have its entry here.
nitpick_ignore_regex = [("py:(class|obj|data|attr|func|meth|mod)", ".*")]
nitpick_ignore = [
    ("py:exc", name) for name in ("ValueError", "KeyError", "TypeError", "OSError", "RuntimeError")
]
napoleon_google_docstring = True
napoleon_numpy_docstring = False


def _generate(app: Any, page: str, source: list[str]) -> None:
    """Put what is made of the code itself in the place of its mark; name what the site has no page of."""
    if "/" not in page:
        source[0] = re.sub(r"\[([^\]]+)\]\(\.\./[^)]+\)", r"\1", source[0])
    for mark, make in generated.PARTS.items():
        if mark in source[0]:
            source[0] = source[0].replace(mark, make())


def _write_out(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain English: nothing in them is emphasis, or a type before a colon."""
    lines[:] = [
        re.sub(r"(?<=[\[( ])(\*{1,2})(?=\w)", lambda stars: "\\*" * len(stars[1]), line) for line in lines
    ]
    if what in ("property", "attribute"):
        lines.insert(0, "")  # napoleon looks for "type: text" in the first line


def setup(app: Any) -> None:
    app.connect("source-read", _generate)
    app.connect("autodoc-process-docstring", _write_out, priority=400)  # before napoleon
