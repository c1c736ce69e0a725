"""Sizes by rows, sources by name, and how a declaration and a configuration are written: without Spark."""

from __future__ import annotations

import importlib
import re
import sys
from dataclasses import replace
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import DataFrame
from rich.console import Console

from sparktrain.commands.init import _show
from sparktrain.config import TrainConfig
from sparktrain.errors import ConfigError, PipelineExists, SourceMissing, SourceUnreadable
from sparktrain.features import Categorical, Numeric, Target, Timestamp, Vector
from sparktrain.new_pipeline.create import Created, Rows, check_new, write_files
from sparktrain.new_pipeline.files import _schema
from sparktrain.new_pipeline.sizes import sizes_for
from sparktrain.new_pipeline.source import Source
from sparktrain.new_pipeline.wording import declared, told
from sparktrain.preparation.glance import Glance, Seen
from sparktrain.preparation.guess import _guess


@pytest.mark.parametrize("rows", [20, 60, 150, 344, 1_999, 2_000, 20_000, 49_999, 50_000, 10**6, 10**9])
@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression"])
def test_sizes_of_any_number_of_rows_are_valid_and_give_steps(rows: int, kind: str) -> None:
    sizes = sizes_for(rows, kind)
    train = TrainConfig.model_validate(sizes["train"])
    split = sizes["prepare"]["split"]
    train_rows = rows * (1 - split["validation"] - split["test"])
    if rows >= 60:
        assert train_rows >= 2 * train.global_batch_size, "an epoch has a step or two, however the hash falls"
    assert 2 <= sizes["prepare"]["num_parts"] <= 64
    assert 16 <= sizes["prepare"]["rows_per_row_group"] <= 4096
    assert 3 <= train.epochs <= 40
    assert (train.reference == "logistic_regression") == (kind == "binary")


def test_more_rows_get_larger_batches_and_fewer_epochs() -> None:
    sizes = [sizes_for(10**power, "binary")["train"] for power in range(2, 8)]
    batches, epochs = [s["global_batch_size"] for s in sizes], [s["epochs"] for s in sizes]
    assert batches == sorted(batches)
    assert (batches[0], epochs[0]) == (16, 40) and (batches[-1], epochs[-1]) == (2048, 3)


def test_declarations_are_written_as_a_person_would() -> None:
    for feature, text in (
        (Numeric("a"), 'Numeric("a")'),
        (Numeric("a_b", column="a b", null_flag=True), 'Numeric("a_b", column="a b", null_flag=True)'),
        (Categorical("c", min_count=5), 'Categorical("c", min_count=5)'),
        (Vector("v", shape=3), 'Vector("v", shape=3)'),
        (Timestamp("t", parts=("month",)), 'Timestamp("t", parts=("month",))'),
        (Target("y"), 'Target("y")'),
        (Target("y", kind="regression"), 'Target("y", kind="regression")'),
        (Numeric('a"b'), 'Numeric("a\\"b")'),
    ):
        assert declared(feature) == text
        assert eval(text) == feature


@pytest.mark.parametrize(
    "schema",
    ["`a  b` int, " * 20 + "`tab\t` string", "`x y` struct<`a\nb`: bigint>, `" + "long " * 60 + "` int"],
)
def test_a_schema_is_written_without_a_change_to_its_names(schema: str) -> None:
    written: dict[str, str] = {}
    exec("\n".join(_schema(schema)), written)
    assert written["SCHEMA"] == schema


def test_days_at_the_ends_of_the_calendar_are_told() -> None:
    last = datetime(9999, 12, 31, 23, tzinfo=UTC).timestamp() + 5 * 3600  # an evening in Chicago
    seen = Seen("t", "timestamp", "timestamp", rows=2, count=2, low=-1e12, high=last)
    assert told(seen) == "timestamp: 0001-01-01 to 9999-12-31"


