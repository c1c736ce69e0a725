"""append: new rows become a new version of a dataset, with the statistics that its rows were made with."""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from sparktrain.config import PrepareConfig
from sparktrain.dataset import Dataset, open_dataset
from sparktrain.dataset.drift import ColumnDrift, compare
from sparktrain.dataset.manifest import EXAMPLES_FILE, FEATURES_FILE, Manifest, Split
from sparktrain.dataset.statistics import CodeCounts, Statistics, TargetStatistics
from sparktrain.errors import DatasetInvalid, SchemaMismatch
from sparktrain.preparation.build import fingerprint, sift, write_description
from sparktrain.preparation.check import check_again
from sparktrain.preparation.clean import ALREADY_THERE, Demands, mark_broken_rules, rule_names
from sparktrain.preparation.describe import statistics_of
from sparktrain.preparation.fit import check_sizes, wanted_again
from sparktrain.preparation.rules import RULE_COLUMN, Rule, size_rules
from sparktrain.preparation.split import IS_THERE_COLUMN, ROW_ID_COLUMN, SPLITS, add_split
from sparktrain.preparation.spooling import QUARANTINE
from sparktrain.preparation.staging import publish, staging_directory
from sparktrain.preparation.survey import Survey
from sparktrain.preparation.write import Written, write_parts
from sparktrain.storage import local

logger = logging.getLogger(__name__)


def append(dataset: Dataset, df: DataFrame, *, rules: Sequence[Rule] = ()) -> Dataset:
    """Add the rows of `df` to `dataset` as a new version beside it; the old one stays as it is.

    The new version shares the old parts (hard links; copies where the file system has none). Key, features,
    split, layout, codec and tolerance are those that the dataset was prepared with. Where it has a key, rows
    whose key it already holds are quarantined as `already_there`, so that the same rows again add none. How
    far the new rows are from those that the features were fitted on stands in the card, as the population
    stability index of each column.

    Args:
        dataset: to grow.
        df: raw rows, with the columns that the dataset was prepared from.
        rules: as they were given to `prepare`.

    Returns:
        The new version, which is the newest of its name from now on.

    Raises:
        DatasetInvalid: it is not the newest version of its name, or of packed texts.
        DataError: as `prepare` does; the dataset is as it was then.
        NotLocal: it lies in an object store.
    """
    home = _home(dataset)
    _check_can_grow(dataset)
    key = [name for name, _ in dataset.manifest.key]
    config = PrepareConfig.model_validate(dataset.manifest.prepare)
    fitted, demands = dataset.features, Demands.of(dataset.features, config.split)
    types = check_again(df, fitted, key, config.split)
    _check_key(df, dict(dataset.manifest.key))
    rules = [*rules, *size_rules(fitted.features, types)]
    marked = add_split(mark_broken_rules(df, rules, demands), key, config.split)
    if key:
        marked = _without_known(marked, dataset)
    wanted = wanted_again(fitted, types)
    names = [*rule_names(df, rules, demands), ALREADY_THERE]
    with staging_directory(home) as staging:
        logger.info("reading, shuffling and counting the new rows")
        found = sift(df, marked, names, wanted, fitted.features, staging, config, tolerated=[ALREADY_THERE])
        check_sizes(fitted, found)
        logger.info("writing %s new rows", f"{found.rows_kept:,}")
        spark, columns = df.sparkSession, [w.column for w in wanted]
        written = write_parts(spark, found.spools, columns, fitted, staging, config)
        new = statistics_of(found, wanted, fitted, written)
        _share(dataset, staging)
        manifest = _manifest(dataset, found, written, config)
        reference = Statistics.load(dataset.path)
        drift = compare(reference, new, fitted)
        _warn(drift)
        write_description(staging, manifest, fitted, _merged(reference, new), drift)
        _check_is_newest(dataset)  # another append may have been faster
        return open_dataset(publish(staging))


def _home(dataset: Dataset) -> Path:
    return local(dataset.path, "append").parent


def _check_can_grow(dataset: Dataset) -> None:
    dataset.verify()
    _check_is_newest(dataset)
    if dataset.features.packed is not None:
        # a block is of several rows, so that nobody could tell which rows are there already
        raise DatasetInvalid(str(dataset.path), "it is of packed texts, which can't be appended to")


def _check_is_newest(dataset: Dataset) -> None:
    """Two versions of one origin would each lack the other's rows."""
    home = _home(dataset)
    newest = open_dataset(home)
    if newest.fingerprint != dataset.fingerprint:
        problem = f"it is not the newest version any more, which is {newest.fingerprint}"
        way_out = f"append to open_dataset({str(home)!r})"
        raise DatasetInvalid(str(dataset.path), problem, way_out)


