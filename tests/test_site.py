"""The documents as a site: every link leads somewhere, every key is described. `make docs` builds it."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

import pytest
import typer
from pydantic import BaseModel

from sparktrain.cli import app
from sparktrain.config import Config, all_keys, section_of
from tests.fixtures.browser import open_browser

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted(ROOT.glob("pipelines/*/README.md")),
]
MOST_BYTES_OF_A_PICTURE = 150_000


@pytest.fixture(scope="module")
def generated() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generated", ROOT / "docs" / "generated.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prose(page: Path) -> str:
    """A page without its code."""
    text = re.sub(r"^(```+).*?^\1", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]+`", lambda code: code[0].replace("[", "").replace("(", ""), text)


def anchors(page: Path) -> set[str]:
    """The names by which a page's headings are reached, as code hosts and the site make them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", prose(page))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in links(page):
        address = urlsplit(link)
        if address.scheme:  # nobody is asked whether it is there
            assert address.scheme == "https" and "." in address.netloc and " " not in link, link
            continue
        target = (page.parent / address.path).resolve() if address.path else page
        assert target.exists() and target.is_relative_to(ROOT), link
        if address.fragment and target.suffix == ".md" and "reference" not in target.parts:
            assert address.fragment in anchors(target), link


def test_links_are_found_at_all() -> None:
    found = {link for page in PAGES for link in links(page)}
    assert {"docs/reliability.md", "training.md#strategies", "reference/configuration.md"} <= found


def test_pictures_are_small_and_each_is_shown() -> None:
    shown = {link.rpartition("/")[2] for page in PAGES for link in links(page) if "images/" in link}
    pictures = {file.name: file.stat().st_size for file in (ROOT / "docs" / "images").iterdir()}
    assert set(pictures) == shown
    assert max(pictures.values()) <= MOST_BYTES_OF_A_PICTURE


def test_each_key_of_the_configuration_is_described(generated: ModuleType) -> None:
    undescribed = []

    def look(model: type[BaseModel], prefix: str = "") -> None:
        assert model.__doc__, f"{model.__name__} is a section without a word about it"
        for name, field in model.model_fields.items():
            if section := section_of(field):
                look(section, f"{prefix}{name}.")
            elif not field.description:
                undescribed.append(prefix + name)

    look(Config)
    assert not undescribed, "give these a description in config.py"


def test_the_reference_has_every_key_once(generated: ModuleType) -> None:
    rows = re.findall(r"^\| \[?`([a-z_.]+)`", generated.configuration(), re.MULTILINE)
    assert sorted(rows) == sorted(all_keys())
    assert "<class" not in generated.configuration() and "typing." not in generated.configuration()


def test_the_reference_has_every_command(generated: ModuleType) -> None:
    text = generated.command_line()
    names = [*_commands(app)]
    assert {"run", "init", "runs list", "runs stale", "runs resume"} <= set(names)
    for name in names:
        assert re.search(rf"^##+ `sparktrain {name}`$", text, re.MULTILINE), name


def _commands(group: typer.Typer, before: str = "") -> Iterator[str]:
    """The names of all commands, those of commands of commands as well."""
    for command in group.registered_commands:
        assert command.callback is not None
        yield before + (command.name or command.callback.__name__.replace("_", "-"))
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        yield from _commands(inner.typer_instance, f"{before}{inner.typer_instance.info.name} ")


def test_every_mark_of_the_reference_has_its_page(generated: ModuleType) -> None:
    pages = [page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "reference").glob("*.md")]
    for mark in generated.PARTS:
        assert sum(mark in page for page in pages) == 1, mark


def test_tests_that_need_a_browser_are_skipped_without_one_but_not_on_ci(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="make browser"), open_browser():
        pass
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no Chromium"), open_browser():
        pass
