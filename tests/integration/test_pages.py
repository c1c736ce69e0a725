"""What people look at in a browser after a run: MLflow's page, the run's report, the dataset's card.

`make screenshots` takes the pictures of docs/images here, of a run of all the flights.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from sparktrain.terminal import run_table, training_table
from tests.fixtures.browser import fit, open_browser, save_picture, text_of, wait_for
from tests.fixtures.command import CONF, ROOT, Workplace
from tests.fixtures.mlflow_server import MlflowServer
from tests.integration.conftest import Job

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

PICTURES = os.environ.get("SPARKTRAIN_SCREENSHOTS")

pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.timeout(1200 if PICTURES else 300)]

# Where this machine keeps its files says nothing to those who look at a picture.
_MOVE = """
const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
let text;
while ((text = texts.nextNode())) text.data = text.data.replaceAll(arguments[0], "/data/out");
"""


@dataclass(frozen=True)
class Shown:
    """A run that is looked at."""

    root: Path
    run_id: str
    run_dir: Path
    dataset: Path
    fingerprint: str
    auroc: float
    result: Mapping[str, Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    with open_browser() as found:
        yield found


@pytest.fixture(scope="module")
def shown(browser: Chrome, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """The sample's run that other tests look at, too; for pictures one of all the flights."""
    if PICTURES is None:
        job: Job = request.getfixturevalue("finished")
        root, result = job.root, job.result
    else:
        root = tmp_path_factory.mktemp("pictures") / "out"
        workplace: Workplace = request.getfixturevalue("workplace")
        running = workplace.start("run", CONF, f"storage.root={root}", "--json", PYTHONPATH=str(ROOT))
        ended = running.wait(900)
        assert ended.exit_code == 0, ended.stderr
        result = ended.json
    dataset = result["dataset"]
    return Shown(
        root,
        result["run_id"],
        Path(result["run_dir"]),
        Path(dataset["path"]),
        dataset["fingerprint"],
        result["metrics"]["test/auroc"],
        result,
    )


