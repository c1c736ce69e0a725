"""What a notebook's cell shows of a training and of its result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sparktrain.dataset.card_html import Html
from sparktrain.gang.supervise import TrainResult
from sparktrain.runs.in_notebook import CellProgress, is_notebook, progress_in_cell
from sparktrain.testing import write_tiny_dataset


class Cell:
    """Keeps each line with what it stands in the place of."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.markup: list[Html] = []
        self.replaced: list[Any] = []

    def __call__(self, line: Html, text: str, before: Any) -> str:
        self.markup.append(line)
        self.lines.append(text)
        self.replaced.append(before)
        return "the line"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def metrics(step: int, **values: float) -> dict[str, Any]:
    return {"kind": "metrics", "step": step, "values": {k.replace("__", "/"): v for k, v in values.items()}}


def test_one_line_is_changed_in_its_place_and_not_too_often() -> None:
    cell, clock = Cell(), Clock()
    progress = CellProgress(cell, clock)
    for step in range(1, 1001):
        clock.now += 0.01
        progress({"kind": "progress", "step": step, "num_steps": 1000, "epoch": 0, "attempt": 1})
    progress.end("finished")
    assert 15 < len(cell.lines) < 25, "ten seconds, two changes in each"
    assert cell.replaced == [None] + ["the line"] * (len(cell.lines) - 1)
    assert cell.lines[0] == "starting · 0:00"
    assert cell.lines[-1] == "finished · 1,000 of 1,000 steps · 0:10"
    assert 'value="1000" max="1000"' in cell.markup[-1]


@pytest.mark.parametrize(
    ("how", "said", "whole"),
    [("finished", "576 of 960 steps · stopped early", 576), ("interrupted", "576 of 960 steps", 960)],
)
def test_a_training_that_stopped_early_says_so_and_has_a_full_bar(how: str, said: str, whole: int) -> None:
    cell = Cell()
    progress = CellProgress(cell, Clock())
    progress({"kind": "progress", "step": 576, "num_steps": 960, "attempt": 1})
    progress.end(how)
    assert cell.lines[-1] == f"{how} · {said} · 0:00"
    assert f'value="576" max="{whole}"' in cell.markup[-1]


def test_the_line_tells_loss_rows_the_validation_metric_and_the_attempt() -> None:
    cell, clock = Cell(), Clock()
    progress = CellProgress(cell, clock)
    progress({"kind": "phase", "name": "train", "attempt": 1})
    progress({"kind": "progress", "step": 70, "num_steps": 100, "attempt": 1})
    progress(metrics(70, train__loss=0.51234, train__rows_per_second=12345.6))
    progress(metrics(70, validation__loss=0.6, validation__auroc=0.75))
    progress({"kind": "resumed", "step": 40, "attempt": 2})
    clock.now += 75
    progress({"kind": "phase", "name": "<b>", "attempt": 2})
    parts = (
        "<b>",
        "40 of 100 steps",
        "loss 0.5123",
        "rows/s 12,346",
        "validation auroc 0.7500",
        "attempt 2",
        "1:15",
    )
    assert cell.lines[-1] == " · ".join(parts)
    assert "&lt;b&gt;" in cell.markup[-1] and "<b>" not in cell.markup[-1]


def test_events_are_passed_on() -> None:
    got: list[Any] = []
    take = CellProgress(Cell(), Clock()).before(got.append)
    take({"kind": "phase", "name": "train"})
    assert got == [{"kind": "phase", "name": "train"}]


def test_outside_of_a_notebook_nothing_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    def then(event: Any) -> None: ...

    assert not is_notebook()
    with progress_in_cell(then) as follow:
        assert follow is then
    with progress_in_cell(None) as nobody:
        assert nobody is None
    assert capsys.readouterr().out == ""


def test_a_result_is_shown_with_the_reference_beside_it() -> None:
    result = TrainResult(
        status="finished",
        run_id="0af3",
        run_dir="/runs/<x>",
        dataset={},
        world_size=2,
        attempts=1,
        steps=1200,
        metrics={"validation/auroc": 0.75, "test/auroc": 0.7412345, "test/loss": 0.5, "reference/auroc": 0.7},
        model_uri="models:/flights/3",
        seconds={"train": 12.34, "publish": 3.0},
    )
    html = result._repr_html_()
    for expected in (
        "reference, test",
        ">0.7412<",
        "1,200 with 2 ranks, attempt 1",
        "models:/flights/3",
        "0af3",
    ):
        assert expected in html
    assert "/runs/&lt;x&gt;" in html and "not published" not in html and "why" not in html
    failed = TrainResult("failed", None, "/runs/x", {}, 2, 3, error="rank 1 <failed>")
    assert "rank 1 &lt;failed&gt;" in failed._repr_html_() and "not registered" in failed._repr_html_()


def test_a_dataset_is_shown_by_its_rows(tmp_path: Path) -> None:
    dataset = write_tiny_dataset(tmp_path / "tiny", 1000, test_rows=100)
    html = dataset._repr_html_()
    assert dataset.fingerprint in html and ">1,000<" in html and ">1,100<" in html and "for test" in html
    assert repr(dataset) == f"Dataset('tiny': {_rows(dataset)} rows; {tmp_path / 'tiny'})"


def _rows(dataset: Any) -> str:
    return ", ".join(f"{split.rows:,} for {name}" for name, split in dataset.manifest.splits.items())
