"""report.html: a run on one page for people, whether it finished, failed or broke off.

Made of the run's directory alone: no Spark, no MLflow, no dataset.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from statistics import median

from sparktrain.config import Config
from sparktrain.dataset.card_html import Html, details, number, page, percent, size, table, tiles
from sparktrain.runs.chart import CHART_STYLE, chart
from sparktrain.runs.describe import flatten
from sparktrain.runs.directory import FINISHED, RunDirectory
from sparktrain.runs.evaluation_table import evaluation_rows
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
        "Attempts": _attempts(story),
        "Incidents": _incidents(story),
        "Hosts": _hosts(story),
        "Configuration": _configuration(story),
        "Dataset": _dataset(story),
        "Where it is": _places(story),
        "Versions": _versions(story),
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
    parts = [f"{done} steps by {ranks} rank{'s' * (ranks != 1)}{where}", _moment(story.run.began)]
    if len(attempts) > 1:
        parts.append(f"{len(attempts)} attempts")
    return ", ".join(parts) + "."


def _outcome(story: Story) -> Html:
    metrics, best = story.metrics, story.settings.get("train.best_metric")
    wanted = next((f"{s}/{best}" for s in ("test", "validation") if f"{s}/{best}" in metrics), None)
    figures = {"steps": number(story.last_step)}
    if wanted:
        figures[wanted.replace("/", " ")] = _value(metrics[wanted])
    if rows := story.curves.get("train/rows_per_second"):
        figures["rows/s, median"] = number(round(median(value for _, value in rows)))
    for phase, seconds in (story.result.get("seconds") or {}).items():
        figures[f"{phase}, time"] = _duration(seconds)
    if model := story.result.get("model_uri"):
        figures["model"] = str(model)
    return Html(tiles(figures) + _evaluation(metrics))


def _evaluation(metrics: Mapping[str, float]) -> Html:
    rows = evaluation_rows(metrics)
    if not rows:
        return Html()
    names = {"reference_test": "logistic regression, test"}
    heads = [names.get(name, name) for name in rows[0]]
    lines = [[v if name == "metric" else _value(v) for name, v in row.items()] for row in rows]  # type: ignore[arg-type]
    return table(heads, lines, "names")


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
        chart("Headroom of the data", {"headroom": curves.get("train/data_headroom", [])}, marks),
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
        yield f"Headroom of the data: {number(headroom)}."
    if (share := middle.get("train/communication_fraction")) is not None:
        verdict = "ranks mostly compute." if share < 0.3 else "a strategy that sends less would pay."
        yield f"Ranks exchange gradients {percent(share)} of the time: {verdict}"
    if (share := middle.get("train/straggler_fraction")) is not None:
        verdict = "ranks are equally fast." if share < 0.1 else "see which rank is slow below."
        yield f"Ranks wait for the slowest of them {percent(share)} of the time: {verdict}"


def _attempts(story: Story) -> Html:
    rows = [
        (
            attempt.number,
            _moment(attempt.began) if attempt.began else "",
            _duration(attempt.ended - attempt.began) if attempt.began and attempt.ended else "",
            attempt.num_ranks,
            ", ".join(attempt.hosts),
            f"{attempt.first_step:,} → {attempt.last_step:,}",
            Html(f"<pre>{escape(_first_part(attempt.failure))}</pre>") if attempt.failure else "",
        )
        for attempt in story.attempts
    ]
    heads = ["attempt", "began", "took", "ranks", "hosts", "steps", "what went wrong"]
    return table(heads, rows) if rows else Html()


def _first_part(failure: str) -> str:
    """The logs are named in the attempt's directory, and in the error of the last one."""
    return failure.partition("\nFull logs:")[0][:2000]


