"""The code of a new pipeline, as a person would write it: data.py, model.py and a test."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence

from sparktrain.new_pipeline.sizes import hidden_sizes_for
from sparktrain.new_pipeline.source import Source
from sparktrain.new_pipeline.wording import WIDTH, commented, declared, literal, rounded, told, wrapped
from sparktrain.preparation.glance import Seen
from sparktrain.preparation.guess import Guess

_TASKS = {
    "binary": "BinaryClassification",
    "multiclass": "MulticlassClassification",
    "regression": "Regression",
}


def data_file(
    source: Source,
    schema: str | None,
    renamed: Mapping[str, str],
    casts: Mapping[str, str],
    name: str,
    guess: Guess,
) -> str:
    """The text of data.py: source, target, features, what was left out."""
    kinds = sorted({type(feature).__name__ for feature in guess.features} | {"Target"})
    reader = {"parquet": "read_parquet", "csv": "read_csv", "json": "read_json", "table": None}[source.kind]
    tools = sorted(
        ["Rule", *([reader] if reader else []), *(["cast_columns"] if casts else [])], key=str.lower
    )
    tools.sort(key=lambda tool: (tool[0].islower(), tool))
    constants = [
        *_schema(schema),
        *_mapping("RENAMED", renamed, "names that preparation can't take, as it adds columns of its own"),
        *_mapping("CASTS", casts, "what can't be cast is quarantined, and counted"),
    ]
    lines = [
        *_docstring(
            f"Source and features of {name}: a start, guessed from {guess.rows:,} rows, to be corrected."
        ),
        "",
        "from __future__ import annotations",
        "",
        "from pathlib import Path",
        "",
        "from pyspark.sql import DataFrame, SparkSession",
        "",
        f"from sparktrain.features import {', '.join(kinds)}",
        f"from sparktrain.preparation import {', '.join(tools)}",
        "",
        *constants,
        *commented(f"KEY: list[str] = {literal(list(guess.key))}", _KEY),
        "",
        *commented(f"TARGET = {declared(guess.target)}", told(guess.columns[guess.target.source])),
        "",
        *commented(
            "RULES: list[Rule] = []", 'a row that breaks one is quarantined: Rule("sold", "amount > 0")'
        ),
        "",
        "FEATURES = [",
        *_features(guess),
        "]",
        "",
        *_left_out(guess.left_out),
        "",
        *_read(source, schema, renamed, casts, guess.target.source),
    ]
    return "\n".join(lines) + "\n"


_KEY = "columns that identify a row and decide its split; empty: all of them"


def _features(guess: Guess) -> Iterator[str]:
    for feature in guess.features:
        if warning := guess.warnings.get(feature.source):
            yield from wrapped(f"Look at this one: {warning}", "    # ")
        yield from commented(f"    {declared(feature)},", told(guess.columns[feature.source]))


def _left_out(left_out: Mapping[str, str]) -> Iterator[str]:
    if not left_out:
        return
    yield "# Left out:"
    for name, reason in left_out.items():
        yield from wrapped(f"`{name}`: {reason}", "#   ")
    yield ""


def _read(
    source: Source, schema: str | None, renamed: Mapping[str, str], casts: Mapping[str, str], target: str
) -> Iterator[str]:
    """The function that reads; of rows to be scored, which have no target, too."""
    what = "table" if source.kind == "table" else "path"
    original = next((old for old, new in renamed.items() if new == target), target)
    of_csv = f", optional=[{literal(original)}]" + (", multiline=True" if source.multiline else "")
    steps = [
        {
            "parquet": "read_parquet(spark, path)",
            "table": "spark.table(table)",
            "csv": f"read_csv(spark, path, SCHEMA{of_csv})",
            "json": "read_json(spark, path, SCHEMA)",
        }[source.kind]
    ]
    places = {
        "parquet": "path: a Parquet file, a folder of them or a glob",
        "table": "table: its name",
        "csv": "path: a CSV file, a folder of them or a glob; NA is a missing value",
        "json": "path: a file of JSON lines, a folder of them or a glob",
    }
    steps += ["rows.withColumnsRenamed(RENAMED)"] if renamed else []
    if casts:
        of_casts = f", optional=[{literal(target)}]" if target in casts else ""
        steps.append(f"cast_columns(rows, CASTS{of_casts})")
    yield f"def read(spark: SparkSession, workspace: Path, *, {what}: str) -> DataFrame:"
    yield '    """Raw rows; the arguments are `prepare.source` of the configuration.'
    yield ""
    yield "    Rows to be scored need no target."
    yield ""
    yield "    Args:"
    yield "        workspace: where unpacked files may be kept."
    yield f"        {places[source.kind]}."
    yield '    """'
    yield from (f"    rows = {step}" for step in steps[:-1])
    yield f"    return {steps[-1]}"


def _schema(schema: str | None) -> Iterator[str]:
    if schema is None:
        return
    yield "SCHEMA = ("
    wrapper = textwrap.TextWrapper(
        WIDTH - 12,
        break_long_words=False,
        break_on_hyphens=False,
        expand_tabs=False,  # names stay as they are, whatever blanks they have
        replace_whitespace=False,
        drop_whitespace=False,
    )
    for piece in wrapper.wrap(schema):
        yield f"    {literal(piece)}"
    yield ")"
    yield ""