@pytest.mark.parametrize("kind", ["double", "string"])
def test_names_of_any_kind_give_files_that_are_python_and_run_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    target, other = 'a\\N{x}"""\nraise SystemExit("run")\n"""', '\\u """ b\n'
    seen = Seen(target, kind, kind, 100, 100, 20, 95, low=0.0, high=1.5, mean=0.5, deviation=0.2)
    guess = _guess(Glance(100, {name: replace(seen, column=name) for name in (target, other)}), target)
    source, no_frame = Source("csv", str(tmp_path)), cast(DataFrame, None)
    rows = Rows(source, no_frame, f"`{target}` double, `{other}` double", {other: "b"}, {other: "int"})
    created = write_files(rows, "odd", guess, tmp_path)
    assert len(created.files) == 7
    monkeypatch.syspath_prepend(str(tmp_path / "pipelines"))
    for module in ("odd", "odd.data", "odd.model"):
        importlib.import_module(module)
    for module in ("odd", "odd.data", "odd.model"):
        del sys.modules[module]


def test_what_was_guessed_is_shown_with_whole_names_and_notes_of_one_colour(tmp_path: Path) -> None:
    name, target = "od280/od315_of_diluted_wines_as_of_2024", "kind"
    seen = {n: Seen(n, "double", "double", 10, 10, 9, 90, low=0.5, high=2, mean=1) for n in (name, target)}
    guess = _guess(Glance(10, seen), target)
    guess = replace(guess, columns=seen, warnings={name: "it has 12 values of 'a' in 2024"})
    file = StringIO()
    _show(
        Created("wines", tmp_path, (), guess),
        Console(file=file, width=60, color_system="standard", force_terminal=True),
    )
    lines = [re.split("[│┃┡]", line) for line in file.getvalue().splitlines()]
    plain = [re.sub(r"\x1b\[[0-9;]*m", "", line[1]).strip() for line in lines if len(line) > 3]
    assert name in "".join(plain) and "…" not in file.getvalue()
    warning = file.getvalue().partition("Look at")[2].partition("Written")[0].strip()
    styles = set(re.findall(r"\x1b\[([0-9;]*)m", warning.removesuffix("\x1b[1m")))
    assert "12" in warning and styles == {"33", "0"}, "yellow, and its end"


def test_a_source_is_told_by_its_name_or_by_what_lies_there(tmp_path: Path) -> None:
    table = pa.table({"a": [1]})
    (tmp_path / "parts" / "year=2013").mkdir(parents=True)
    pq.write_table(table, tmp_path / "parts" / "year=2013" / "x.parquet")
    pq.write_table(table, tmp_path / "no_suffix")
    for name in ("x.csv", "x.csv.gz", "x.jsonl"):
        (tmp_path / name).write_text("a\n1\n")
    expected = {
        "parts": "parquet",
        "no_suffix": "parquet",
        "x.csv": "csv",
        "x.csv.gz": "csv",
        "x.jsonl": "json",
    }
    assert {name: Source.of(str(tmp_path / name)).kind for name in expected} == expected
    (tmp_path / "year=2023").mkdir()
    (tmp_path / "year=2023" / "rows.csv").write_text("a\n1\n")
    several = str(tmp_path / "year=*")
    assert Source.of(several) == Source("csv", several)
    (tmp_path / "spans.csv").write_text('a,b\n1,"two\nlines"\n2,x\n')
    (tmp_path / "never_closed.csv").write_text('a,b\n1,"two\nlines\n2,x\n')
    assert Source.of(str(tmp_path / "spans.csv")).multiline
    assert not Source.of(str(tmp_path / "never_closed.csv")).multiline
    assert Source.of("sales.orders") == Source("table", "sales.orders")
    assert Source.of("s3://bucket/orders.csv").kind == "csv"
    assert Source.of("s3://bucket/orders").kind == "parquet"
    with pytest.raises(SourceMissing):
        Source.of("orders.csv")
    with pytest.raises(SourceUnreadable, match="no Parquet"):
        (tmp_path / "x.parquet").write_text("a\n1\n")
        Source.of(str(tmp_path / "x.parquet"))


@pytest.mark.parametrize(
    "name", ["", "A", "1st", "with-dash", "with space", "class", "../up", "__init__", "__x"]
)
def test_a_name_that_can_not_be_one_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="can't name a pipeline"):
        check_new(name, tmp_path)


def test_what_is_there_already_is_named_all_at_once(tmp_path: Path) -> None:
    check_new("x", tmp_path)
    (tmp_path / "pipelines" / "x").mkdir(parents=True)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_x.py").touch()
    with pytest.raises(PipelineExists) as caught:
        check_new("x", tmp_path)
    assert "pipelines/x" in str(caught.value) and "tests/test_x.py" in str(caught.value)
    assert "conf/x.yaml" not in str(caught.value)
