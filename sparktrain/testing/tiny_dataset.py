"""A dataset of made-up rows, written without Spark."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sparktrain.dataset import ColumnSpec, Dataset, Manifest, Part, Split
from sparktrain.dataset.digest import digest_of
from sparktrain.dataset.examples import write_examples
from sparktrain.dataset.layout import Dtype, Layout, pack
from sparktrain.dataset.read import WRITE_CHECKSUMS
from sparktrain.features import FittedCategorical, FittedFeatures, FittedNumeric, FittedTarget, FittedWeight
from sparktrain.storage import commit_bytes

TargetKind = Literal["binary", "multiclass", "regression"]

_TINY_CLASSES = ("low", "middle", "high")
_TINY_VOCABULARY = ("red", "green", "blue", "grey")


def write_tiny_dataset(
    path: Path,
    rows: int | Sequence[Sequence[int]] = 1000,
    *,
    validation_rows: int = 0,
    test_rows: int = 0,
    num_parts: int = 2,
    rows_per_row_group: int = 64,
    num_numeric: int = 2,
    num_categorical: int = 1,
    vector_shape: tuple[int, ...] = (),
    vector_dtype: Dtype = "float32",
    text: bool = False,
    target_kinds: Sequence[TargetKind] = ("binary",),
    weight: bool = False,
    layout: Layout = "columns",
    seed: int = 0,
) -> Dataset:
    """Write a dataset of made-up rows without Spark, in milliseconds; a model can learn its target.

    Columns: `row_id` (0, 1, 2, … over train, validation and test), `numeric_<i>`, `category_<i>` (four known
    values), `label` (0 or 1, or as `target_kinds` says); `vector` and `text` where asked for, which
    `features.json` does not know.
    The values of a row do not depend on the layout.

    Args:
        path: the dataset's directory, which is created.
        rows: of the train split; or the rows of each row group of each part, to the letter:
            `[[10, 3], [], [7]]` is three parts, the second of which is empty.
        validation_rows: of that split, in parts like those of train.
        test_rows: likewise.
        num_parts: of each split.
        rows_per_row_group: at most.
        num_numeric: float32 features.
        num_categorical: int32 features.
        vector_shape: of the feature `vector`; () leaves it out.
        vector_dtype: of its numbers.
        text: whether there is a passthrough column of text, "row <row_id>".
        target_kinds: of `label`, and of `label_1`, `label_2`, … if there are several; multiclass has three
            classes.
        weight: whether there is a column `weight`: 0, 2/3, 4/3 and 2 in turn, as the row_id counts.
        layout: how the columns lie in the parts.
        seed: of the rows' values.
    """
    features = _tiny_features(num_numeric, num_categorical, target_kinds, weight)
    columns = [
        ColumnSpec(name="row_id", dtype="int64", role="row_id"),
        *(ColumnSpec(name=o.name, dtype=o.dtype, role="feature") for o in features.outputs),
        *(ColumnSpec(name=t.name, dtype=t.output.dtype, role="target") for t in features.targets),
    ]
    if features.weight is not None:
        columns.append(ColumnSpec(name="weight", dtype="float32", role="weight"))
    if vector_shape:
        columns.append(ColumnSpec(name="vector", dtype=vector_dtype, shape=vector_shape, role="feature"))
    if text:
        columns.append(ColumnSpec(name="text", dtype="string", role="passthrough"))
    path.mkdir(parents=True)
    kinds: dict[str, TargetKind] = {target.name: target.kind for target in features.targets}
    splits: dict[str, Split] = {}
    first_row = 0
    for name, wanted in (("train", rows), ("validation", validation_rows), ("test", test_rows)):
        sizes = _row_groups(wanted, num_parts, rows_per_row_group) if isinstance(wanted, int) else wanted
        total = sum(map(sum, sizes))
        values = _tiny_rows(columns, kinds, first_row, total, np.random.default_rng([seed, first_row]))
        splits[name] = Split(rows=total, parts=_write_parts(path, name, values, columns, layout, sizes))
        first_row += total
    features_json = features.to_json().encode()
    commit_bytes(path / "features.json", features_json)
    write_examples(path, pa.Table.from_pylist(_tiny_examples(features)))
    manifest = Manifest(
        name="tiny",
        fingerprint=_fingerprint(splits),
        columns=tuple(columns),
        layout=layout,
        splits=splits,
        rows_in=first_row,
        rows_kept=first_row,
        quarantined={},
        features_sha256=hashlib.sha256(features_json).hexdigest(),
        prepare={},
        versions={"pyarrow": pa.__version__},
    )
    commit_bytes(path / "manifest.json", manifest.to_json().encode())
    return Dataset(path, manifest)


def _tiny_features(
    num_numeric: int, num_categorical: int, target_kinds: Sequence[TargetKind], weight: bool
) -> FittedFeatures:
    numeric = [
        FittedNumeric(name=name, column=name, input_type="double", fill=0.0)
        for name in (f"numeric_{i}" for i in range(num_numeric))
    ]
    categorical = [
        FittedCategorical(name=name, column=name, input_type="string", vocabulary=_TINY_VOCABULARY)
        for name in (f"category_{i}" for i in range(num_categorical))
    ]
    targets = []
    for number, kind in enumerate(target_kinds):
        name = f"label_{number}" if number else "label"
        if kind == "multiclass":
            target = FittedTarget(
                name=name, column=name, kind=kind, input_type="string", classes=_TINY_CLASSES
            )
        else:
            target = FittedTarget(name=name, column=name, kind=kind, input_type="double")
        targets.append(target)
    tiny_weight = FittedWeight(name="weight", column="weight", input_type="long", scale=1.5)
    return FittedFeatures(
        features=(*numeric, *categorical), targets=tuple(targets), weight=tiny_weight if weight else None
    )


def _tiny_examples(features: FittedFeatures) -> list[dict[str, object]]:
    types = features.input_types
    return [
        {column: value if kind == "string" else 0.5 for column, kind in types.items()}
        for value in _TINY_VOCABULARY
    ]


def _row_groups(rows: int, num_parts: int, rows_per_row_group: int) -> list[list[int]]:
    borders = [part * rows // num_parts for part in range(num_parts + 1)]
    return [
        [min(rows_per_row_group, stop - first) for first in range(start, stop, rows_per_row_group)]
        for start, stop in pairwise(borders)
    ]


def _tiny_rows(
    columns: Sequence[ColumnSpec],
    kinds: Mapping[str, TargetKind],
    first_row: int,
    rows: int,
    random: np.random.Generator,
) -> dict[str, np.ndarray]:
    values: dict[str, np.ndarray] = {"row_id": np.arange(first_row, first_row + rows, dtype=np.int64)}
    score = np.zeros(rows)
    for column in columns:
        if column.role != "feature" or column.name == "vector":
            continue
        if column.dtype == "int32":
            values[column.name] = random.integers(2, 2 + len(_TINY_VOCABULARY), rows, dtype=np.int32)
            score += values[column.name] - 3.5
        else:
            values[column.name] = random.standard_normal(rows, dtype=np.float32)
            score += values[column.name]
    noise = random.logistic(0.0, 0.3, rows)
    score += noise
    for column in columns:
        if column.role == "target":
            of_kind = {"binary": score > 0, "multiclass": (score > -1) * 1 + (score > 1), "regression": score}
            values[column.name] = of_kind[kinds[column.name]].astype(column.dtype)
        elif column.role == "weight":
            values["weight"] = (values["row_id"] % 4 / 1.5).astype(np.float32)
        elif column.name == "vector":
            shape = (rows, *column.shape)
            values["vector"] = random.integers(0, 256, shape).astype(column.dtype)
        elif column.name == "text":
            values["text"] = np.array([f"row {number}" for number in values["row_id"]], object)
    return values


def _write_parts(
    path: Path,
    split: str,
    values: Mapping[str, np.ndarray],
    columns: Sequence[ColumnSpec],
    layout: Layout,
    sizes: Sequence[Sequence[int]],
) -> tuple[Part, ...]:
    (path / split).mkdir()
    table = pack(values, columns, layout)
    # A dictionary of rows that are all different only costs.
    dictionary = [f.name for f in table.schema if not pa.types.is_fixed_size_binary(f.type)]
    parts = []
    first_row = 0
    for number, row_groups in enumerate(sizes):
        file = path / split / f"part-{number:05d}-tiny.parquet"
        with pq.ParquetWriter(
            file, table.schema, compression="lz4", use_dictionary=dictionary, **WRITE_CHECKSUMS
        ) as writer:
            for rows in row_groups:
                writer.write_table(table.slice(first_row, rows), row_group_size=max(rows, 1))
                first_row += rows
        part: Mapping[str, object] = {
            "path": file.relative_to(path).as_posix(),
            "rows": sum(row_groups),
            "row_groups": tuple(row_groups),
            "size_bytes": file.stat().st_size,
            "digest": digest_of(pq.ParquetFile(file), columns, layout),
        }
        parts.append(Part.model_validate(part))
    return tuple(parts)


def _fingerprint(splits: Mapping[str, Split]) -> str:
    digests = [part.digest for name in sorted(splits) for part in splits[name].parts]
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:32]