@pytest.fixture(scope="module")
def server(shown: Shown, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    home = tmp_path_factory.mktemp("server")
    with MlflowServer(home, f"sqlite:///{shown.root}/mlflow.db") as found:
        yield found


@pytest.fixture
def page(browser: Chrome, server: MlflowServer, shown: Shown) -> Chrome:
    """The run's page in MLflow, as a person opens it for the first time."""
    browser.set_window_size(1280, 960)
    browser.get("about:blank")  # else the next address is taken for a place in the page that is there
    browser.get(f"{server.uri}/#/experiments/1/runs/{shown.run_id}")
    wait_for("the run's page", lambda: "About this run" in text_of(browser))
    for button in browser.find_elements("css selector", "button[aria-label='Close']"):
        button.click()  # an assistant that takes a quarter of the page
    return browser


def go_to(page: Chrome, tab: str) -> None:
    click(page, f"//*[@role='tab' and normalize-space()='{tab}'] | //a[normalize-space()='{tab}']")


def click(page: Chrome, place: str) -> None:
    def clicked() -> bool:
        page.find_element("xpath", place).click()
        return True

    wait_for(place, clicked)


def open_artifact(page: Chrome, path: str) -> None:
    """Click through the tree of artifacts."""
    for name in path.split("/"):
        click(page, f"//*[normalize-space(text())='{name}']")


def picture(page: Chrome, shown: Shown, name: str) -> None:
    if PICTURES is not None:
        page.execute_script(_MOVE, str(shown.root))
        file = Path(PICTURES).absolute() / name
        save_picture(page, file)
        assert file.stat().st_size <= 150_000


def test_the_run_s_page_tells_its_metrics_dataset_and_model(page: Chrome, shown: Shown) -> None:
    text = wait_for("the metrics", lambda: text if "test/auroc" in (text := text_of(page)) else None)
    for metric in ("train/loss", "validation/auroc", "test/auroc", "reference/auroc"):
        assert metric in text
    assert str(shown.auroc)[:6] in text
    assert "system/" in text, "what hosts were busy with"
    assert shown.fingerprint in text, "the dataset, by its fingerprint"
    assert "Finished: " in text and "See report.html among the artifacts" in text
    assert re.search(r"Registered models\s+flight_delays\s+v1", text), text
    assert re.search(r"Logged models \(\d\)", text)
    assert "train.learning_rate" in text, "the configuration, as parameters"
    picture(page, shown, "mlflow.png")


def test_the_metrics_are_drawn_as_curves(page: Chrome) -> None:
    go_to(page, "Model metrics")
    groups = ("reference", "test", "train", "validation")
    wait_for("charts", lambda: page.find_elements("css selector", ".main-svg"))
    text = text_of(page)
    assert all(re.search(rf"^{group}$", text, re.MULTILINE) for group in groups), text


def test_the_plots_are_pictures(page: Chrome) -> None:
    go_to(page, "Artifacts")
    sizes = "return [...document.images].map(i => i.complete ? i.naturalWidth : 0)"
    for plot in ("loss", "roc", "calibration", "confusion", "precision_recall"):
        open_artifact(page, f"plots/{plot}.png" if plot == "loss" else f"{plot}.png")
        wait_for(f"{plot}.png", lambda plot=plot: f"plots/{plot}.png" in text_of(page))
        wait_for(f"the pixels of {plot}.png", lambda: max(page.execute_script(sizes), default=0) > 300)


def test_the_report_and_the_data_card_are_shown_among_the_artifacts(page: Chrome, shown: Shown) -> None:
    go_to(page, "Artifacts")
    for path, wanted in (("report.html", "Where it is"), ("dataset/card.html", "quarantined by rule")):
        open_artifact(page, path)

        def framed(wanted: str = wanted) -> str | None:
            page.switch_to.default_content()
            page.switch_to.frame(page.find_element("tag name", "iframe"))
            return text if wanted in (text := text_of(page)) else None

        text = wait_for(path, framed)
        page.switch_to.default_content()
        assert shown.fingerprint in text


def test_the_figures_are_a_table(page: Chrome, shown: Shown) -> None:
    go_to(page, "Artifacts")
    open_artifact(page, "evaluation.json")
    text = wait_for("the table", lambda: text if "average_precision" in (text := text_of(page)) else None)
    assert str(shown.auroc)[:6] in text


@pytest.mark.parametrize("width", [1200, 420])
def test_the_report_and_the_card_fit_any_window(browser: Chrome, shown: Shown, width: int) -> None:
    for file in (shown.run_dir / "report.html", shown.dataset / "card.html"):
        browser.get(file.as_uri())
        fit(browser, width, 1300)
        # a page wider than its window has to be pushed to and fro; its tables may scroll by themselves
        wide = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        content, window = browser.execute_script(wide)
        assert content <= window, file.name
        assert browser.execute_script("return document.body.innerText.length") > 1000
        if width == 1200:
            picture(browser, shown, f"{file.stem}.png")


def test_the_report_s_charts_are_drawn(browser: Chrome, shown: Shown) -> None:
    browser.get((shown.run_dir / "report.html").as_uri())
    boxes = browser.execute_script(
        "return [...document.querySelectorAll('svg.chart')].map(c => [c.getBoundingClientRect().width,"
        " c.getBoundingClientRect().height, c.querySelector('polyline').getTotalLength()])"
    )
    assert len(boxes) >= 6
    assert all(width > 250 and height > 90 and length > 100 for width, height, length in boxes), boxes


def test_the_summary_in_the_terminal_names_figures_run_and_model(shown: Shown) -> None:
    result = json.loads(json.dumps(shown.result).replace(str(shown.root), "/data/out"))
    phases = ("prepare", "train", "publish", "score")  # JSON has sorted them
    result["seconds"] = {phase: result["seconds"][phase] for phase in phases}
    console = Console(record=True, width=96, file=io.StringIO(), force_terminal=True)
    console.print(training_table(result))
    console.print(run_table(result))
    text = console.export_text(clear=False)
    assert f"{shown.auroc:.4f}" in text and shown.run_id in text and "models:/flight_delays/1" in text
    if PICTURES is not None:
        drawing = console.export_svg(title="sparktrain run conf/flight_delays.yaml")
        drawing = re.sub(r"@font-face \{.*?\}", "", drawing, flags=re.DOTALL)  # which are of another server
        (Path(PICTURES) / "terminal.svg").write_text(drawing, encoding="utf-8")
