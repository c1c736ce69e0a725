"""The report of runs that went well, badly, or nowhere."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from sparktrain.runs.chart import chart
from sparktrain.runs.directory import RunDirectory
from sparktrain.runs.events import EventWriter
from sparktrain.runs.report import write_report
from sparktrain.storage import commit_json
from tests.fixtures.tiny_model import new_run, tiny_config

EVIL = "<script>alert('x')</script>&"


class Page(HTMLParser):
    """What a page shows, by section; what it would load; whether its tags close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sections: dict[str, str] = {}
        self.loads: list[str] = []
        self.open: list[str] = []
        self._section = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.loads += [str(v) for k, v in attrs if k in ("src", "data", "xlink:href") or k.startswith("on")]
        self.loads += [str(values["href"])] if not str(values.get("href", "#")).startswith("#") else []
        self.loads += [tag] if tag in ("script", "link", "iframe", "img") else []
        if tag == "section":
            self._section = str(values["id"])
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "section":
            self._section = ""

    def handle_data(self, data: str) -> None:
        shown = f"{self.sections.get(self._section, '')} {data}"
        self.sections[self._section] = " ".join(shown.split())


def page_of(run: RunDirectory) -> Page:
    report = write_report(run)
    assert report.file == run.report_file
    text = report.file.read_text()
    page = Page(text)
    assert page.open == [] and page.loads == []
    assert "default-src 'none'" in text
    for drawing in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(drawing)
    return page


def trained_run(root: Path, result: dict[str, Any] | None = None, **train: Any) -> RunDirectory:
    """A run of two attempts: the first was lost at step 40, the second went on from step 30."""
    run = new_run(root)
    config = tiny_config(root, train={"best_metric": "auroc", **train})
    commit_json(run.spec_file, {"dataset": "f00d", **config.model_dump(mode="json")})
    commit_json(run.mlflow_file, {"run_id": "abc", "tracking_uri": "sqlite:///x.db"})
    commit_json(run.facts_file, {"tags": {"spark.app_id": "local-1"}, "model": f"Linear({EVIL})"})
    for attempt, steps in ((1, range(10, 41, 10)), (2, range(40, 61, 10))):
        ranks = run.attempt(attempt) / "ranks"
        ranks.mkdir(parents=True)
        for rank in (0, 1):
            start = {"rank": rank, "host": f"host{rank}{EVIL}", "pid": 1, "device": "cpu", "time": 1e9}
            commit_json(ranks / f"rank-{rank:03d}-started.json", start)
        with EventWriter(run.events, 0, attempt) as emit:
            if attempt == 2:
                emit({"kind": "resumed", "step": 30})
            for step in steps:
                values = {
                    "train/loss": 1 / step,
                    "train/gradient_norm": math.nan if step == 20 else 2.0,
                    "train/rows_per_second": 5000.0,
                    "train/data_wait_fraction": 0.25,
                    "train/communication_fraction": 0.5,
                }
                emit({"kind": "metrics", "step": step, "values": values})
                emit({"kind": "progress", "step": step, "num_steps": 60, "epoch": 0})
            emit({"kind": "metrics", "step": steps[-1], "values": {"validation/auroc": 0.7}})
            emit({"kind": "checkpoint", "step": steps[-1], "path": f"step-{steps[-1]}"})
    commit_json(run.failure_file(1), {"text": f"rank 1 was killed {EVIL}\nFull logs:\n  - /a/log"})
    if result is not None:
        run.write_result(result)
    return run


def test_a_run_that_finished_tells_its_outcome_beside_the_reference(root: Path) -> None:
    metrics = {"test/auroc": 0.75, "test/loss": math.nan, "reference/auroc": 0.5, "validation/auroc": 0.7}
    result = {
        "status": "finished",
        "steps": 60,
        "world_size": 2,
        "metrics": metrics,
        "model_uri": "models:/flights/3",
        "seconds": {"train": 125.0},
        "dataset": {"path": "/data", "rows": {"train": 3200}, "quarantined": {"has_size": 3}},
    }
    run = trained_run(root, result, epochs=9, model={"width": EVIL})
    commit_json(run.outcome_file, {"best": "step-40"})
    page = page_of(run)
    assert "60 of 60 steps by 2 ranks on 2 hosts" in page.sections[""]
    assert "2 attempts" in page.sections[""]
    for told in ("0.75", "logistic regression, test", "models:/flights/3", "2 min 05 s"):
        assert told in page.sections["Outcome"]
    assert "Error" not in page.sections
    assert "train.epochs 9 4" in page.sections["Configuration"]
    assert "train.learning_rate" in page.sections["Configuration"].partition("all settings")[2]
    assert "train.learning_rate" not in page.sections["Configuration"].partition("all settings")[0]
    assert "wait for data 25.00% of the time: more data.num_threads" in page.sections["Pace"]
    assert "gradients 50.00% of the time: a strategy that sends less" in page.sections["Pace"]
    attempts = page.sections["Attempts"]
    assert f"rank 1 was killed {EVIL}" in attempts and "/a/log" not in attempts
    assert "0 → 40" in attempts and "30 → 60" in attempts
    assert "has_size" in page.sections["Dataset"] and "f00d" in page.sections["Dataset"]
    assert "local-1" in page.sections["Versions"]
    assert "newest checkpoint step-60 best checkpoint step-40" in page.sections["Where-it-is"]
    assert "replay" not in page.sections["Where-it-is"]


