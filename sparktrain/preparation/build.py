"""prepare: a DataFrame becomes an immutable dataset, or nothing does."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyspark
from pyspark.sql import DataFrame

from sparktrain import __version__
from sparktrain.config import PrepareConfig
from sparktrain.dataset import Dataset, open_dataset
from sparktrain.dataset.card import write_card
from sparktrain.dataset.dataset import LATEST_FILE
from sparktrain.dataset.examples import write_examples
from sparktrain.dataset.layout import ColumnSpec
from sparktrain.dataset.manifest import FEATURES_FILE, MANIFEST_FILE, Manifest, Split
from sparktrain.dataset.statistics import STATISTICS_FILE, Statistics
from sparktrain.errors import (
    ConfigError,
    DataError,
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
    InputType,
    Target,
    Vector,
    output_names,
    read_as,
)
from sparktrain.preparation.check import check_again, check_block_names, check_columns
from sparktrain.preparation.clean import mark_broken_rules, rule_names
from sparktrain.preparation.describe import statistics_of
from sparktrain.preparation.fit import check_sizes, fit_features, wanted_again, wanted_columns
from sparktrain.preparation.rules import Rule
from sparktrain.preparation.split import SPLITS, add_split
from sparktrain.preparation.spooling import QUARANTINE, Wanted
from sparktrain.preparation.staging import leave, staging_directory
from sparktrain.preparation.survey import Survey, survey
from sparktrain.preparation.write import Written, column_specs, keep_only, write_parts
from sparktrain.storage import commit_bytes, commit_json, writable_directory

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
        targets = declared_targets(fitted)
        weight = fitted.weight.column if fitted.weight else None
        types = check_again(df, fitted, key, config.split)
    else:
        types = check_columns(df, features, targets, key, weight=weight, split=config.split)
    names = [o.name for o in fitted.outputs] if fitted else [n for f in features for n in output_names(f)]
    check_block_names([*names, *(t.name for t in targets), *([weight] if weight else [])], config.layout)
    home = writable_directory(Path(root) / "datasets" / _folder_name(name))
    rules = [*rules, *size_rules(fitted.features if fitted else features, types)]
    classes = {t.name: t.classes for t in fitted.targets if t.classes} if fitted else {}
    marked = mark_broken_rules(df, rules, targets, weight=weight, classes=classes, split=config.split)
    marked = add_split(marked, key, config.split)
    wanted = wanted_again(fitted, types) if fitted else wanted_columns(features, targets, weight, types)
    with staging_directory(home) as staging:
        logger.info("reading, shuffling and counting the rows")
        found = survey(
            marked,
            df.columns,
            wanted,
            staging,
            num_parts=config.num_parts,
            seed=config.seed,
            row_bytes=row_bytes(fitted.features if fitted else features),
        )
        quarantined = {
            rule: found.quarantined[rule]
            for rule in rule_names(df, rules, targets, weight=weight, classes=classes, split=config.split)
            if rule in found.quarantined
        }
        keep_only(staging / QUARANTINE, found.quarantine_files)
        _check_counts(found, quarantined, config, staging, home)
        logger.info("fitting %d features and writing %s rows", len(features), f"{found.rows_kept:,}")
        if fitted is not None:
            result = fitted
            check_sizes(fitted, found)
        else:
            result = fit_features(found, features, targets, weight, types)
        written = write_parts(
            df.sparkSession, found.spools, [w.column for w in wanted], result, staging, config
        )
        _write_examples(staging, found, wanted, result)
        statistics = statistics_of(found, wanted, result, written)
        key_types = [(column, df.schema[column].dataType.simpleString()) for column in key]
        _write_manifest(staging, name, found, quarantined, key_types, result, statistics, written, config)
        return open_dataset(publish(staging, home))


def _folder_name(name: str) -> str:
    if name in ("", ".", "..") or "/" in name or "\\" in name:
        raise ConfigError([f"{name!r} can't name a dataset: it is the name of a folder, without slashes"])
    return name


def declared_targets(fitted: FittedFeatures) -> tuple[Target, ...]:
    """The declarations that fitted targets came from."""
    return tuple(Target(name=t.name, column=t.column, kind=t.kind) for t in fitted.targets)


def size_rules(features: Iterable[Feature | FittedFeature], types: Mapping[str, InputType]) -> list[Rule]:
    """Rules that quarantine rows whose array, or bytes, are not of a vector's size; a null passes."""
    rules: dict[str, Rule] = {}
    for feature in features:
        if not isinstance(feature, (Vector, FittedVector)):
            continue
        column = feature.column or feature.name
        quoted = f"`{column.replace('`', '``')}`"
        size = math.prod(feature.shape)
        if types[column] == "binary":
            keep = f"{quoted} IS NULL OR octet_length({quoted}) = {size * np.dtype(feature.dtype).itemsize}"
        else:
            keep = f"{quoted} IS NULL OR size({quoted}) = {size}"
        rules[keep] = Rule(f"{column}_wrong_size", keep)
    return list(rules.values())


