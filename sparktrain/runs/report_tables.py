"""The tables of a run's report: attempts, incidents, hosts, configuration, dataset, places and versions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from html import escape

from sparktrain.config import Config
from sparktrain.dataset.card_html import Html, details, number, size, table
from sparktrain.runs.describe import flatten
from sparktrain.runs.directory import FINISHED
from sparktrain.runs.in_words import duration
from sparktrain.runs.story import Story


def attempts_section(story: Story) -> Html:
    """When and where each attempt ran, and why it ended before its time."""
    rows = [
        (
            attempt.number,
            moment(attempt.began) if attempt.began else "",
            duration(attempt.ended - attempt.began) if attempt.began and attempt.ended else "",
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


def incidents_section(story: Story) -> Html:
    """Slow ranks, rows that could not be read, checkpoints that could not be written."""
    slow = [
        (
            moment(event["time"]),
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


def hosts_section(story: Story) -> Html:
    """What each host was busy with."""
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


def configuration_section(story: Story) -> Html:
    """What differs from the defaults; all of it folded away."""
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


def dataset_section(story: Story) -> Html:
    """What was trained on."""
    dataset = story.result.get("dataset") or {}
    rows = [("fingerprint", story.spec.get("dataset", "")), ("path", dataset.get("path", ""))]
    rows += [(f"rows, {split}", number(count)) for split, count in (dataset.get("rows") or {}).items()]
    rows += [(f"quarantined, {k}", number(v)) for k, v in (dataset.get("quarantined") or {}).items()]
    return table(["", ""], [row for row in rows if row[1]])


def places_section(story: Story) -> Html:
    """Where everything lies, and how to go on."""
    result, run = story.result, story.run
    saved = story.of_kind("checkpoint")
    elsewhere = story.settings.get("storage.checkpoints")
    places = {
        "run directory": str(run.path),
        "checkpoints": str(run.checkpoints_in(str(elsewhere) if elsewhere else None)),
        "newest checkpoint": saved[-1]["path"] if saved else "none",
        "best checkpoint": story.outcome.get("best"),
        "model": result.get("model_uri") or "not registered",
        "not published": result.get("unpublished"),
        "MLflow": story.mlflow.get("tracking_uri"),
        "MLflow run": result.get("run_id") or story.mlflow.get("run_id"),
        "continue it": None if story.status == FINISHED else "the same command with resume=true",
        "deliver to MLflow what it lacks": run.replay_command if story.is_undelivered else None,
    }
    return table(["", ""], [(k, Html(f"<code>{escape(str(v))}</code>")) for k, v in places.items() if v])


def versions_section(story: Story) -> Html:
    """With what it ran, and the model as text."""
    tags = table(["", ""], sorted(story.tags.items())) if story.tags else Html()
    model = details("the model", f"<pre>{escape(story.model)}</pre>") if story.model else Html()
    return Html(f"{tags}<p></p>{model}") if tags or model else Html()


def _plain(value: object) -> str:
    return "none" if value is None else str(value)


def moment(seconds: float) -> str:
    """Seconds since 1970 as people write a time."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
