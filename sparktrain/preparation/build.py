"""prepare: a DataFrame becomes an immutable dataset, or nothing does."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyspark
from pyspark import StorageLevel
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from sparktrain import __version__
from sparktrain.config import PrepareConfig
from sparktrain.dataset import Dataset, open_dataset
from sparktrain.dataset.dataset import LATEST_FILE
from sparktrain.dataset.manifest import (
    EXAMPLES_FILE,
    FEATURES_FILE,
    MANIFEST_FILE,
    ColumnSpec,
    Manifest,
    Part,
    Split,
)
from sparktrain.errors import DataError, NoRowsLeft, SourceChanged, SplitEmpty, TooManyQuarantined
from sparktrain.features import Feature, FittedFeatures, Target
from sparktrain.preparation.check import check_columns
from sparktrain.preparation.clean import mark_broken_rules, rule_names
from sparktrain.preparation.fit import Fit, fit
from sparktrain.preparation.rules import RULE_COLUMN, Rule
from sparktrain.preparation.split import ROW_ID_COLUMN, SPLITS, add_split
from sparktrain.preparation.write import part_schema, write_parts
from sparktrain.storage import commit_bytes, commit_json, writable_directory

logger = logging.getLogger(__name__)

NUM_EXAMPLES = 5


def prepare(
    df: DataFrame,
    features: Sequence[Feature],
    target: Target,
    config: PrepareConfig | None = None,
    *,
    name: str = "dataset",
    root: str | Path = "out",
    rules: Sequence[Rule] = (),
    key: Sequence[str] = (),
) -> Dataset:
    """Clean `df`, fit `features` on its training rows, and write everything as a dataset.

    Args:
        df: raw rows. Columns that are no feature only serve rules and key.
        features: what the model will be given.
        target: what it shall predict.
        config: split, layout and tolerance; defaults if None.
        name: folder under `<root>/datasets/`.
        root: where everything is written; seen by driver and executors.
        rules: rows that break one go to the dataset's `quarantine/`, with the rule's name.
        key: columns that identify a row and decide its split; empty: all columns.

    Returns:
        The dataset at `<root>/datasets/<name>/<fingerprint>`; one with the same content is reused.

    Raises:
        DataError: with what was given, what is allowed and the way out; no dataset is left behind then.
    """
    config = config or PrepareConfig()
    input_types = check_columns(df, features, [target], key, split=config.split)
    home = writable_directory(Path(root) / "datasets" / name)
    marked = add_split(mark_broken_rules(df, rules, [target], split=config.split), key, config.split)
    marked = marked.persist(StorageLevel.MEMORY_AND_DISK)
    try:
        logger.info("counting rows and fitting %d features", len(features))
        found = fit(
            marked, features, target, input_types, rule_names(df, rules, [target], split=config.split)
        )
        with _staging(home) as staging:
            _write_quarantine(marked, df.columns, found, staging)
            _check_counts(found, config, staging, home)
            logger.info("shuffling and writing %s rows", f"{sum(found.split_rows.values()):,}")
            kept = marked.where(F.col(RULE_COLUMN).isNull())
            parts = write_parts(kept, found.features, staging, config)
            commit_json(staging / EXAMPLES_FILE, _examples(kept, found.features))
            _write_manifest(staging, name, found, parts, config)
            return open_dataset(_publish(staging, home))
    finally:
        marked.unpersist()


@contextmanager
def _staging(home: Path) -> Iterator[Path]:
    """A directory that is gone when anything fails: a dataset is whole or not there."""
    staging = home / f".staging-{secrets.token_hex(6)}"
    staging.mkdir()
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)  # already moved away when all went well


def _write_quarantine(marked: DataFrame, columns: Sequence[str], found: Fit, staging: Path) -> None:
    if found.quarantined:
        source = F.to_json(F.struct(*[F.col(f"`{c}`") for c in columns])).alias("row")
        rows = marked.where(F.col(RULE_COLUMN).isNotNull()).select(F.col(RULE_COLUMN).alias("rule"), source)
        rows.write.parquet(str(staging / "quarantine"))


def _check_counts(found: Fit, config: PrepareConfig, staging: Path, home: Path) -> None:
    """Refuse a dataset that is empty or mostly rejected; its quarantine is kept to look at."""
    total = sum(found.quarantined.values())
    kept = found.rows_in - total
    too_many = total > config.max_quarantined_fraction * found.rows_in
    if kept == 0 or too_many:
        rejected = home / f"rejected-{staging.name.removeprefix('.staging-')}"
        if total:
            os.rename(staging / "quarantine", rejected)
        if kept == 0:
            raise NoRowsLeft(
                found.rows_in, found.quarantined, str(rejected) if total else "the source, which is empty"
            )
        raise TooManyQuarantined(
            found.rows_in, found.quarantined, total, config.max_quarantined_fraction, str(rejected)
        )
    empty = [split for split in config.split.wanted if not found.split_rows.get(split)]
    if empty:
        raise SplitEmpty(kept, empty)


def _examples(kept: DataFrame, features: FittedFeatures) -> list[dict[str, object]]:
    """A few raw rows as they came, the same ones every time: what a served model shows people to send."""
    columns = [F.col(f"`{name}`").cast(kind) for name, kind in features.input_types.items()]
    rows = kept.orderBy(ROW_ID_COLUMN, *columns).limit(NUM_EXAMPLES).select(*columns).collect()
    return [{name: _json_value(value) for name, value in row.asDict().items()} for row in rows]


def _json_value(value: object) -> object:
    """JSON has no NaN and no infinity; a feature takes a missing value for the same."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_manifest(
    staging: Path, name: str, found: Fit, parts: Mapping[str, list[Part]], config: PrepareConfig
) -> None:
    """Write `features.json`, then the manifest: from then on the directory is a dataset."""
    splits = {
        s: Split(rows=sum(p.rows for p in parts.get(s, [])), parts=tuple(parts.get(s, []))) for s in SPLITS
    }
    for split, content in splits.items():
        if content.rows != found.split_rows.get(split, 0):
            raise SourceChanged(split, found.split_rows.get(split, 0), content.rows)
    features_json = found.features.to_json().encode()
    columns = _columns(found.features)
    manifest = Manifest(
        format="sparktrain.dataset/1",
        name=name,
        fingerprint=fingerprint(columns, features_json, splits, found.quarantined),
        columns=columns,
        splits=splits,
        rows_in=found.rows_in,
        rows_kept=sum(found.split_rows.values()),
        quarantined=found.quarantined,
        features_sha256=hashlib.sha256(features_json).hexdigest(),
        prepare=json.loads(config.model_dump_json()),
        versions={"sparktrain": __version__, "pyspark": pyspark.__version__, "pyarrow": pa.__version__},
    )
    commit_bytes(staging / FEATURES_FILE, features_json)
    commit_json(staging / MANIFEST_FILE, manifest.model_dump(mode="json"))


def _columns(features: FittedFeatures) -> tuple[ColumnSpec, ...]:
    roles = {ROW_ID_COLUMN: "row_id", features.target.name: "target"}
    names = {pa.float32(): "float32", pa.int32(): "int32", pa.int64(): "int64"}
    return tuple(
        ColumnSpec.model_validate(
            {"name": f.name, "dtype": names[f.type], "role": roles.get(f.name, "feature")}
        )
        for f in part_schema(features)
    )


def fingerprint(
    columns: Sequence[ColumnSpec],
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
        "features": hashlib.sha256(features_json).hexdigest(),
        "splits": {name: [(p.row_groups, p.digest) for p in split.parts] for name, split in splits.items()},
    }
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def _publish(staging: Path, home: Path) -> Path:
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
