"""Every notebook runs as it stands, in a folder of its own, and shows what it promises."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
from mlflow import MlflowClient
from nbclient import NotebookClient

from sparktrain.runs.directory import RunDirectory
from sparktrain.runs.story import Story
from tests.fixtures.browser import open_browser, text_of
from tests.fixtures.databricks_source import cells_of, to_notebook

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
SECONDS = 540

# What a page shows of sparktrain: where, how large, in which colours. Paper is that of the nearest element
# that is not transparent.
_DRAWN = """
const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
const paper = element => {
  for (; element; element = element.parentElement) {
    const colour = numbers(getComputedStyle(element).backgroundColor);
    if (colour.length < 4 || colour[3] > 0) return colour;
  }
  return [255, 255, 255];
};
const box = element => element.getBoundingClientRect();
const all = (place, take) => [...document.querySelectorAll(place)].map(take);
return {
  room: document.documentElement.clientWidth,
  bars: all("progress", e => ({width: box(e).width, height: box(e).height, value: e.value, max: e.max})),
  tables: all(".sparktrain-cell table", e => ({width: box(e).width})),
  cells: all(".sparktrain-cell td, .sparktrain-cell th", e => (
    {text: e.innerText, ink: numbers(getComputedStyle(e).color), paper: paper(e)})),
};
"""


def workplace(tmp_path: Path) -> Path:
    """A copy of what a notebook finds in a clone; returns the folder that it runs in."""
    for folder in ("conf", "pipelines", "notebooks"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "notebooks"


def figure(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    assert found, text
    return float(found[1])


def check_first_model(text: str, out: Path) -> None:
    assert figure(r"estimator: area under ROC ([\d.]+)", text) > 0.95
    assert figure(r"pipeline: area under ROC ([\d.]+)", text) > 0.95
    assert "model models:/tumours/1" in text and "probability" in text
    assert "pipelines/tumours/model.py" in text and 'TARGET = Target("benign")' in text


def check_flights(text: str, out: Path) -> None:
    assert re.search(r"33,973 rows in, quarantined: {'arrived': 903}", text)
    assert figure(r"AUROC ([\d.]+), of the reference", text) > 0.7
    assert "probability" in text
    groups = re.findall(r"^\d +(\d) +(\d+) +([\d.]+)$", text, re.MULTILINE)
    late = [float(share) for _, flights, share in groups if int(flights) > 500]
    assert sum(int(flights) for _, flights, _ in groups) == 33_070
    assert len(late) > 5 and late == sorted(late), "the more probable, the more often late"


def check_recovery(text: str, out: Path) -> None:
    steps = figure(r"(?m)^(\d+) steps in 1 attempt$", text)
    assert f"killed: 1 process; {steps:.0f} steps in 2 attempts" in text
    assert figure(r"(\d+) losses, different: 0", text) > 50
    stories = [Story(RunDirectory(path)) for path in sorted((out / "runs").iterdir())]
    assert [len(story.attempts) for story in stories] == [1, 2]
    first, second = stories[1].attempts
    assert "SIGKILL" in first.failure and first.last_step < steps == second.last_step
    assert second.first_step >= 200
    assert stories[0].curves["train/loss"] == stories[1].curves["train/loss"]


def check_tuning(text: str, out: Path) -> None:
    assert "4 trials, the best is number" in text and "models:/flights_tuned/1 is trial" in text
    assert "none was registered: [0, 1, 2, 3]" in text
    client = MlflowClient(f"sqlite:///{out / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("flights_tuning")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    [parent] = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    trials = [run for run in runs if run is not parent]
    assert [run.data.tags["mlflow.parentRunId"] for run in trials] == [parent.info.run_id] * 4
    best = max(trials, key=lambda run: run.data.metrics["validation/auroc"])
    [version] = client.search_model_versions()
    assert (version.name, version.run_id) == ("flights_tuned", best.info.run_id)
    assert {run.info.status for run in runs} == {"FINISHED"}


def check_reading(text: str, out: Path) -> None:
    [run] = (out / "runs").iterdir()
    assert run.name in text and str(run / "report.html") in text
    for name in ("auroc", "data_wait_fraction", "data_headroom", "wind_gust", "said"):
        assert re.search(rf"\b{name}\b", text), name
    assert re.search(r"artifacts: .*\bevaluation\.json\b.*\breport\.html\b", text)


CHECKS: dict[str, Callable[[str, Path], None]] = {
    "01_first_model": check_first_model,
    "02_flights": check_flights,
    "03_recovery": check_recovery,
    "04_tuning": check_tuning,
    "05_read_a_run": check_reading,
}


@pytest.mark.spark
@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 30)
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda n: n.stem)
def test_a_notebook_runs_as_it_stands(notebook: Path, tmp_path: Path) -> None:
    folder = workplace(tmp_path)
    done = subprocess.run(
        [sys.executable, notebook.name],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    CHECKS[notebook.stem](done.stdout, tmp_path / "out")
    left = sorted(path.name for path in folder.iterdir() if path.name != "__pycache__")
    assert left == [path.name for path in NOTEBOOKS], "what it writes lies under out/"


@dataclass(frozen=True)
class InKernel:
    """The first notebook, executed as Jupyter does."""

    notebook: nbformat.NotebookNode
    source: str
    out: Path


@pytest.fixture(scope="module")
def in_kernel(tmp_path_factory: pytest.TempPathFactory) -> InKernel:
    place = tmp_path_factory.mktemp("kernel")
    source = (ROOT / "notebooks" / "01_first_model.py").read_text(encoding="utf-8")
    notebook = to_notebook(source)
    resources = {"metadata": {"path": str(workplace(place))}}
    NotebookClient(notebook, timeout=SECONDS, resources=resources).execute()
    return InKernel(notebook, source, place / "out")


@pytest.mark.spark
@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 30)
def test_a_kernel_shows_progress_in_one_line_and_tables_as_tables(in_kernel: InKernel) -> None:
    outputs = [output for cell in in_kernel.notebook.cells for output in cell.get("outputs", [])]
    shown = [output.data["text/html"] for output in outputs if "text/html" in output.get("data", {})]
    bars = [html for html in shown if "<progress" in html]
    assert len(bars) == 2, "one line for each training, changed in its place"
    assert all(re.search(r"finished · \d+ of \d+ steps · .* \d:\d\d</div>", bar) for bar in bars)
    [result] = [html for html in shown if "sparktrain-cell" in html]
    assert "reference, test" in result and "models:/tumours/1" in result
    assert " with 1 rank, " in result and "one rank trains on it" in in_kernel.source
    text = "".join(output.get("text", "") for output in outputs)
    assert "\x1b[" not in text and "\r" not in text
    complaints = [output.text for output in outputs if output.get("name") == "stderr"]
    assert len("".join(complaints).splitlines()) < 10, complaints
    check_first_model(text + "".join(shown), in_kernel.out)
    nbformat.validate(in_kernel.notebook)


@pytest.mark.spark
@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 90)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_browser_draws_the_notebook_s_page(in_kernel: InKernel, theme: str, tmp_path: Path) -> None:
    with open_browser() as browser:
        from nbconvert import HTMLExporter

        elsewhere = {"mathjax_url": "", "require_js_url": "", "jquery_url": ""}  # of the internet
        page, _ = HTMLExporter(theme=theme, **elsewhere).from_notebook_node(in_kernel.notebook)
        (tmp_path / "page.html").write_text(page, encoding="utf-8")
        browser.get((tmp_path / "page.html").as_uri())
        text = text_of(browser)
        assert "Your first model" in text
        drawn = browser.execute_script(_DRAWN)
        assert len(drawn["bars"]) == 2 and all(
            bar["width"] > 50 and bar["height"] > 3 for bar in drawn["bars"]
        )
        assert all(bar["value"] == bar["max"] for bar in drawn["bars"]), "finished"
        assert drawn["tables"] and all(table["width"] <= drawn["room"] for table in drawn["tables"])
        faint = [cell for cell in drawn["cells"] if contrast(cell["ink"], cell["paper"]) < 4.5]
        assert drawn["cells"] and not faint, "legible, as WCAG 2 counts contrast"


def contrast(ink: list[float], paper: list[float]) -> float:
    """The ratio of two colours' luminances, 1 to 21; source: Web Content Accessibility Guidelines 2.2."""

    def luminance(colour: list[float]) -> float:
        parts = (c / 255 for c in colour[:3])
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    darker, lighter = sorted((luminance(ink), luminance(paper)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda n: n.stem)
def test_a_notebook_is_in_databricks_source_format(notebook: Path) -> None:
    text = notebook.read_text(encoding="utf-8")
    assert text.startswith("# Databricks notebook source\n# MAGIC %md\n# MAGIC # ")
    cells = cells_of(text)
    assert {kind for kind, _ in cells} == {"markdown", "code"} and all(source for _, source in cells)
    assert "spark.stop()" in text and '"dbutils" not in globals()' in text


def test_every_notebook_is_checked() -> None:
    assert [notebook.stem for notebook in NOTEBOOKS] == list(CHECKS)
