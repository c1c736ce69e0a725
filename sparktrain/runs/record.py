"""A run as its directory alone tells it: how it stands, with which settings, what came of it. No MLflow."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from sparktrain.config import Config
from sparktrain.errors import first_line
from sparktrain.runs.describe import flatten
from sparktrain.runs.directory import FINISHED, RunDirectory
from sparktrain.storage import read_json

STALE = "stale"  # its driver is gone, and left no result
RUNNING = "running"
UNSTARTED = "unstarted"  # it ended before it had settings

_LOWER_IS_BETTER = re.compile(r"(^|[/_])(loss|rmse|mae|mse|mape|error|perplexity|bits_per_byte|log_loss)$")
_HIGHER_IS_BETTER = re.compile(r"(^|[/_])(auroc|accuracy|average_precision|r2|f1|precision|recall|auc)$")
_NOT_SETTINGS = ("dataset", "resume")


@dataclass(frozen=True)
class RunRecord:
    """What the directory of a run says."""

    run: RunDirectory

    @property
    def name(self) -> str:
        return self.run.name

    @property
    def pipeline(self) -> str:
        return self.name.rsplit("-", 3)[0]

    @cached_property
    def result(self) -> Mapping[str, Any]:
        return _read(self.run.result_file)

    @cached_property
    def spec(self) -> Mapping[str, Any]:
        return _read(self.run.spec_file)

    @cached_property
    def status(self) -> str:
        """ "running", "stale", "unstarted", or what the result says: "finished", "failed", "killed"."""
        if self.run.is_led:
            return RUNNING
        if not self.spec:
            return UNSTARTED
        return str(self.result.get("status") or STALE)

    @property
    def started(self) -> datetime:
        return datetime.fromtimestamp(self.run.began, UTC)

    @property
    def seconds(self) -> float:
        """From its beginning to its last sign of life; of a finished one, what its phases took."""
        phases = self.result.get("seconds") or {}
        if self.status == FINISHED and phases:
            return float(sum(phases.values()))
        return max(self.run.last_sign - self.run.began, 0.0)

    @cached_property
    def steps(self) -> int:
        return int(self.result.get("steps") or 0) or self._last_step()

    @property
    def best_metric(self) -> str | None:
        return (self.spec.get("train") or {}).get("best_metric")

    @property
    def metrics(self) -> Mapping[str, float | None]:
        return self.result.get("metrics") or {}

    @property
    def best(self) -> float | None:
        """The best checkpoint's value of `best_metric`, on the validation split."""
        return self.metrics.get(f"validation/{self.best_metric}")

    @property
    def settings(self) -> dict[str, Any]:
        """What differs from the defaults, by dotted key."""
        defaults = flatten(Config(pipeline=self.pipeline).model_dump(mode="json"))
        given = flatten({key: value for key, value in self.spec.items() if key not in _NOT_SETTINGS})
        return {key: value for key, value in given.items() if defaults.get(key, _NO_VALUE) != value}

    @property
    def places(self) -> dict[str, str]:
        """Where to look, of what is there."""
        spec_storage = self.spec.get("storage") or {}
        found = {
            "directory": self.run.path,
            "report": self.run.report_file,
            "checkpoints": self.run.checkpoints_in(spec_storage.get("checkpoints")),
            "predictions": self.run.predictions,
        }
        tracked = _read(self.run.mlflow_file)
        links = {"mlflow": f"{tracked['tracking_uri']} run {tracked['run_id']}"} if tracked else {}
        logs = sorted(self.run.path.glob("attempt-*/*.log"))
        links |= {"logs": str(logs[-1].parent)} if logs else {}
        there = {name: path for name, path in found.items() if path.is_dir() or path.is_file()}
        return {name: str(path) for name, path in there.items()} | links

    @property
    def failures(self) -> dict[int, str]:
        """Why attempts ended before their time, by number."""
        numbers = range(1, self.run.next_attempt())
        read = {number: _read(self.run.failure_file(number)) for number in numbers}
        return {n: first_line(f.get("text") or f.get("error") or "") for n, f in read.items() if f}

    def to_dict(self) -> dict[str, Any]:
        return {
            "run": self.name,
            "pipeline": self.pipeline,
            "status": self.status,
            "started": self.started.isoformat(),
            "duration_seconds": self.seconds,
            "steps": self.steps,
            "best_metric": self.best_metric,
            "best": self.best,
            "model_uri": self.result.get("model_uri"),
            "attempts": self.run.num_attempts,
        }

    def _last_step(self) -> int:
        """The step that the newest events of rank 0 tell of."""
        segments = sorted(self.run.events.glob("a*-r000-*.jsonl"))[-3:]
        lines = [line for segment in segments for line in segment.read_text(encoding="utf-8").splitlines()]
        events = [json.loads(line) for line in lines if '"step"' in line]
        return max((int(e["step"]) for e in events if e.get("kind") in ("progress", "metrics")), default=0)


