"""What each rank of a training gang runs: open the dataset, loop, leave predictions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sparktrain.config import DataConfig, TrainConfig
from sparktrain.dataset import open_dataset
from sparktrain.faults import FaultPlan
from sparktrain.runs.directory import RunDirectory
from sparktrain.runs.events import EventWriter
from sparktrain.runs.host_metrics import HostMetrics
from sparktrain.storage import AnyPath
from sparktrain.training.checkpoint import open_checkpoint
from sparktrain.training.evaluate import Columns
from sparktrain.training.loop import Loop
from sparktrain.training.profile import StepProfiler
from sparktrain.training.task import TrainTask
from sparktrain.world import World


@dataclass(frozen=True)
class RunSpec:
    """All that a rank is told about a run; frozen and picklable.

    Attributes:
        run_dir: absolute, seen by driver and ranks.
        dataset: directory of the dataset, likewise, or where it lies in an object store.
        resume_from: a checkpoint's directory, the same for every rank; None: from the start.
        data: how the dataset is read.
        checkpoints: where they lie; None: in the run's directory.
        faults: what is to go wrong, in tests.
        system_metrics_seconds: between two looks at a host's CPU and memory; None: none are taken.
    """

    run_dir: Path
    dataset: AnyPath
    task: TrainTask
    config: TrainConfig
    resume_from: AnyPath | None
    data: DataConfig = field(default_factory=DataConfig)
    checkpoints: AnyPath | None = None
    faults: FaultPlan | None = None
    system_metrics_seconds: float | None = None


def train_rank(spec: RunSpec) -> dict[str, Any]:
    """Train this rank's share of a run.

    Returns:
        {"steps": int, "metrics": {name: value}, "best": name of the best checkpoint}, the same on every rank.
    """
    world = World.from_environment()
    run = RunDirectory(spec.run_dir)
    saved = open_checkpoint(spec.resume_from) if spec.resume_from else None
    dataset = open_dataset(spec.dataset, reader=spec.data.reader)
    with EventWriter(run.events, world.rank, world.attempt) as emit:
        checkpoints = spec.checkpoints or run.checkpoints
        profiler = StepProfiler(spec.config.profile_steps, world, run.profile)
        loop = Loop(
            spec.task, dataset, spec.config, world, checkpoints, emit, spec.data, spec.faults, profiler
        )
        with _host_metrics(spec, run, world, emit), closing(profiler):
            outcome = loop.run(saved)
    test = outcome.test
    if test is not None and test.prediction is not None and test.target is not None:
        name = "probability" if dataset.features.has_binary_target else "prediction"
        columns: dict[str, Columns] = {"row_id": test.row_id, name: test.prediction, "target": test.target}
        write_predictions(columns, _predictions_file(run, world.rank))
        if world.is_first:
            _delete_predictions_from(world.size, run)
    return {"steps": outcome.steps, "metrics": outcome.metrics, "best": outcome.best.name}


def _host_metrics(
    spec: RunSpec, run: RunDirectory, world: World, emit: EventWriter
) -> AbstractContextManager[object]:
    """One rank of a host looks after all of it."""
    if spec.system_metrics_seconds is None or world.local_rank:
        return nullcontext()
    return HostMetrics(emit, run.began, spec.system_metrics_seconds)


def write_predictions(columns: Mapping[str, Columns], path: Path) -> None:
    """Write a row for each row of the split; what is a dict by target becomes a struct."""
    pq.write_table(pa.table({name: _column(values) for name, values in columns.items()}), path)


def _column(values: Columns) -> pa.Array:
    """Return a column with one number a row, or a list of a fixed length; a dict becomes a struct."""
    if isinstance(values, Mapping):
        columns = {name: _column(column) for name, column in values.items()}
        return pa.StructArray.from_arrays(list(columns.values()), names=list(columns))
    column = pa.array(values.ravel())
    if values.ndim > 1:
        column = pa.FixedSizeListArray.from_arrays(column, math.prod(values.shape[1:]))
    return column


def _predictions_file(run: RunDirectory, rank: int) -> Path:
    return run.predictions / f"test-rank-{rank:03d}.parquet"


def _delete_predictions_from(size: int, run: RunDirectory) -> None:
    """Delete what an earlier attempt on more ranks left: those rows are in our files now."""
    rank = size
    while (file := _predictions_file(run, rank)).exists():
        file.unlink()
        rank += 1