def _incidents(story: Story) -> Html:
    """Slow ranks, rows that could not be read, checkpoints that could not be written."""
    slow = [
        (
            _moment(event["time"]),
            event["rank"],
            event["host"],
            "keeps up again"
            if event["is_over"]
            else f"{event['factor']:.1f} times the others' time: {event['cause']}",
        )
        for event in story.of_kind("straggler")
    ]
    masked = [
        (event["rank"], where, why)
        for event in story.of_kind("masked")
        for where, why in event["row_groups"].items()
    ]
    unsaved = [(event["step"], event["problem"]) for event in story.of_kind("checkpoint_failed")]
    counted = {
        "steps that were left out, for their loss or gradient was no number": "train/steps_skipped",
        "rows that had no weight, for they could not be read": "train/rows_masked",
    }
    sums = [(what, sum(value for _, value in story.curves.get(key, []))) for what, key in counted.items()]
    parts: list[tuple[str, list[str], Sequence[Sequence[object]]]] = [
        ("Slow ranks", ["when", "rank", "host", ""], slow),
        ("Row groups that could not be read", ["rank", "where", "why"], masked),
        ("Checkpoints that could not be written", ["step", "why"], unsaved),
        ("Left out", ["", "number"], [line for line in sums if line[1]]),
    ]
    return Html("".join(f"<h3>{title}</h3>{table(heads, rows)}" for title, heads, rows in parts if rows))


def _hosts(story: Story) -> Html:
    rows = [
        (host, name.replace("_", " "), show(mean), show(most))
        for host, values in story.load_of_hosts()
        for name, (mean, most) in values.items()
        for show in [_shown_as(name)]
    ]
    return table(["host", "", "mean", "highest"], rows, "names") if rows else Html()


def _shown_as(name: str) -> Callable[[float], str]:
    if name.endswith("_per_second"):
        return lambda value: f"{size(value)}/s"
    if name.endswith("_bytes"):
        return size
    return (lambda value: f"{value:.0f} %") if name.endswith("_percent") else number


def _configuration(story: Story) -> Html:
    settings = story.settings
    if not settings:
        return Html()
    usual = flatten(Config(pipeline="x").model_dump(mode="json"))
    other = [
        (key, _plain(value), _plain(usual[key]) if key in usual else "")
        for key, value in settings.items()
        if key != "pipeline" and (key not in usual or usual[key] != value)
    ]
    everything = details(
        "all settings", table(["key", "value"], [(k, _plain(v)) for k, v in settings.items()])
    )
    changed = (
        table(["key", "value", "default"], other, "names") if other else Html("<p>All as by default.</p>")
    )
    return Html(f"{changed}<p></p>{everything}")


def _dataset(story: Story) -> Html:
    dataset = story.result.get("dataset") or {}
    rows = [("fingerprint", story.spec.get("dataset", "")), ("path", dataset.get("path", ""))]
    rows += [(f"rows, {split}", number(count)) for split, count in (dataset.get("rows") or {}).items()]
    rows += [(f"quarantined, {k}", number(v)) for k, v in (dataset.get("quarantined") or {}).items()]
    return table(["", ""], [row for row in rows if row[1]])


def _places(story: Story) -> Html:
    result, run = story.result, story.run
    saved = story.of_kind("checkpoint")
    elsewhere = story.settings.get("storage.checkpoints")
    places = {
        "run directory": str(run.path),
        "checkpoints": str(run.checkpoints_in(str(elsewhere) if elsewhere else None)),
        "newest checkpoint": saved[-1]["path"] if saved else "none",
        "model": result.get("model_uri") or "not registered",
        "not published": result.get("unpublished"),
        "MLflow": story.mlflow.get("tracking_uri"),
        "MLflow run": result.get("run_id") or story.mlflow.get("run_id"),
        "continue it": None if story.status == FINISHED else "the same command with resume=true",
        "deliver to MLflow what it lacks": run.replay_command if story.is_undelivered else None,
    }
    return table(["", ""], [(k, Html(f"<code>{escape(str(v))}</code>")) for k, v in places.items() if v])


def _versions(story: Story) -> Html:
    tags = table(["", ""], sorted(story.tags.items())) if story.tags else Html()
    model = details("the model", f"<pre>{escape(story.model)}</pre>") if story.model else Html()
    return Html(f"{tags}<p></p>{model}") if tags or model else Html()


def _restarts(story: Story) -> list[int]:
    return [attempt.first_step for attempt in story.attempts[1:]]


def _charts(charts: list[Html]) -> Html:
    shown = "".join(charts)
    return Html(f'<div class="charts">{shown}</div>') if shown else Html()


def _value(value: float | None) -> str:
    return "" if value is None else number(value) if math.isfinite(value) else str(value)


def _plain(value: object) -> str:
    return "none" if value is None else str(value)


def _moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
