"""Several datasets in one stream, by weight: each lane belongs to one of them, as the schedule has it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sparktrain.dataset.load import OnBadData, Source
from sparktrain.dataset.plan import LaneShare, Plan
from sparktrain.dataset.read import Verify
from sparktrain.dataset.schedule import Feed, Origins, Segment
from sparktrain.dataset.where import Where
from sparktrain.errors import ConfigError, DatasetsDiffer, NameUnknown
from sparktrain.world import World

if TYPE_CHECKING:
    from sparktrain.dataset.dataset import Dataset
    from sparktrain.dataset.stream import Stream

Weights = Mapping[str, float]
_SECTION = "the mixture's arguments"


def mix(
    datasets: Mapping[str, Dataset],
    weights: Weights | Sequence[tuple[int, Weights]],
    global_batch_size: int,
    *,
    split: str = "train",
    num_lanes: int = 32,
    steps_per_epoch: int | None = None,
    world: World | None = None,
    seed: int = 0,
    columns: Sequence[str] | None = None,
    pack: Mapping[str, Sequence[str]] | None = None,
    pad: Mapping[str, int] | None = None,
    where: Mapping[str, Where] | None = None,
    shuffle: bool = True,
    num_threads: int = 2,
    memory_bytes: int | None = None,
    on_bad_data: OnBadData = "fail",
    verify: Verify = "first",
) -> Stream:
    """Stream several datasets at once, in batches that are the same at any world size.

    Each global batch takes its lanes from the datasets in proportion to their weights, rounded to whole lanes
    with at least one for every weight above 0, and spread so that every rank has some of each. A dataset runs
    through epochs of its own: no row of it comes twice before (nearly) all of it have come. Batches carry
    `row_source` (int32): the place of a row's dataset in `datasets`.

    Args:
        datasets: by a name of your choice. They must have been prepared with the same fitted features
            (`prepare(…, fitted=open_dataset(first).features)`) and layout: else the same number would mean
            different things in one batch.
        weights: by name, of any sum; or a schedule [(step, weights), …] whose first step is 0: weights hold
            from that step of the training on (not of the epoch). A dataset whose share changes begins a new
            epoch of its own.
        global_batch_size: rows of a step over all ranks.
        split: of every dataset.
        num_lanes: places that each global batch mixes, over all datasets.
        steps_per_epoch: how many steps count as an epoch; None: the rows of all datasets, once.
        where: by name: rows to take of that dataset; see `Dataset.stream`, like the rest.

    Raises:
        ConfigError: for arguments that don't fit together.
        DatasetsDiffer: when features or layout are not the same.
    """
    from sparktrain.dataset.inputs import make_input
    from sparktrain.dataset.stream import Stream  # it needs torch

    _check_equal(datasets)
    names = list(datasets)
    phases = _phases(names, weights, num_lanes)
    for name in where or {}:
        if name not in names:
            raise NameUnknown("dataset", name, names, "the mixture")
    inputs = []
    for name, dataset in datasets.items():
        dataset.num_rows(split)  # refuses a split that does not exist
        condition = (where or {}).get(name)
        given = make_input(
            dataset.path,
            dataset.manifest,
            split,
            dataset.seen,
            seed=seed,
            shuffle=shuffle,
            where=condition,
            verify=verify,
            name=name,
        )
        inputs.append(given)
        num_rows = int(given.source.row_group_rows.sum())
        most = max(phase.lanes.count(names.index(name)) for phase in phases)
        if num_rows < most * global_batch_size // num_lanes:
            problem = (
                f"`{name}` has {num_rows:,} rows in {split}, and is to give "
                f"{most * global_batch_size // num_lanes:,} to each step; give it less weight, or take a "
                "smaller global_batch_size"
            )
            raise ConfigError([problem], _SECTION)
    if steps_per_epoch is None:
        rows = sum(int(given.source.row_group_rows.sum()) for given in inputs)
        steps_per_epoch = max(rows // global_batch_size, 1)
    if steps_per_epoch < 1:
        raise ConfigError([f"steps_per_epoch is {steps_per_epoch}; give 1 or more"], _SECTION)
    plan = Plan(steps_per_epoch * global_batch_size, global_batch_size, num_lanes)
    first, *_ = datasets.values()
    return Stream(
        inputs,
        Mixture(plan, [given.source for given in inputs], names, phases),
        first.delivery(columns, pack, pad),
        world=world or World(),
        num_threads=num_threads,
        memory_bytes=memory_bytes,
        on_bad_data=on_bad_data,
    )


class Phase(NamedTuple):
    """From `first_step` of the training on, which source each lane belongs to."""

    first_step: int
    lanes: tuple[int, ...]


class _Run(NamedTuple):
    """Steps of the training, from the first to the last (not included), over which a share stays the same."""

    first: int
    last: float
    plan: Plan
    epoch: int  # of the source, that begins with `first`


@dataclass(frozen=True, eq=False)
class Mixture:
    """A schedule over several sources; see `mix`.

    Attributes:
        plan: of the stream; its rows are steps times rows.
        sources: one for each dataset.
        names: theirs.
        phases: in their order.
    """

    plan: Plan
    sources: Sequence[Source]
    names: Sequence[str]
    phases: Sequence[Phase]

    @property
    def meaning(self) -> dict[str, Any]:
        counts = [
            [phase.first_step, [phase.lanes.count(number) for number in range(len(self.names))]]
            for phase in self.phases
        ]
        sources = {name: dict(s.meaning) for name, s in zip(self.names, self.sources, strict=True)}
        return {
            "steps_per_epoch": self.plan.steps_per_epoch,
            "datasets": list(self.names),
            "lanes": counts,
            "sources": sources,
        }

    def stretches(
        self, epoch: int, first_step: int, shares: Sequence[LaneShare]
    ) -> tuple[list[int], list[list[Feed]]]:
        begin, num_steps = epoch * self.plan.steps_per_epoch, self.plan.steps_per_epoch
        changes = [phase.first_step - begin for phase in self.phases]
        borders = [first_step, *(step for step in changes if first_step < step < num_steps), num_steps]
        return borders, [[self._feed(begin, step, share) for share in shares] for step in borders[:-1]]

    def origins(self, epoch: int, step: int) -> Origins:
        at = epoch * self.plan.steps_per_epoch + step
        source_of, row_groups, rows = (np.zeros(self.plan.global_batch_size, np.int64) for _ in range(3))
        lane_rows = self.plan.lane_rows
        lanes = np.array(self._phase(at).lanes)
        for number, source in enumerate(self.sources):
            if number not in lanes:
                continue
            run = self._run(number, at)
            passed, inside = divmod(at - run.first, run.plan.steps_per_epoch)
            positions, _ = run.plan.global_positions(inside)
            here = np.repeat(lanes == number, lane_rows)
            source_of[here] = number
            located = source.locate(run.epoch + passed, run.plan.num_lanes, positions)
            row_groups[here], rows[here] = located
        return Origins(source_of, row_groups, rows, np.zeros(len(rows), np.bool_))

    def _feed(self, begin: int, step: int, share: LaneShare) -> Feed:
        """Return what feeds a lane at a step of the epoch that begins at the step `begin` of the training."""
        lanes = self._phase(begin + step).lanes
        number = lanes[share.lane]
        run = self._run(number, begin + step)
        num_steps = run.plan.steps_per_epoch

        def segments(first: int, last: int) -> Iterator[Segment]:
            while first < last:
                passed, inside = divmod(begin + first - run.first, num_steps)
                count = min(num_steps - inside, last - first)
                yield Segment(run.epoch + passed, inside, inside + count, first - inside)
                first += count

        return Feed(number, run.plan, share._replace(lane=lanes[: share.lane].count(number)), segments)

    def _phase(self, at: int) -> Phase:
        return [phase for phase in self.phases if phase.first_step <= at][-1]

    def _run(self, source: int, at: int) -> _Run:
        return [run for run in self._runs[source] if run.first <= at][-1]

    @cached_property
    def _runs(self) -> list[list[_Run]]:
        """For each source, the stretches of the training in which its share stays the same."""
        ends = [*(phase.first_step for phase in self.phases[1:]), math.inf]
        every = []
        for number, source in enumerate(self.sources):
            num_rows = int(source.row_group_rows.sum())
            runs: list[_Run] = []
            epoch = 0
            for phase, end in zip(self.phases, ends, strict=True):
                count = phase.lanes.count(number)
                if runs and runs[-1].last == phase.first_step and runs[-1].plan.num_lanes == count:
                    runs[-1] = runs[-1]._replace(last=end)
                    continue
                if runs:
                    seen = int(min(runs[-1].last, phase.first_step)) - runs[-1].first
                    epoch = runs[-1].epoch - seen // -runs[-1].plan.steps_per_epoch
                if count:
                    plan = Plan(num_rows, count * self.plan.lane_rows, count)
                    runs.append(_Run(phase.first_step, end, plan, epoch))
            every.append(runs)
        return every


def share_lanes(weights: Sequence[float], num_lanes: int) -> tuple[int, ...]:
    """Give each lane to one of the weighted: in proportion, at least one for each above 0, evenly spread."""
    total = sum(weights)
    wanted = [weight / total * num_lanes for weight in weights]
    counts = [max(math.floor(share), int(weight > 0)) for share, weight in zip(wanted, weights, strict=True)]
    while sum(counts) != num_lanes:
        missing = 1 if sum(counts) < num_lanes else -1
        able = [i for i, weight in enumerate(weights) if weight > 0 and counts[i] + missing > 0]
        furthest = max(able, key=lambda i: (missing * (wanted[i] - counts[i]), -i))
        counts[furthest] += missing
    places = [((j + 0.5) / count, number) for number, count in enumerate(counts) for j in range(count)]
    return tuple(number for _, number in sorted(places))


def _phases(
    names: Sequence[str], weights: Weights | Sequence[tuple[int, Weights]], num_lanes: int
) -> list[Phase]:
    schedule = [(0, weights)] if isinstance(weights, Mapping) else list(weights)
    problems = []
    firsts = [step for step, _ in schedule]
    are_steps = all(isinstance(step, int) for step in firsts)
    if not firsts or not are_steps or firsts[0] != 0 or firsts != sorted(set(firsts)):
        problems.append(
            f"the schedule's steps are {firsts}; begin with 0, and let each be larger than the last"
        )
    for step, by_name in schedule:
        for name in by_name:
            if name not in names:
                raise NameUnknown("dataset", name, names, "the mixture")
        values = [by_name.get(name, 0) for name in names]
        are_numbers = all(isinstance(value, int | float) and 0 <= value < math.inf for value in values)
        used = sum(value > 0 for value in values) if are_numbers else 0
        if not used or not math.isfinite(sum(values)):
            given = f"the weights from step {step} on are {dict(by_name)}"
            problems.append(f"{given}; give numbers, one above 0")
        elif used > num_lanes:
            problems.append(f"num_lanes is {num_lanes}, fewer than the {used} datasets; give each a lane")
    if problems:
        raise ConfigError(problems, _SECTION)
    return [
        Phase(step, share_lanes([by_name.get(name, 0) for name in names], num_lanes))
        for step, by_name in schedule
    ]


def _check_equal(datasets: Mapping[str, Dataset]) -> None:
    if not datasets:
        raise ConfigError(["datasets is empty; give one or more"], _SECTION)
    (name, first), *others = datasets.items()
    for other, dataset in others:
        a, b = first.manifest, dataset.manifest
        if a.columns != b.columns or a.layout != b.layout:
            raise DatasetsDiffer(name, other, "columns or layout")
        if a.features_sha256 != b.features_sha256:
            raise DatasetsDiffer(name, other, "fitted features")
