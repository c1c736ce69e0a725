"""prepare: a DataFrame becomes an immutable dataset, or nothing does."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyspark
from pyspark.sql import DataFrame

from sparktrain import __version__
from sparktrain.config import PrepareConfig
from sparktrain.dataset import Dataset, open_dataset
from sparktrain.dataset.card import write_card
from sparktrain.dataset.drift import ColumnDrift
from sparktrain.dataset.examples import write_examples
from sparktrain.dataset.layout import ColumnSpec
from sparktrain.dataset.manifest import FEATURES_FILE, MANIFEST_FILE, Manifest, Split
from sparktrain.dataset.statistics import STATISTICS_FILE, Statistics
from sparktrain.errors import (
    ConfigError,
    FeaturesInvalid,
    NoRowsLeft,
    SplitEmpty,
    TooManyQuarantined,
)
from sparktrain.features import (
    Feature,
    FittedFeature,
    FittedFeatures,
    FittedImage,
    FittedVector,
    Image,
    Target,
    Vector,
    output_names,
    read_as,
)
from sparktrain.preparation.check import check_again, check_block_names, check_columns
from sparktrain.preparation.clean import Demands, mark_broken_rules, rule_names
from sparktrain.preparation.describe import statistics_of
from sparktrain.preparation.fit import check_sizes, fit_features, wanted_again, wanted_columns
from sparktrain.preparation.rules import Rule, size_rules
from sparktrain.preparation.split import SPLITS, add_split
from sparktrain.preparation.spooling import Wanted
from sparktrain.preparation.staging import keep_rejected, leave, publish, staging_directory
from sparktrain.preparation.survey import Survey, survey
from sparktrain.preparation.write import Written, column_specs, write_parts
from sparktrain.storage import commit_bytes, commit_json, sha256_file, writable_directory

logger = logging.getLogger(__name__)

NUM_EXAMPLES = 5


def prepare(
    df: DataFrame,
    features: Sequence[Feature] = (),
    target: Target | Sequence[Target] = (),
    config: PrepareConfig | None = None,
    *,
    name: str = "dataset",
    root: str | Path = "out",
    rules: Sequence[Rule] = (),
    key: str | Sequence[str] = (),
    weight: str | None = None,
    fitted: FittedFeatures | None = None,
) -> Dataset:
    """Clean `df`, fit `features` on its training rows, and write everything as a dataset.

    The source is looked at once: its rows are shuffled and kept aside as they are, and everything is counted
    on the way; the features are then applied to the rows kept aside, by `FittedFeatures.transform`.

    Args:
        df: raw rows. Columns that are no feature only serve rules and key.
        features: what the model will be given.
        target: what it shall predict; several for a model of several targets.
        config: split, layout and tolerance; defaults if None.
        name: folder under `<root>/datasets/`.
        root: where everything is written; seen by driver and executors.
        rules: rows that break one go to the dataset's `quarantine/`, with the rule's name.
        key: columns that identify a row and decide its split; empty: all columns.
        weight: column of the rows' weights (0 or more); they are divided by their mean over the training
            rows.
        fitted: earlier statistics to apply, such as `open_dataset(…).features`, in place of features, target
            and weight: nothing is fitted then.

    Returns:
        The dataset at `<root>/datasets/<name>/<fingerprint>`; one with the same content is reused.

    Raises:
        DataError: with what was given, what is allowed and the way out; no dataset is left behind then.
    """
    config = config or PrepareConfig()
    key = [key] if isinstance(key, str) else list(key)
    targets = (target,) if isinstance(target, Target) else tuple(target)
    if fitted is not None:
        if features or targets or weight:
            raise FeaturesInvalid(["`fitted` says what features, target and weight are; leave these out"])
        types = check_again(df, fitted, key, config.split)
        demands, wanted = Demands.of(fitted, config.split), wanted_again(fitted, types)
        names = [output.name for output in fitted.outputs]
    else:
        types = check_columns(df, features, targets, key, weight=weight, split=config.split)
        demands = Demands(targets, weight, config.split)
        wanted = wanted_columns(features, targets, weight, types)
        names = [name for feature in features for name in output_names(feature)]
    weights = [demands.weight] if demands.weight else []
    check_block_names([*names, *(t.name for t in demands.targets), *weights], config.layout)
    home = writable_directory(Path(root) / "datasets" / _folder_name(name))
    shaped = fitted.features if fitted else features
    rules = [*rules, *size_rules(shaped, types)]
    marked = add_split(mark_broken_rules(df, rules, demands), key, config.split)
    with staging_directory(home) as staging:
        logger.info("reading, shuffling and counting the rows")
        found = sift(df, marked, rule_names(df, rules, demands), wanted, shaped, staging, config)
        if empty := [split for split in config.split.wanted if not found.split_rows.get(split)]:
            raise SplitEmpty(found.rows_kept, empty)
        logger.info("making %d features of %s rows", len(shaped), f"{found.rows_kept:,}")
        if fitted is not None:
            result = fitted
            check_sizes(fitted, found)
        else:
            result = fit_features(found, features, targets, weight, types)
        written = write_parts(
            df.sparkSession, found.spools, [w.column for w in wanted], result, staging, config
        )
        _write_examples(staging, found, wanted, result)
        key_types = [(column, df.schema[column].dataType.simpleString()) for column in key]
        commit_bytes(staging / FEATURES_FILE, result.to_json().encode())
        manifest = _manifest(staging, name, found, key_types, result, written, config)
        write_description(staging, manifest, result, statistics_of(found, wanted, result, written))
        return open_dataset(publish(staging))


def _folder_name(name: str) -> str:
    if name in ("", ".", "..") or "/" in name or "\\" in name:
        raise ConfigError([f"{name!r} can't name a dataset: it is the name of a folder, without slashes"])
    return name


def sift(
    df: DataFrame,
    marked: DataFrame,
    rules: Sequence[str],
    wanted: Sequence[Wanted],
    features: Sequence[Feature | FittedFeature],
    staging: Path,
    config: PrepareConfig,
    tolerated: Collection[str] = (),
) -> Survey:
    """Survey the rows of `df`, and refuse them if none or too few are kept; their quarantine stays then.

    Args:
        marked: the same rows with `row_id`, `_split` and `_broken_rule`.
        rules: every name that `_broken_rule` can hold, in the order in which they are told.
        tolerated: those that any number of rows may break.

    Raises:
        NoRowsLeft, TooManyQuarantined: with the rows by rule.
    """
    found = survey(
        marked,
        df.columns,
        wanted,
        staging,
        num_parts=config.num_parts,
        seed=config.seed,
        row_bytes=_row_bytes(features),
    )
    quarantined = {rule: found.quarantined[rule] for rule in rules if rule in found.quarantined}
    broken = sum(rows for rule, rows in quarantined.items() if rule not in tolerated)
    if found.rows_kept == 0:
        rejected = str(keep_rejected(staging)) if quarantined else "the source, which is empty"
        raise NoRowsLeft(found.rows_in, quarantined, rejected)
    if broken > config.max_quarantined_fraction * found.rows_in:
        rejected = str(keep_rejected(staging))
        limit = config.max_quarantined_fraction
        raise TooManyQuarantined(found.rows_in, quarantined, broken, limit, rejected)
    return replace(found, quarantined=quarantined)


def _row_bytes(features: Sequence[Feature | FittedFeature]) -> int:
    """Bytes of the vectors and images of a row, as Spark hands them over: at most 8 a number."""
    shaped = (Vector, FittedVector, Image, FittedImage)
    return sum(8 * math.prod(f.shape) for f in features if isinstance(f, shaped))


def _write_examples(staging: Path, found: Survey, wanted: Sequence[Wanted], features: FittedFeatures) -> None:
    """A few raw rows as they came, the same ones every time: what a served model shows people to send."""
    numbers = {w.column: f"_{number}" for number, w in enumerate(wanted)}
    with pa.ipc.open_file(found.spools[0].path) as file:
        rows = file.get_batch(0).slice(0, NUM_EXAMPLES)
    columns = {name: read_as(rows.column(numbers[name]), kind) for name, kind in features.input_types.items()}
    write_examples(staging, pa.table(columns))


def _manifest(
    staging: Path,
    name: str,
    found: Survey,
    key: Sequence[tuple[str, str]],
    features: FittedFeatures,
    written: Mapping[str, Written],
    config: PrepareConfig,
) -> Manifest:
    splits = {split: Split(rows=written[split].rows, parts=tuple(written[split].parts)) for split in SPLITS}
    features_sha256 = sha256_file(staging / FEATURES_FILE)
    columns = column_specs(features)
    return Manifest(
        name=name,
        fingerprint=fingerprint(columns, config, features_sha256, splits, found.quarantined),
        columns=columns,
        layout=config.layout,
        splits=splits,
        rows_in=found.rows_in,
        rows_kept=found.rows_kept,
        quarantined=found.quarantined,
        key=tuple(key),
        features_sha256=features_sha256,
        prepare=json.loads(config.model_dump_json()),
        versions={"sparktrain": __version__, "pyspark": pyspark.__version__, "pyarrow": pa.__version__},
    )


def write_description(
    staging: Path,
    manifest: Manifest,
    features: FittedFeatures,
    statistics: Statistics,
    drift: Sequence[ColumnDrift] = (),
) -> None:
    """Write what describes the parts, the manifest last: from then on the directory is a dataset."""
    commit_json(staging / STATISTICS_FILE, statistics.model_dump(mode="json"))
    write_card(staging, manifest, features, statistics, drift)
    leave(staging)
    commit_bytes(staging / MANIFEST_FILE, manifest.to_json().encode())


def fingerprint(
    columns: Sequence[ColumnSpec],
    config: PrepareConfig,
    features_sha256: str,
    splits: Mapping[str, Split],
    quarantined: Mapping[str, int],
) -> str:
    """Name a dataset by its content: columns, statistics, the values of every part. 32 hex digits.

    The counts of quarantined rows belong to it: they stand in the manifest, which is never rewritten.
    """
    content = {
        "quarantined": dict(quarantined),
        "columns": [column.model_dump(mode="json") for column in columns],
        "layout": config.layout,
        "compression": config.compression,
        "features": features_sha256,
        "splits": {name: [(p.row_groups, p.digest) for p in split.parts] for name, split in splits.items()},
    }
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()