def _check_key(df: DataFrame, key: Mapping[str, str]) -> None:
    """Refuse a key of other types: the same value would hash to another row, and to another split."""
    given = {name: df.schema[name].dataType.simpleString() for name in key}
    retyped = {
        name: (given[name], f"{kind}, as the key was") for name, kind in key.items() if given[name] != kind
    }
    if retyped:
        raise SchemaMismatch("the rows to append", retyped=retyped, way_out="cast the key's columns")


def _without_known(marked: DataFrame, dataset: Dataset) -> DataFrame:
    """Mark the rows whose id the dataset holds."""
    paths = map(str, _parts(dataset))
    known = marked.sparkSession.read.schema(f"{ROW_ID_COLUMN} bigint").parquet(*paths).distinct()
    joined = marked.join(known.withColumn(IS_THERE_COLUMN, F.lit(True)), ROW_ID_COLUMN, "left")
    is_there = F.col(RULE_COLUMN).isNull() & F.col(IS_THERE_COLUMN).isNotNull()
    rule = F.when(is_there, F.lit(ALREADY_THERE)).otherwise(F.col(RULE_COLUMN))
    return joined.withColumn(RULE_COLUMN, rule).drop(IS_THERE_COLUMN)


def _parts(dataset: Dataset) -> list[Path]:
    directory = local(dataset.path, "append")
    return [directory / part.path for s in dataset.manifest.splits.values() for part in s.parts]


def _share(dataset: Dataset, staging: Path) -> None:
    """Put the old parts and the old quarantine beside the new ones."""
    directory = local(dataset.path, "append")
    quarantine = sorted((directory / QUARANTINE).glob("*.parquet"))
    for source in [*_parts(dataset), *quarantine]:
        target = staging / source.relative_to(directory)
        target.parent.mkdir(exist_ok=True)
        try:
            os.link(source, target)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, target)
    for name in (FEATURES_FILE, EXAMPLES_FILE):
        shutil.copyfile(directory / name, staging / name)


def _manifest(
    dataset: Dataset, found: Survey, written: Mapping[str, Written], config: PrepareConfig
) -> Manifest:
    """That of the old rows and the new ones together."""
    old = dataset.manifest
    parts = {split: (*old.splits[split].parts, *written[split].parts) for split in SPLITS}
    splits = {split: Split(rows=sum(p.rows for p in parts[split]), parts=parts[split]) for split in SPLITS}
    totals = dict(Counter(old.quarantined) + Counter(found.quarantined))
    return old.model_copy(
        update={
            "fingerprint": fingerprint(old.columns, config, old.features_sha256, splits, totals),
            "splits": splits,
            "rows_in": old.rows_in + found.rows_in,
            "rows_kept": sum(split.rows for split in splits.values()),
            "quarantined": totals,
            "appended_to": old.fingerprint,
        }
    )


def _warn(drift: Sequence[ColumnDrift]) -> None:
    if large := [column for column in drift if column.level == "large"]:
        listed = ", ".join(f"{column.column} (PSI {column.psi:.2f})" for column in large[:10])
        logger.warning("the new rows are unlike those that the features were fitted on: %s", listed)


def _merged(old: Statistics, new: Statistics) -> Statistics:
    """Codes and targets of all rows. Columns stay those of the fit: later rows are compared with them too."""
    codes = {
        split: CodeCounts(
            rows=old.codes[split].rows + new.codes[split].rows,
            nulls=dict(Counter(old.codes[split].nulls) + Counter(new.codes[split].nulls)),
            unknown=dict(Counter(old.codes[split].unknown) + Counter(new.codes[split].unknown)),
        )
        for split in SPLITS
    }
    before = {(target.name, target.split): target for target in old.targets}
    after = {(target.name, target.split): target for target in new.targets}
    rows = {split: (old.codes[split].rows, new.codes[split].rows) for split in SPLITS}
    targets = tuple(
        _merged_target(before.get(place), after.get(place), rows[place[1]]) for place in before | after
    )
    return Statistics(columns=old.columns, codes=codes, targets=targets)


def _merged_target(
    old: TargetStatistics | None, new: TargetStatistics | None, rows: tuple[int, int]
) -> TargetStatistics:
    if old is None or new is None:
        found = old or new
        assert found is not None
        return found
    if old.mean is None or new.mean is None:
        values = dict(sorted((Counter(old.values) + Counter(new.values)).items()))
        return old.model_copy(update={"values": values})
    total = sum(rows)
    mean = (old.mean * rows[0] + new.mean * rows[1]) / total
    squares = sum(
        ((target.deviation or 0.0) ** 2 + (target.mean or 0.0) ** 2) * count
        for target, count in zip((old, new), rows, strict=True)
    )
    deviation = max(squares / total - mean * mean, 0.0) ** 0.5
    return old.model_copy(update={"mean": mean, "deviation": deviation})
