"""What a dataset's manifest and footers tell about training on it, in figures and findings; no page is read.

Parquet that sparktrain did not write is looked at too: how it is laid out, and how many steps it would make.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from sparktrain.dataset.dataset import LATEST_FILE, Dataset, open_dataset
from sparktrain.dataset.figures import (
    Parts,
    RankFigures,
    SplitFigures,
    filled_row_groups,
    mixed_row_groups,
)
from sparktrain.dataset.findings import (
    Advice,
    Finding,
    bytes_per_row,
    judge_columns,
    judge_memory,
    judge_mixing,
    judge_parts,
    judge_row_groups,
    judge_steps,
)
from sparktrain.dataset.footers import (
    ColumnLayout,
    Footer,
    describe_columns,
    open_plain,
    plain_files,
    read_footers,
)
from sparktrain.dataset.manifest import FEATURES_FILE, MANIFEST_FILE
from sparktrain.dataset.plan import Plan
from sparktrain.dataset.read import SchemaDifference, count_footer_chunks, open_part
from sparktrain.errors import ConfigError, DatasetInvalid
from sparktrain.storage import AnyPath, local, path_of

PLAIN_SPLIT = "all"  # what the rows of Parquet without manifest are called
_TRAINED_SPLIT = "train"
_SEVERITY = ("error", "warning", "ok")


@dataclass(frozen=True)
class Report:
    """What `check_dataset` found.

    Attributes:
        path: of the dataset.
        fingerprint: None without a manifest.
        global_batch_size: that was asked about.
        num_lanes: likewise; None without a manifest.
        splits: in the manifest's order; without one a single split, "all".
        ranks: by gang size; () without a manifest.
        decoded_bytes_per_row: in memory, over all columns.
        stored_bytes_per_row: in the files.
        columns: as they are stored.
        findings: errors first, then warnings.
    """

    path: str
    fingerprint: str | None
    global_batch_size: int
    num_lanes: int | None
    splits: tuple[SplitFigures, ...]
    ranks: tuple[RankFigures, ...]
    decoded_bytes_per_row: float
    stored_bytes_per_row: float
    columns: tuple[ColumnLayout, ...]
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """What keeps a training from using it; () when it is sound."""
        return tuple(finding for finding in self.findings if finding.level == "error")

    def to_dict(self) -> dict[str, Any]:
        """The attributes as JSON, which `sparktrain check --json` prints beside "status".

            {"path", "fingerprint", "global_batch_size", "num_lanes", "decoded_bytes_per_row",
             "stored_bytes_per_row",
             "splits": [{"name", "num_parts", "num_row_groups", "num_rows", "steps_per_epoch",
                         "num_rows_dropped"}],
             "ranks": [{"num_ranks", "min_rows_per_step", "max_rows_per_step", "num_lanes",
                        "memory_bytes"}],
             "columns": [{"name", "type", "is_float", "nullable", "is_list", "list_length", "dictionary",
                          "dictionary_saves", "encodings", "codecs", "decoded_bytes_per_row",
                          "stored_bytes_per_row"}],
             "findings": [{"level": "error" | "warning" | "ok", "what", "found", "way_out"}]}

        "status" is "failed" when a finding is an error, else "finished".
        """
        return {**asdict(self), "findings": [finding._asdict() for finding in self.findings]}


def check_dataset(
    path: AnyPath | str, global_batch_size: int, num_lanes: int, ranks: Sequence[int] = (1, 2, 4, 8)
) -> Report:
    """Look at a dataset, or at any Parquet, by its manifest and footers.

    Args:
        path: a dataset's directory, the directory above it, a directory of Parquet files, or one such file; a
            dataset may lie in an object store.
        global_batch_size: rows of a step over all ranks.
        num_lanes: places of the epoch's order that each global batch mixes; means nothing without a manifest.
        ranks: sizes of gangs to tell about; likewise.

    Raises:
        DatasetInvalid: when nothing is there to look at; what is damaged comes as findings.
        ConfigError: for numbers that don't fit together.
    """
    directory = path_of(path)
    if not any((directory / name).is_file() for name in (MANIFEST_FILE, LATEST_FILE)):
        return _check_plain(
            local(directory, "check of Parquet files without a manifest"),
            Plan(0, global_batch_size, 1).global_batch_size,
        )
    Plan(0, global_batch_size, num_lanes)  # refuses lanes that don't divide it
    if wrong := [str(size) for size in ranks if not 1 <= size <= global_batch_size]:
        problem = (
            f"ranks: {', '.join(wrong)}; allowed are 1 to {global_batch_size}, a row of each step for each"
        )
        raise ConfigError([problem], "the arguments")
    return _check_prepared(open_dataset(directory), global_batch_size, num_lanes, ranks)


def _check_prepared(dataset: Dataset, global_batch_size: int, num_lanes: int, ranks: Sequence[int]) -> Report:
    manifest = dataset.manifest
    listed = {part.path: part for split in manifest.splits.values() for part in split.parts}
    look = _look(list(listed), lambda name: open_part(dataset.path, listed[name]), manifest.schema)
    splits: dict[str, Parts] = {_TRAINED_SPLIT: {}}  # first of all
    splits |= {name: {part.path: part.row_groups for part in s.parts} for name, s in manifest.splits.items()}
    row_groups = filled_row_groups(splits[_TRAINED_SPLIT])
    plan = Plan(sum(row_groups), global_batch_size, num_lanes)
    settings = "prepare.rows_per_row_group={}", "prepare.num_parts={}"
    advice = Advice(*settings, global_batch_size, num_lanes, look.bytes_per_row)
    trained = manifest.splits[_TRAINED_SPLIT].parts if _TRAINED_SPLIT in manifest.splits else ()
    footers = count_footer_chunks(trained, len(manifest.schema))
    sizes = row_groups, look.bytes_per_row, footers
    gangs = [RankFigures.of(num_ranks, plan, *sizes) for num_ranks in ranks]

    findings = [*look.errors, *_features_errors(dataset)]
    findings.append(judge_steps(_TRAINED_SPLIT, plan.num_rows, global_batch_size))
    if row_groups:
        findings.append(judge_mixing(row_groups, mixed_row_groups(plan, row_groups), advice))
    if gangs:
        findings.append(judge_memory({gang.num_ranks: gang.memory_bytes for gang in gangs}))
    way_out = "prepare it again: its parts come out even"
    findings += _layout_findings(splits[_TRAINED_SPLIT], look.columns, advice, way_out)
    figures = [
        SplitFigures.of(name, parts, global_batch_size, "drop" if name == _TRAINED_SPLIT else "mask")
        for name, parts in splits.items()
    ]
    return _report(dataset.path, dataset.fingerprint, advice, figures, gangs, look.columns, findings)


def _check_plain(path: Path, global_batch_size: int) -> Report:
    directory, names = plain_files(path)
    look = _look(names, lambda name: open_plain(directory, name), None)
    parts = {footer.path: footer.row_groups for footer in look.footers}
    settings = (
        "row_group_size={0} (pyarrow) or parquet.block.row.count.limit={0} (Spark)",
        "df.repartition({})",
    )
    advice = Advice(*settings, global_batch_size, 0, look.bytes_per_row)
    figures = SplitFigures.of(PLAIN_SPLIT, parts, global_batch_size, "drop")
    findings = [*look.errors]
    if look.footers:
        findings.append(judge_steps(PLAIN_SPLIT, figures.num_rows, global_batch_size))
    findings += _layout_findings(
        parts, look.columns, advice, "df.repartition(n), which deals rows out evenly"
    )
    findings.append(Finding("ok", "page checksums", "unknown: footers don't tell; prepare writes them"))
    return _report(path, None, advice, [figures], [], look.columns, findings)


class _Look(NamedTuple):
    footers: list[Footer]
    columns: tuple[ColumnLayout, ...]
    errors: list[Finding]

    @property
    def bytes_per_row(self) -> float:
        return bytes_per_row(self.columns)[0]


def _look(
    names: Sequence[str], open_file: Callable[[str], pq.ParquetFile], schema: pa.Schema | None
) -> _Look:
    """Read all footers; without a `schema`, all files must have that of the first sound one."""
    footers, problems = read_footers(names, open_file)
    way_out = "write it again" if schema is None else "prepare it again"
    errors = [
        Finding("error", name, problem.removeprefix(f"{name} "), way_out)
        for name, problem in problems.items()
    ]
    if footers:
        errors += _schema_errors(footers, footers[0].schema if schema is None else schema, way_out)
    return _Look(footers, describe_columns(footers, open_file), errors)


def _schema_errors(footers: Sequence[Footer], wanted: pa.Schema, way_out: str) -> Iterator[Finding]:
    differing: dict[SchemaDifference, list[str]] = {}
    for footer in footers:
        if not footer.schema.equals(wanted):  # which is quick; the order of columns does not matter
            differing.setdefault(SchemaDifference.between(footer.schema, wanted), []).append(footer.path)
    for difference, paths in differing.items():
        lines = [f"missing column `{name}`" for name in difference.missing]
        lines += [f"unexpected column `{name}`" for name in difference.unexpected]
        lines += [f"column `{name}` is {given}, expected {want}" for name, given, want in difference.retyped]
        if lines:
            yield Finding("error", "schema", f"{', '.join(lines)} in {', '.join(paths)}", way_out)


def _features_errors(dataset: Dataset) -> Iterator[Finding]:
    try:
        _ = dataset.features
    except DatasetInvalid as error:
        found, _, way_out = str(error).partition(" Way out: ")
        yield Finding("error", FEATURES_FILE, found, way_out)


def _layout_findings(
    parts: Parts, columns: Sequence[ColumnLayout], advice: Advice, even: str
) -> Iterator[Finding]:
    row_groups = filled_row_groups(parts)
    if row_groups and advice.bytes_per_row:
        yield judge_row_groups(row_groups, len(parts), advice)
        yield judge_parts({path: sum(rows) for path, rows in parts.items()}, even)
        yield from judge_columns(columns)


def _report(
    path: AnyPath,
    fingerprint: str | None,
    advice: Advice,
    splits: Sequence[SplitFigures],
    ranks: Sequence[RankFigures],
    columns: Sequence[ColumnLayout],
    findings: Sequence[Finding],
) -> Report:
    return Report(
        str(path),
        fingerprint,
        advice.global_batch_size,
        advice.num_lanes or None,
        tuple(splits),
        tuple(ranks),
        *bytes_per_row(columns),
        columns=tuple(columns),
        findings=tuple(sorted(findings, key=lambda finding: _SEVERITY.index(finding.level))),
    )