_NO_VALUE = object()


def records(root: Any, pipeline: str | None = None, status: str | None = None) -> list[RunRecord]:
    """The runs under a storage root, the newest first."""
    found = [RunRecord(run) for run in RunDirectory.all_in(root)]
    found = [record for record in found if pipeline in (None, record.pipeline)]
    return [record for record in found if status in (None, record.status)]


def different_settings(compared: Sequence[RunRecord]) -> dict[str, list[Any]]:
    """Settings, the dataset among them, that are not the same in all runs: a value each, None for none."""
    flat = [flatten({k: v for k, v in record.spec.items() if k != "resume"}) for record in compared]
    keys = sorted({key for settings in flat for key in settings})
    values = {key: [settings.get(key) for settings in flat] for key in keys}
    return {key: found for key, found in values.items() if any(value != found[0] for value in found)}


def all_metrics(compared: Sequence[RunRecord]) -> dict[str, list[float | None]]:
    """Every metric that a run has: a value each, None where a run lacks it."""
    keys = sorted({key for record in compared for key in record.metrics})
    return {key: [record.metrics.get(key) for record in compared] for key in keys}


def best_of(metric: str, values: Sequence[float | None]) -> int | None:
    """Which of the values is better than all others; None: nobody knows which way is better, or two are."""
    given = [value for value in values if value is not None]
    if _LOWER_IS_BETTER.search(metric):
        best = min(given, default=None)
    elif _HIGHER_IS_BETTER.search(metric):
        best = max(given, default=None)
    else:
        return None
    return values.index(best) if best is not None and given.count(best) == 1 and len(given) > 1 else None


def mark_killed(record: RunRecord) -> bool:
    """Give a stale run the end that its driver could not give it; `replay` tells MLflow.

    Returns:
        False if it came back to life, or came to an end, since it was looked at: it is left as it is.
    """
    run, seen = record.run, _last_written(record.run)
    if run.is_led:  # before the lock's text, which tells of a driver on another host, is written over
        return False
    with run.only_reporter() as alone:
        if not alone or _read(run.result_file).get("status") or _last_written(run) > seen:
            return False
        _write_killed(record)
    return True


def _last_written(run: RunDirectory) -> float:
    """As `last_sign`, without the directory itself, which taking the lock changes."""
    return max(p.stat().st_mtime for p in (run.events, *run.path.glob("*.json")))


def _write_killed(record: RunRecord) -> None:
    run, spec = record.run, record.spec
    fingerprint = str(spec.get("dataset"))
    dataset = run.root / "datasets" / record.pipeline / fingerprint
    run.write_result(
        {
            "status": "killed",
            "run_id": _read(run.mlflow_file).get("run_id"),
            "run_dir": str(run.path),
            "dataset": {"path": str(dataset), "fingerprint": fingerprint, "rows": {}, "quarantined": {}},
            "world_size": (spec.get("train") or {}).get("ranks", 0),
            "attempts": run.num_attempts,
            "steps": record.steps,
            "metrics": {},
            "model_uri": None,
            "unpublished": None,
            "seconds": {},
            "error": "the driver was gone, and left no result",
        }
    )


def _read(path: Any) -> Mapping[str, Any]:
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
