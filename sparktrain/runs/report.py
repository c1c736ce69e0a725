"""report.html: a run on one page for people, whether it finished, failed or broke off.

Made of the run's directory alone: no Spark, no MLflow, no dataset.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import median

from sparktrain.dataset.card_html import Html, number, page, percent, table, tiles
from sparktrain.runs.chart import CHART_STYLE, chart
from sparktrain.runs.directory import FINISHED, RunDirectory
from sparktrain.runs.evaluation_table import evaluation_rows
from sparktrain.runs.in_words import duration, ranks_text
from sparktrain.runs.report_tables import (
    attempts_section,
    configuration_section,
    dataset_section,
    hosts_section,
    incidents_section,
    moment,
    places_section,
    versions_section,
)
from sparktrain.runs.story import Story
from sparktrain.storage import commit_bytes

_STYLE = (
    CHART_STYLE
    + """
.badge{padding:2px 10px;border-radius:10px;color:#fff;font-size:13px;vertical-align:4px;background:#5b9a5b}
.badge.failed{background:#b42318}.badge.killed,.badge.unfinished{background:#9a6700}
pre{padding:12px 14px;overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:8px;
border-left:4px solid var(--bad);white-space:pre-wrap;overflow-wrap:anywhere;font:12px ui-monospace,monospace}
td pre{padding:4px 8px;margin:0;max-width:640px}
"""
)
_SHARES = {
    "train/data_wait_fraction": "waiting for data",
    "train/communication_fraction": "communication",
    "train/straggler_fraction": "waiting for the slowest rank",
}
_PHASES = ["prepare", "train", "publish", "score"]  # in the order in which they come
_LONGEST_ERROR = 20_000


@dataclass(frozen=True)
class Report:
    """A run's report: the page, where it lies, and what it comes to in one line."""

    file: Path
    summary: str


def write_report(run: RunDirectory) -> Report:
    """Write the report beside what it is made of. One that is there is replaced."""
    story = Story(run)
    commit_bytes(run.report_file, report_of(story).encode("utf-8", "backslashreplace"))
    return Report(run.report_file, f"{story.status.capitalize()}: {_sentence(story)}")


def report_of(story: Story) -> str:
    """The whole page."""
    run = story.run
    status = f'<span class="badge {escape(story.status)}">{escape(story.status)}</span>'
    about = Html(
        f'<p>{status} {escape(_sentence(story))}</p><p class="soft"><code>{escape(run.name)}</code></p>'
    )
    sections = {
        "Error": Html(f"<pre>{escape(story.error[:_LONGEST_ERROR])}</pre>") if story.error else Html(),
        "Outcome": _outcome(story),
        "Learning": _learning(story),
        "Pace": _pace(story),
        "Attempts": attempts_section(story),
        "Incidents": incidents_section(story),
        "Hosts": hosts_section(story),
        "Configuration": configuration_section(story),
        "Dataset": dataset_section(story),
        "Where it is": places_section(story),
        "Versions": versions_section(story),
    }
    heading = str(story.spec.get("pipeline", run.name))
    return page(heading, f"{heading}: {story.status} run", about, sections, _STYLE)


def _sentence(story: Story) -> str:
    """What, when and with how much, in one breath."""
    attempts = story.attempts
    ranks = story.result.get("world_size") or (attempts[-1].num_ranks if attempts else 0)
    hosts = {host for attempt in attempts for host in attempt.hosts}
    where = f" on {len(hosts)} host{'s' * (len(hosts) != 1)}" if hosts else ""
    done = f"{story.last_step:,}" + (f" of {story.num_steps:,}" if story.num_steps else "")
    is_early = story.status == FINISHED and story.last_step < (story.num_steps or 0)
    early = " (stopped early)" if is_early else ""
    parts = [f"{done} steps{early} by {ranks_text(ranks)}{where}", moment(story.run.began)]
    if len(attempts) > 1:
        parts.append(f"{len(attempts)} attempts")
    return ", ".join(parts) + "."


def _outcome(story: Story) -> Html:
    metrics, best = story.metrics, story.settings.get("train.best_metric")
    wanted = next((f"{s}/{best}" for s in ("test", "validation") if f"{s}/{best}" in metrics), None)
    figures = {"steps": number(story.last_step)}
    if wanted:
        figures[wanted.replace("/", " ")] = number(metrics[wanted])
    if rows := story.curves.get("train/rows_per_second"):
        figures["rows/s, median"] = number(round(median(value for _, value in rows)))
    taken = story.result.get("seconds") or {}
    figures |= {f"to {phase}": duration(taken[phase]) for phase in _PHASES if phase in taken}
    if model := story.result.get("model_uri"):
        figures["model"] = str(model)
    return Html(tiles(figures) + _evaluation(metrics))


def _evaluation(metrics: Mapping[str, float]) -> Html:
    rows = evaluation_rows(metrics)
    if not rows:
        return Html()
    names = {"reference_test": "logistic regression, test"}
    heads = [names.get(name, name) for name in rows[0]]
    return table(heads, [list(row.values()) for row in rows], "names")


def _learning(story: Story) -> Html:
    curves, marks = story.curves, _restarts(story)
    loss = {name.partition("/")[0]: curve for name, curve in curves.items() if name.endswith("/loss")}
    charts = [chart("Loss", loss, marks)]
    best = f"validation/{story.settings.get('train.best_metric')}"
    if best in curves and best != "validation/loss":
        charts.append(chart(best.replace("/", " "), {best: curves[best]}, marks))
    for name, title in (("gradient_norm", "Norm of the gradient"), ("learning_rate", "Learning rate")):
        charts.append(chart(title, {name: curves.get(f"train/{name}", [])}, marks))
    return _charts(charts)


def _pace(story: Story) -> Html:
    curves, marks = story.curves, _restarts(story)
    shares = {name: curves[key] for key, name in _SHARES.items() if key in curves}
    charts = [
        chart("Rows per second", {"rows/s": curves.get("train/rows_per_second", [])}, marks),
        chart("Parts of the time", shares, marks),
        chart(
            "Headroom of the data: how busy the rank is that waits most for it",
            {"headroom": curves.get("train/data_headroom", [])},
            marks,
        ),
        chart("Memory, bytes", {"memory": curves.get("train/memory_bytes", [])}, marks),
        chart("Rows without weight", {"rows": curves.get("train/rows_masked", [])}, marks),
    ]
    told = "".join(f"<p>{escape(text)}</p>" for text in _words(story))
    return Html(told + _charts(charts))


def _words(story: Story) -> Iterator[str]:
    """What the curves of the pace come to, by their medians."""
    middle = {
        name: median(known)
        for name, curve in story.curves.items()
        if (known := [value for _, value in curve if math.isfinite(value)])
    }
    if (share := middle.get("train/data_wait_fraction")) is not None:
        verdict = (
            "data comes fast enough."
            if share < 0.05
            else "more data.num_threads or larger row groups would pay."
        )
        yield f"Ranks wait for data {percent(share)} of the time: {verdict}"
    if (headroom := middle.get("train/data_headroom")) is not None:
        yield f"The rank that waits most for data is busy {percent(headroom)} of the time."
    if (share := middle.get("train/communication_fraction")) is not None:
        verdict = "ranks mostly compute." if share < 0.3 else "a strategy that sends less would pay."
        yield f"Ranks exchange gradients {percent(share)} of the time: {verdict}"
    if (share := middle.get("train/straggler_fraction")) is not None:
        verdict = "ranks are about equally fast." if share < 0.1 else "see which rank is slow below."
        yield f"Ranks wait for the slowest of them {percent(share)} of the time: {verdict}"


def _restarts(story: Story) -> list[int]:
    return [attempt.first_step for attempt in story.attempts[1:]]


def _charts(charts: list[Html]) -> Html:
    shown = "".join(charts)
    return Html(f'<div class="charts">{shown}</div>') if shown else Html()
