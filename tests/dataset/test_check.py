"""check: what footers alone tell about training on a dataset, and about any other Parquet."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparktrain.dataset.check import Report, check_dataset
from sparktrain.dataset.figures import RankFigures, SplitFigures, mixed_row_groups
from sparktrain.dataset.findings import Advice, Finding, judge_mixing, judge_parts, judge_row_groups
from sparktrain.dataset.plan import Plan
from sparktrain.errors import EXIT_DATA, ConfigError, DatasetInvalid
from sparktrain.testing import write_tiny_dataset
from sparktrain.world import World

ROWS = 40_000
random = np.random.default_rng(0)
FLOATS = random.standard_normal(ROWS, dtype=np.float32)
FEW = random.integers(0, 100, ROWS, dtype=np.int32)
MANY = random.permutation(ROWS).astype(np.int32)
SOUND: dict[str, Any] = {"use_dictionary": False, "compression": "lz4", "row_group_size": ROWS // 2}


def write(path: Path, columns: dict[str, Any], *, nullable: bool = False, **settings: Any) -> Path:
    arrays = {name: pa.array(values) for name, values in columns.items()}
    schema = pa.schema([pa.field(name, array.type, nullable) for name, array in arrays.items()])
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(list(arrays.values()), schema=schema), path, **{**SOUND, **settings})
    return path


def check_plain(tmp_path: Path, columns: dict[str, Any], **settings: Any) -> Report:
    write(tmp_path / "rows" / "a.parquet", columns, **settings)
    return check_dataset(tmp_path / "rows", 2048, 8)


def by_what(report: Report, *levels: str) -> dict[str, Finding]:
    wanted = levels or ("error", "warning", "ok")
    return {finding.what: finding for finding in report.findings if finding.level in wanted}


# --- a dataset that sparktrain wrote


def test_steps_rows_and_row_groups_are_told_by_split(tmp_path: Path) -> None:
    dataset = write_tiny_dataset(tmp_path / "tiny", 1000, validation_rows=100, test_rows=64)
    report = check_dataset(dataset.path, 64, 8)
    assert report.fingerprint == dataset.fingerprint
    assert report.splits[0] == SplitFigures("train", 2, 16, 1000, 15, 40)
    assert set(report.splits[1:]) == {
        SplitFigures("validation", 2, 2, 100, 2, 0),
        SplitFigures("test", 2, 2, 64, 1, 0),
    }
    found = by_what(report)["steps per epoch"]
    assert found.level == "ok"
    assert "15 of 64 rows, the same at any world size; 40 rows (4.00%) dropped" in found.found
    assert not report.errors


def test_ranks_share_the_rows_the_lanes_and_the_memory(tmp_path: Path) -> None:
    dataset = write_tiny_dataset(tmp_path / "tiny", 10_000)
    report = check_dataset(dataset.path, 64, 8, (1, 2, 3, 16))
    assert report.decoded_bytes_per_row == 24  # row_id, two numbers, a code, the target
    memory = {
        size: max(dataset.stream("train", 64, world=World(rank, size)).memory_bytes for rank in range(size))
        for size in (1, 2, 3, 16)
    }
    assert memory[1] > memory[2] > memory[16]
    assert report.ranks == (
        RankFigures(1, 64, 64, 8, memory[1]),
        RankFigures(2, 32, 32, 4, memory[2]),
        RankFigures(3, 21, 22, 4, memory[3]),
        RankFigures(16, 4, 4, 1, memory[16]),
    )


def test_the_directory_above_a_dataset_means_the_newest(tmp_path: Path) -> None:
    dataset = write_tiny_dataset(tmp_path / "tiny", 1000)
    (tmp_path / "latest.json").write_text('{"path": "tiny"}')
    assert check_dataset(tmp_path, 64, 8) == check_dataset(dataset.path, 64, 8)


def test_no_page_is_read(tmp_path: Path) -> None:
    dataset = write_tiny_dataset(tmp_path / "tiny", 5000, validation_rows=300)
    before = check_dataset(dataset.path, 64, 8)
    for path in dataset.path.glob("train/*.parquet"):
        content = bytearray(path.read_bytes())
        footer = 8 + int.from_bytes(content[-8:-4], "little")
        assert len(content) > 2 * footer, "most of the file are pages"
        content[4:-footer] = bytes(len(content) - footer - 4)
        path.write_bytes(content)
    with pytest.raises(DatasetInvalid):
        dataset.to_arrow("train")
    assert check_dataset(dataset.path, 64, 8) == before


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def break_footer(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4] + b"NOPE")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (truncate, "bytes, the manifest says"),
        (empty, "has 0 bytes"),
        (Path.unlink, "is missing"),
        (break_footer, "can't be opened"),
    ],
)
def test_every_damaged_part_is_named(tmp_path: Path, damage: Callable[[Path], None], said: str) -> None:
    dataset = write_tiny_dataset(tmp_path / "tiny", 1000, num_parts=4)
    names = [dataset.manifest.splits["train"].parts[number].path for number in (0, 2)]
    for name in names:
        damage(dataset.path / name)
    report = check_dataset(dataset.path, 64, 8)
    assert [finding.what for finding in report.errors] == names
    assert all(said in finding.found and finding.way_out == "prepare it again" for finding in report.errors)
    assert report.findings[: len(names)] == report.errors, "errors come first"


def test_a_dataset_whose_parts_are_all_gone_is_told_part_by_part(tmp_path: Path) -> None:
    dataset = write_tiny_dataset(tmp_path / "tiny", 1000)
    for path in dataset.path.rglob("*.parquet"):
        path.unlink()
    report = check_dataset(dataset.path, 64, 8)
    assert len(report.errors) == 6 and report.columns == ()


def test_another_schema_and_changed_features_are_errors(tmp_path: Path) -> None:
    dataset = write_tiny_dataset(tmp_path / "tiny", 1000)
    part = dataset.manifest.splits["train"].parts[1]
    table = pq.read_table(dataset.path / part.path).rename_columns(
        ["row_id", "numeric_0", "other", "category_0", "label"]
    )
    pq.write_table(table, dataset.path / part.path, row_group_size=64)
    manifest = json.loads((dataset.path / "manifest.json").read_text())
    manifest["splits"]["train"]["parts"][1]["size_bytes"] = (dataset.path / part.path).stat().st_size
    (dataset.path / "manifest.json").write_text(json.dumps(manifest))
    (dataset.path / "features.json").write_text("{}")
    schema, features = check_dataset(dataset.path, 64, 8).errors
    assert schema.what == "schema" and features.what == "features.json"
    for said in ("missing column `numeric_1`", "unexpected column `other`", part.path):
        assert said in schema.found
    assert "was changed" in features.found and features.way_out


def test_too_few_rows_and_none_at_all_are_errors(tmp_path: Path) -> None:
    few = check_dataset(write_tiny_dataset(tmp_path / "few", 60).path, 64, 8).errors
    assert [(f.what, f.way_out) for f in few] == [("steps per epoch", "a global batch of 60 rows or less")]
    none = check_dataset(write_tiny_dataset(tmp_path / "none", 0).path, 64, 8).errors
    assert [f.found for f in none] == ["train has no row"]


def test_numbers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = write_tiny_dataset(tmp_path / "tiny", 1000).path
    with pytest.raises(ConfigError, match="num_lanes is 3"):
        check_dataset(path, 64, 3)
    with pytest.raises(ConfigError, match="ranks: 65; allowed are 1 to 64"):
        check_dataset(path, 64, 8, (1, 65))


def test_a_thousand_files_take_about_a_second(tmp_path: Path) -> None:
    first = write(tmp_path / "rows" / "0.parquet", {f"x{i}": FLOATS[:64] for i in range(40)})
    for number in range(1, 1000):
        shutil.copyfile(first, first.with_name(f"{number}.parquet"))
    began = time.monotonic()
    report = check_dataset(tmp_path / "rows", 64, 8)
    assert time.monotonic() - began < 5  # half a second on a quiet machine
    assert report.splits[0].num_parts == report.splits[0].steps_per_epoch == 1000


# --- judgement, without files


def advice(num_lanes: int = 8, bytes_per_row: float = 100.0, global_batch_size: int = 2048) -> Advice:
    return Advice("rows={}", "parts={}", global_batch_size, num_lanes, bytes_per_row)


def test_too_few_row_groups_for_the_lanes_say_how_many_would_do() -> None:
    found = judge_mixing([16_384] * 40, 8.0, advice())
    assert found.level == "warning" and "40 row groups for 8 lanes, fewer than 64" in found.found
    assert found.way_out == "train.num_lanes=4, or rows=8192 (819.2 kB decoded)"
    assert found.found.endswith("each has rows of 8")
    assert judge_mixing([16_384] * 64, 8.0, advice()).level == "ok"
    assert judge_mixing([3], 1.0, advice(num_lanes=1)).way_out == "more rows"


def test_mixing_is_what_the_batches_of_a_stream_really_hold(tmp_path: Path) -> None:
    dataset = write_tiny_dataset(tmp_path / "tiny", 10_000, rows_per_row_group=100)
    row_groups = [rows for part in dataset.manifest.splits["train"].parts for rows in part.row_groups]
    stream = dataset.stream("train", 64, num_lanes=8)
    mixed = []
    for step in range(0, stream.steps_per_epoch, stream.steps_per_epoch // 32):
        told = stream.explain(step)
        mixed.append(len(set(zip(told["part"].to_pylist(), told["row_group"].to_pylist(), strict=True))))
    found = mixed_row_groups(Plan(10_000, 64, 8), row_groups)
    assert found == pytest.approx(np.mean(mixed)) and 7 < found < 16


@given(
    row_groups=st.lists(st.integers(1, 10_000), min_size=1, max_size=600),
    lanes=st.sampled_from([1, 2, 4, 8, 16, 32, 64]),
)
def test_what_the_way_out_of_poor_mixing_says_is_enough(row_groups: Sequence[int], lanes: int) -> None:
    found = judge_mixing(row_groups, float(lanes), advice(lanes))
    if found.level == "ok":
        assert len(row_groups) >= 8 * lanes
        return
    for way in found.way_out.split(", or "):
        key, _, number = way.partition(" ")[0].partition("=")
        if key == "train.num_lanes":
            fewer = int(number)
            assert fewer < lanes and (fewer == 1 or len(row_groups) >= 8 * fewer)
        elif key == "rows":
            assert sum(row_groups) // int(number) >= 8 * lanes


@pytest.mark.parametrize(
    ("row_groups", "level", "way_out"),
    [
        ([20_000] * 640, "ok", ""),  # 2 MB
        ([2_000] * 10_000, "warning", "rows=32768 (3.3 MB decoded)"),
        ([2_000] * 500, "warning", "rows=8192 (819.2 kB decoded)"),  # larger ones would not mix
        ([2_000] * 64, "ok", ""),
        ([500_000] * 640, "warning", "rows=32768 (3.3 MB decoded)"),
        ([20_000, 20_000, 3], "ok", ""),  # the short last one tells nothing
    ],
)
def test_row_groups_are_judged_by_their_decoded_size(row_groups: list[int], level: str, way_out: str) -> None:
    found = judge_row_groups(row_groups, 4, advice())
    assert (found.level, found.way_out) == (level, way_out), found


def test_small_row_groups_in_small_files_need_fewer_files_too() -> None:
    found = judge_row_groups([2_000] * 10_000, 10_000, advice())
    assert found.way_out == "rows=32768 (3.3 MB decoded) with parts=610 or less"


def test_skewed_and_tiny_parts_are_named() -> None:
    found = judge_parts({"a": 100, "b": 110, "c": 500, "d": 3, "e": 90}, "repartition")
    assert found.level == "warning" and found.way_out == "repartition"
    assert "1 far larger: c (500 rows); 1 tiny: d (3 rows)" in found.found
    assert judge_parts({"a": 100, "b": 110}, "").level == "ok"


# --- Parquet that sparktrain did not write


def test_a_sound_layout_has_no_warning(tmp_path: Path) -> None:
    wide = {f"x{i}": FLOATS for i in range(10)}
    pixels = pa.array([b"12345678"] * ROWS, pa.binary(8))
    report = check_plain(tmp_path, {**wide, "code": FEW, "pixels": pixels})
    assert not by_what(report, "error", "warning"), report.findings
    assert report.decoded_bytes_per_row == 10 * 4 + 4 + 8
    assert report.fingerprint is None and report.num_lanes is None and report.ranks == ()
    assert report.splits == (SplitFigures("all", 1, 2, ROWS, 19, ROWS % 2048),)
    assert "footers don't tell" in by_what(report)["page checksums"].found


@pytest.mark.parametrize(
    ("columns", "settings", "what", "said"),
    [
        ({"x": FLOATS}, {"nullable": True}, "nullable floats", "x"),
        ({"code": FEW}, {"nullable": True}, "nullable columns", "code"),
        ({"x": FLOATS}, {"use_dictionary": True}, "dictionary on floats", "x"),
        ({"id": MANY}, {"use_dictionary": True}, "dictionary on many values", "id"),
        ({"s": MANY.astype(str)}, {"use_dictionary": True}, "dictionary on many values", "s"),
        ({"v": np.tile(FLOATS, (4, 1)).T.tolist()}, {}, "lists", "v.list.element (4 values a row)"),
        ({"v": [[1, 2], [3]] * 100}, {}, "lists", "v.list.element"),
        ({"x": FLOATS}, {"compression": "zstd"}, "slow codec", "x (ZSTD)"),
        ({"x": FLOATS}, {"compression": "gzip"}, "slow codec", "x (GZIP)"),
    ],
)
def test_each_fault_of_the_layout_is_found_and_has_a_way_out(
    tmp_path: Path, columns: dict[str, Any], settings: dict[str, Any], what: str, said: str
) -> None:
    found = by_what(check_plain(tmp_path, columns, **settings), "warning")
    found.pop("row groups", None)
    assert list(found) == [what]
    assert found[what].found.endswith(f": {said}") and found[what].way_out


@pytest.mark.parametrize(
    ("columns", "settings"),
    [
        ({"code": FEW}, {"use_dictionary": True}),
        ({"s": FEW.astype(str)}, {"use_dictionary": True}),
        ({"x": FLOATS}, {"compression": "zstd", "use_byte_stream_split": True}),
        ({"x": FLOATS}, {"compression": "snappy"}),
        ({"dotted.name": FLOATS}, {}),
    ],
)
def test_what_serves_its_purpose_is_no_fault(
    tmp_path: Path, columns: dict[str, Any], settings: dict[str, Any]
) -> None:
    found = by_what(check_plain(tmp_path, columns, **settings), "error", "warning")
    assert not set(found) - {"row groups"}, found


def test_many_columns_with_one_fault_make_one_finding(tmp_path: Path) -> None:
    report = check_plain(tmp_path, {f"x{i}": FLOATS for i in range(30)}, nullable=True)
    found = by_what(report, "warning")["nullable floats"].found
    assert found.startswith("30 (") and found.endswith("x0, x1, x2, x3, x4, … 25 more")
    assert sum(column.nullable for column in report.columns) == 30


def test_damaged_and_differing_files_are_named(tmp_path: Path) -> None:
    root = tmp_path / "rows"
    for name in "abcde":
        write(root / f"{name}.parquet", {"x": FLOATS, "y": FLOATS})
    empty(root / "b.parquet")
    truncate(root / "c.parquet")
    write(root / "d.parquet", {"x": FLOATS, "y": FEW})
    errors = check_dataset(root, 64, 8).errors
    assert [error.what for error in errors] == ["b.parquet", "c.parquet", "schema"]
    assert "0 bytes" in errors[0].found and "can't be opened" in errors[1].found
    assert errors[2].found == "column `y` is int32, expected float in d.parquet"


def test_what_is_no_data_for_spark_is_none_here_either(tmp_path: Path) -> None:
    for name in ("day=1/a.parquet", "_temporary/b.parquet", "day=2/.c.parquet"):
        write(tmp_path / "rows" / name, {"x": FLOATS})
    assert check_dataset(tmp_path / "rows", 2048, 8).splits[0].num_rows == ROWS
    assert check_dataset(tmp_path / "rows" / "day=1" / "a.parquet", 2048, 8).splits[0].num_rows == ROWS


def test_where_nothing_is_to_look_at_the_way_out_is_told(tmp_path: Path) -> None:
    with pytest.raises(DatasetInvalid, match="there is no such directory") as caught:
        check_dataset(tmp_path / "nowhere", 64, 8)
    assert caught.value.exit_code == EXIT_DATA
    with pytest.raises(DatasetInvalid, match=r"neither manifest\.json nor a Parquet file"):
        check_dataset(tmp_path, 64, 8)
    for name in ("one", "two"):
        write_tiny_dataset(tmp_path / name, 10)
    with pytest.raises(DatasetInvalid, match=r"several datasets: .*one, .*two.*give one of them"):
        check_dataset(tmp_path, 64, 8)


def test_a_report_is_json(tmp_path: Path) -> None:
    report = check_dataset(write_tiny_dataset(tmp_path / "tiny", 1000).path, 64, 8)
    back = json.loads(json.dumps(report.to_dict()))
    assert back["splits"][0]["steps_per_epoch"] == 15
    assert back["ranks"][1]["max_rows_per_step"] == 32
    assert {"level", "what", "found", "way_out"} == set(back["findings"][0])
    assert back["columns"][0]["name"] == "row_id"