def row_bytes(features: Sequence[Feature | FittedFeature]) -> int:
    """Bytes of the vectors and images of a row, as Spark hands them over: at most 8 a number."""
    shaped = (Vector, FittedVector, Image, FittedImage)
    return sum(8 * math.prod(f.shape) for f in features if isinstance(f, shaped))


def _check_counts(
    found: Survey, quarantined: Mapping[str, int], config: PrepareConfig, staging: Path, home: Path
) -> None:
    """Refuse a dataset that is empty or mostly rejected; its quarantine is kept to look at."""
    total = sum(quarantined.values())
    kept = found.rows_kept
    too_many = total > config.max_quarantined_fraction * found.rows_in
    if kept == 0 or too_many:
        rejected = home / f"rejected-{staging.name.removeprefix('.staging-')}"
        if total:
            os.rename(staging / QUARANTINE, rejected)
        if kept == 0:
            raise NoRowsLeft(
                found.rows_in, quarantined, str(rejected) if total else "the source, which is empty"
            )
        raise TooManyQuarantined(
            found.rows_in, quarantined, total, config.max_quarantined_fraction, str(rejected)
        )
    if empty := [split for split in config.split.wanted if not found.split_rows.get(split)]:
        raise SplitEmpty(kept, empty)


def _write_examples(staging: Path, found: Survey, wanted: Sequence[Wanted], features: FittedFeatures) -> None:
    """A few raw rows as they came, the same ones every time: what a served model shows people to send."""
    numbers = {w.column: f"_{number}" for number, w in enumerate(wanted)}
    with pa.ipc.open_file(found.spools[0].path) as file:
        rows = file.get_batch(0).slice(0, NUM_EXAMPLES)
    columns = {name: read_as(rows.column(numbers[name]), kind) for name, kind in features.input_types.items()}
    write_examples(staging, pa.table(columns))


def _write_manifest(
    staging: Path,
    name: str,
    found: Survey,
    quarantined: Mapping[str, int],
    key: Sequence[tuple[str, str]],
    features: FittedFeatures,
    statistics: Statistics,
    written: Mapping[str, Written],
    config: PrepareConfig,
) -> None:
    """Write all that describes the parts, the manifest last: from then on the directory is a dataset."""
    splits = {split: Split(rows=written[split].rows, parts=tuple(written[split].parts)) for split in SPLITS}
    features_json = features.to_json().encode()
    columns = column_specs(features)
    manifest = Manifest(
        name=name,
        fingerprint=fingerprint(columns, config, features_json, splits, quarantined),
        columns=columns,
        layout=config.layout,
        splits=splits,
        rows_in=found.rows_in,
        rows_kept=found.rows_kept,
        quarantined=dict(quarantined),
        key=tuple(key),
        features_sha256=hashlib.sha256(features_json).hexdigest(),
        prepare=json.loads(config.model_dump_json()),
        versions={"sparktrain": __version__, "pyspark": pyspark.__version__, "pyarrow": pa.__version__},
    )
    commit_bytes(staging / FEATURES_FILE, features_json)
    commit_json(staging / STATISTICS_FILE, statistics.model_dump(mode="json"))
    write_card(staging, manifest, features, statistics)
    leave(staging)
    commit_json(staging / MANIFEST_FILE, manifest.model_dump(mode="json"))


def fingerprint(
    columns: Sequence[ColumnSpec],
    config: PrepareConfig,
    features_json: bytes,
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
        "features": hashlib.sha256(features_json).hexdigest(),
        "splits": {name: [(p.row_groups, p.digest) for p in split.parts] for name, split in splits.items()},
    }
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def publish(staging: Path, home: Path) -> Path:
    """Move the dataset to its name and point `latest.json` to it."""
    name = Manifest.load(staging).fingerprint
    final = home / name
    if not _is_sound(final):
        shutil.rmtree(final, ignore_errors=True)
        os.rename(staging, final)
    commit_json(home / LATEST_FILE, {"path": name})
    return final


def _is_sound(directory: Path) -> bool:
    """Whether the dataset is there with all its files: a damaged one is replaced, as its error promises."""
    try:
        open_dataset(directory).verify()
    except DataError:
        return False
    return True