def _mapping(name: str, values: Mapping[str, str], comment: str) -> Iterator[str]:
    if not values:
        return
    yield f"# {comment[0].upper()}{comment[1:]}."
    yield f"{name} = {{"
    yield from (f"    {literal(key)}: {literal(value)}," for key, value in values.items())
    yield "}"
    yield ""


def model_file(name: str, guess: Guess) -> str:
    """The text of model.py: a Task whose network fits itself to the features."""
    kind, target = guess.target.kind, guess.target.name
    does = {
        "binary": f"Predicts the probability that `{target}` is true, or 1.",
        "multiclass": f"Predicts the probability of each value of `{target}`.",
        "regression": f"Predicts `{target}`, as a number in its own units.",
    }[kind]
    outputs = "len(features.target.classes)" if kind == "multiclass" else "1"
    seen = guess.columns[guess.target.source]
    lines = [
        *_docstring(f"The model of {name}: embeddings of categories, beside numbers, through a perceptron."),
        "",
        "from __future__ import annotations",
        "",
        "from dataclasses import dataclass",
        "",
        *(["from torch import Tensor, nn"] if kind == "regression" else ["from torch import nn"]),
        "",
        "from sparktrain.features import FittedFeatures",
        "from sparktrain.tabular.network import TabularNetwork",
        f"from sparktrain.training.task import {_TASKS[kind]}",
        *(_scale(seen, target) if kind == "regression" else []),
        "",
        "",
        "@dataclass(frozen=True)",
        f"class Task({_TASKS[kind]}):",
        f'    """{does}',
        "",
        "    Attributes: set by train.model of the configuration.",
        "        hidden_sizes: width of each hidden layer; none: a linear model.",
        "        embedding_size: length of each categorical column's vector.",
        "        dropout: fraction of hidden values set to zero while training.",
        '    """',
        "",
        f"    hidden_sizes: tuple[int, ...] = {hidden_sizes_for(seen.rows)}",
        "    embedding_size: int = 8",
        "    dropout: float = 0.1",
        "",
        "    def build_model(self, features: FittedFeatures) -> nn.Module:",
        f"        outputs = {outputs}",
        f"        return TabularNetwork({_ARGUMENTS})",
        *(_SCALED if kind == "regression" else []),
    ]
    return "\n".join(lines) + "\n"


_ARGUMENTS = "features, outputs, self.hidden_sizes, self.embedding_size, self.dropout"


def _scale(seen: Seen, target: str) -> list[str]:
    centre, spread = rounded(seen.mean or 0.0), rounded(seen.deviation or 1.0) or 1.0
    return [
        "",
        f"# The network learns numbers around zero; these are of `{target}`, in its own units.",
        f"CENTRE = {centre!r}",
        f"SPREAD = {spread!r}",
    ]


_SCALED = [
    "",
    "    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:",
    "        return super().loss(outputs, (target - CENTRE) / SPREAD)",
    "",
    "    def predict(self, outputs: Tensor) -> Tensor:",
    "        return super().predict(outputs) * SPREAD + CENTRE",
]


def test_file(name: str, guess: Guess) -> str:
    """The text of a test that prepares a sample, trains on it and scores it, in seconds."""
    return f'''"""The pipeline {name}, on a sample of its rows: prepared, trained for a few steps, scored.

Start it in the project's folder: python -m pytest tests/test_{name}.py
"""

from __future__ import annotations

import math
from pathlib import Path

from pyspark.sql import functions as F

import sparktrain
from pipelines.{name} import data
from sparktrain.config import load_config
from sparktrain.stages import create_task
from sparktrain.testing import spark_session

ROWS = 500
SMALL = ["train.global_batch_size=8", "train.num_lanes=4", "train.max_steps=5", "train.epochs=1"]
ALONE = ["spark.master=none", "train.ranks=1", "tracking.uri=none"]


def test_a_sample_can_be_prepared_and_learnt(tmp_path: Path) -> None:
    config = load_config("conf/{name}.yaml", [f"storage.root={{tmp_path}}", *SMALL, *ALONE])
    columns = [f"`{{feature.source}}`" for feature in (*data.FEATURES, data.TARGET)]
    with spark_session() as spark:
        rows = data.read(spark, tmp_path, **config.prepare.source)
        dataset = sparktrain.prepare(
            rows.orderBy(F.xxhash64(*columns)).limit(ROWS),  # a file may be sorted by what is predicted
            data.FEATURES,
            data.TARGET,
            config.prepare.model_copy(update={{"max_quarantined_fraction": 1.0}}),
            name="{name}",
            root=tmp_path,
            rules=data.RULES,
            key=data.KEY,
        )
    manifest = dataset.manifest
    assert manifest.rows_in == manifest.rows_kept + sum(manifest.quarantined.values())
    assert manifest.rows_kept > 0, manifest.quarantined

    result = sparktrain.train(dataset, create_task(config), config)
    assert result.status == "finished" and result.steps > 0
    assert math.isfinite(result.metrics["validation/loss"]), result.metrics
'''


def _docstring(text: str) -> Sequence[str]:
    return [f'"""{text}"""']
