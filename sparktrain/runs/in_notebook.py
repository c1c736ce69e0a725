"""A run in a cell of a notebook: a line that tells how far it is, and its result as a table.

What Jupyter, Databricks and others have in common: HTML that is shown, and shown anew. No widgets.
"""

from __future__ import annotations

import importlib
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from html import escape
from typing import Any

from sparktrain.dataset.card_html import Html, cell, number, table
from sparktrain.runs.evaluation_table import evaluation_rows
from sparktrain.runs.in_words import news_of, ranks_text

OnEvent = Callable[[Mapping[str, Any]], None]

_FINISHED = "finished"
_PAUSE_SECONDS = 0.5  # between two changes of a line: each is a message to the browser


@contextmanager
def progress_in_cell(then: OnEvent | None, is_wanted: bool = True) -> Iterator[OnEvent | None]:
    """Yield what takes each event: in a notebook a line that follows them, and then `then`."""
    if not is_wanted or not is_notebook():
        yield then
        return
    _import_tqdm()
    progress = CellProgress(_show)
    try:
        yield progress.before(then)
    except BaseException as error:
        progress.end("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
        raise
    progress.end(_FINISHED)


def is_notebook() -> bool:
    """Whether a Jupyter kernel, such as Databricks' own, runs this process."""
    ipython = sys.modules.get("IPython")  # a kernel has it loaded
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


def _import_tqdm() -> None:
    """Whoever imports it first in a notebook is warned of widgets that are missing, and needs none here."""
    with warnings.catch_warnings(), suppress(ImportError):
        warnings.simplefilter("ignore")
        importlib.import_module("tqdm.auto")


def _show(line: Html, text: str, before: Any) -> Any:
    """Show a line, in the place of the one before; return what it can be replaced by."""
    from IPython.display import display

    bundle = {"text/html": str(line), "text/plain": text}
    if before is None:
        return display(bundle, raw=True, display_id=True)  # type: ignore[no-untyped-call]
    before.update(bundle, raw=True)
    return before


class CellProgress:
    """A line with a bar, the phase, the steps and the last figures; takes the events of a run.

    Args:
        show: called with the line as markup and as text, and with what the call before returned.
    """

    def __init__(
        self, show: Callable[[Html, str, Any], Any], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._show, self._clock = show, clock
        self._began, self._shown_at, self._shown = clock(), 0.0, None
        self._phase, self._attempt = "starting", 1
        self._step, self._num_steps = 0, 0
        self._news: dict[str, str] = {}
        self._draw()

    def before(self, then: OnEvent | None) -> OnEvent:
        """Return what takes an event for this line, and then for `then`."""

        def take(event: Mapping[str, Any]) -> None:
            self(event)
            if then is not None:
                then(event)

        return take

    def __call__(self, event: Mapping[str, Any]) -> None:
        self._attempt = max(self._attempt, event.get("attempt", 1))
        if event["kind"] == "phase":
            self._phase = event["name"]
        elif event["kind"] == "progress":
            self._step, self._num_steps = event["step"], event["num_steps"]
        elif event["kind"] == "resumed":
            self._step = event["step"]
        elif event["kind"] == "metrics":
            self._news |= news_of(event["values"])
        if self._clock() - self._shown_at >= _PAUSE_SECONDS:
            self._draw()

    def end(self, how: str) -> None:
        """Leave the last line: how it ended."""
        self._phase = how
        self._draw()

    def _draw(self) -> None:
        parts = [self._phase]
        is_early = self._phase == _FINISHED and self._step < self._num_steps
        if self._num_steps:
            parts.append(f"{self._step:,} of {self._num_steps:,} steps")
        if is_early:
            parts.append("stopped early")
        parts += [f"{name} {value}" for name, value in self._news.items()]
        if self._attempt > 1:
            parts.append(f"attempt {self._attempt}")
        minutes, seconds = divmod(int(self._clock() - self._began), 60)
        text = " · ".join([*parts, f"{minutes}:{seconds:02d}"])
        whole = self._step if is_early else self._num_steps
        reached = f'value="{self._step}" max="{whole or 1}"'
        bar = f'<progress style="vertical-align:middle" {reached}></progress>'
        self._shown = self._show(Html(f"<div>{bar} {escape(text)}</div>"), text, self._shown)
        self._shown_at = self._clock()


def result_in_cell(result: Mapping[str, Any]) -> Html:
    """What `TrainResult` is shown as: its metrics, the reference's beside them, and where everything is."""
    rows = evaluation_rows(result["metrics"])
    heads = [name.replace("_", ", ") for name in rows[0]] if rows else []
    metrics = table(heads, [list(row.values()) for row in rows]) if rows else Html()
    seconds = ", ".join(f"{name} {number(round(value, 1))}" for name, value in result["seconds"].items())
    facts = {
        "status": result["status"],
        "why": result.get("error"),
        "steps": f"{result['steps']:,} with {ranks_text(result['world_size'])}, attempt {result['attempts']}",
        "seconds": seconds,
        "model": result["model_uri"] or "not registered",
        "not published": result.get("unpublished"),
        "MLflow run": result["run_id"] or "not in MLflow yet",
        "run directory": result["run_dir"],
    }
    return cell(metrics, table(["run", ""], [(name, value) for name, value in facts.items() if value]))