@pytest.mark.parametrize(
    ("status", "said"), [("finished", "50 of 60 steps (stopped early) by"), ("failed", "")]
)
def test_only_a_run_that_finished_can_have_stopped_early(root: Path, status: str, said: str) -> None:
    page = page_of(trained_run(root, {"status": status, "steps": 50, "world_size": 2, "metrics": {}}))
    assert (said or "50 of 60 steps by") in page.sections[""]


@pytest.mark.parametrize("status", ["failed", "killed"])
def test_a_run_that_failed_says_why_first(root: Path, status: str) -> None:
    page = page_of(trained_run(root, {"status": status, "error": f"rank 0 failed: {EVIL}", "metrics": {}}))
    assert list(page.sections)[1] == "Error" and EVIL in page.sections["Error"]
    assert f"rank 0 failed: {EVIL}" in page.sections["Attempts"]
    assert "validation auroc" in page.sections["Outcome"] and "0.7" in page.sections["Outcome"]
    assert "resume=true" in page.sections["Where-it-is"]


def test_what_went_wrong_on_the_way_is_told(root: Path) -> None:
    run = trained_run(root, {"status": "finished", "unpublished": "MLflow was away"})
    with EventWriter(run.events, 1, 2) as emit:
        slow = {"kind": "straggler", "host": "vm", "rank": 1, "cause": "data", "factor": 3.0, "seconds": 0.1}
        emit({**slow, "is_over": False})
        emit({**slow, "is_over": True})
        emit({"kind": "masked", "rank": 1, "row_groups": {"part-1, row group 3": f"a flipped bit {EVIL}"}})
        emit({"kind": "checkpoint_failed", "step": 50, "problem": "No space left"})
        emit({"kind": "metrics", "step": 60, "values": {"train/rows_masked": 7, "train/steps_skipped": 2}})
        system = {"system/vm/cpu_percent": 50.0, "system/vm/network_sent_bytes_per_second": 2e6}
        emit({"kind": "system", "host": "vm", "step": 3, "values": system})
    page = page_of(run)
    told = page.sections["Incidents"]
    for text in (
        "3.0 times the others' time: data",
        "keeps up again",
        "part-1, row group 3",
        "No space left",
    ):
        assert text in told
    assert re.search(r"could not be read 7", told) and re.search(r"no number 2", told)
    assert "50 %" in page.sections["Hosts"] and "2 MB/s" in page.sections["Hosts"]
    assert "MLflow was away" in page.sections["Where-it-is"] and "replay" in page.sections["Where-it-is"]


@pytest.mark.parametrize("files", [{}, {"result.json": "{"}, {"spec.json": "[]", "result.json": "null"}])
def test_a_directory_with_nothing_to_tell_has_a_report_too(root: Path, files: dict[str, str]) -> None:
    run = new_run(root)
    for name, text in files.items():
        (run.path / name).write_text(text)
    page = page_of(run)
    assert "unfinished" in page.sections[""]
    assert str(run.path) in page.sections["Where-it-is"]


def test_an_attempt_of_a_driver_that_was_killed_is_told_as_such(root: Path) -> None:
    run = trained_run(root, {"status": "finished"})
    run.failure_file(1).unlink()
    assert "as when the driver is killed" in page_of(run).sections["Attempts"]


def test_curves_are_drawn_whatever_their_values() -> None:
    curves: list[list[tuple[int, float]]] = [
        [(1, 5.0)],
        [(1, 0.0), (2, 0.0)],
        [(1, 1e308), (2, -1e308)],
        [(step, step**-0.5) for step in range(1, 100_000)],
        [(1, math.nan), (2, math.inf), (3, 1.0)],
    ]
    for curve in curves:
        drawn = chart("a & b", {"one": curve}, marks=[1, 2, 10**9])
        assert "nan" not in drawn and "inf" not in drawn and len(drawn) < 20_000
        ElementTree.fromstring(re.findall(r"<svg.*</svg>", drawn)[0])
    assert chart("none", {"one": [(1, math.nan)], "two": []}) == ""


def test_the_scale_of_a_chart_is_told_in_round_numbers_that_differ() -> None:
    for exponent in range(-12, 13):
        for low, high in ((1.0, 1.1), (0.0, 7.3), (-3.0, 2.0), (8.034, 8.041), (999.0, 1001.5), (-2e3, 1e3)):
            curve = [(1, low * 10.0**exponent), (2, high * 10.0**exponent)]
            texts = re.findall(r'text-anchor="end">([^<]*)</text>', chart("scale", {"one": curve}))[:-1]
            assert 2 <= len(texts) <= 6 and len(set(texts)) == len(texts), (curve, texts)
    assert "0.8035" in chart("narrow", {"one": [(1, 0.8031), (2, 0.8044)]})
