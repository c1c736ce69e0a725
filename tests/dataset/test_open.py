"""Opening a dataset: what is refused, and in which words."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparktrain.dataset import Manifest, open_dataset
from sparktrain.errors import EXIT_DATA, DatasetInvalid, NameUnknown
from sparktrain.testing import write_tiny_dataset


def rewrite(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **changes}))


def test_a_dataset_says_what_it_holds(tmp_path: Path) -> None:
    written = write_tiny_dataset(tmp_path / "tiny", [[10, 3], [], [7]], validation_rows=5)
    dataset = open_dataset(str(written.path))
    assert dataset == written
    assert dataset.fingerprint == dataset.manifest.fingerprint
    assert [dataset.num_rows(split) for split in ("train", "validation", "test")] == [20, 5, 0]
    assert [part.row_groups for part in dataset.manifest.splits["train"].parts] == [(10, 3), (), (7,)]
    assert [feature.name for feature in dataset.features.features] == ["numeric_0", "numeric_1", "category_0"]
    assert dataset.steps_per_epoch("train", 8) == 2
    assert dataset.steps_per_epoch("train", 8, tail="mask") == 3
    dataset.verify()


def test_a_split_is_read_as_arrow_in_the_stored_order(tmp_path: Path) -> None:
    dataset = write_tiny_dataset(tmp_path / "tiny", [[10, 3], [], [7]], validation_rows=5)
    assert dataset.to_arrow("train")["row_id"].to_pylist() == list(range(20))
    assert dataset.to_arrow("train").schema == dataset.manifest.logical_schema
    assert dataset.to_arrow("validation", ["label", "row_id"]).column_names == ["label", "row_id"]
    assert dataset.to_arrow("test").num_rows == 0
    with pytest.raises(NameUnknown, match=r"no column `lable`.* Did you mean `label`"):
        dataset.to_arrow("train", ["lable"])


def test_examples_are_raw_rows_that_the_features_can_read(tmp_path: Path) -> None:
    dataset = write_tiny_dataset(tmp_path / "tiny", 10)
    assert dataset.examples()["category_0"].to_pylist() == ["red", "green", "blue", "grey"]
    assert set(dataset.features.transform(dataset.examples())) == {"numeric_0", "numeric_1", "category_0"}
    pq.write_table(pa.table({"numeric_0": [0.5]}), dataset.path / "examples.parquet")
    with pytest.raises(DatasetInvalid, match=r"examples\.parquet lacks .*: numeric_1, category_0"):
        dataset.examples()
    for damage in (lambda path: path.write_text("PAR1"), Path.unlink):
        damage(dataset.path / "examples.parquet")
        with pytest.raises(DatasetInvalid, match=r"examples\.parquet can't be read"):
            dataset.examples()


def test_the_newest_dataset_of_a_name_is_found(tmp_path: Path) -> None:
    dataset = write_tiny_dataset(tmp_path / "one", 10)
    (tmp_path / "latest.json").write_text(json.dumps({"path": "one"}))
    assert open_dataset(tmp_path).path == dataset.path


@pytest.mark.parametrize(
    "content", ['{"path": "../one"}', '{"path": "/one"}', '{"path": ".."}', "{}", "[]", "{"]
)
def test_a_name_that_leads_outside_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "latest.json").write_text(content)
    with pytest.raises(DatasetInvalid, match=r"latest\.json"):
        open_dataset(tmp_path)


def test_a_directory_without_manifest_was_never_committed(tmp_path: Path) -> None:
    with pytest.raises(DatasetInvalid, match="was never committed") as caught:
        open_dataset(tmp_path)
    assert caught.value.exit_code == EXIT_DATA
    with pytest.raises(DatasetInvalid, match="no such directory"):
        open_dataset(tmp_path / "nowhere")


@pytest.mark.parametrize("content", ["", "{", "\x00"])
def test_a_manifest_that_is_no_json_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(DatasetInvalid, match=r"manifest\.json can't be read"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("content", ['{"format": "sparktrain.dataset/1"}', "{}", "[]"])
def test_a_format_of_another_version_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(
        DatasetInvalid, match=r"format is .*this version of sparktrain reads 'sparktrain.dataset/2'"
    ):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"surprise": 1}, "surprise"),
        ({"fingerprint": "abc"}, "fingerprint"),
        ({"rows_in": -1}, "rows_in"),
        ({"columns": [{"name": "a", "dtype": "float16", "role": "feature"}]}, "dtype"),
        ({"columns": [{"name": "a", "dtype": "int32", "role": "feature"}] * 2}, "occur twice: a"),
        ({"columns": [{"name": "a", "dtype": "int32", "role": "feature", "shape": [0]}]}, "shape"),
        ({"columns": [{"name": "a", "dtype": "string", "role": "feature", "shape": [2]}]}, "no shape"),
        ({"columns": [{"name": "a", "dtype": "int32", "role": "label"}]}, "role"),
        ({"layout": "rows"}, "layout"),
        ({"columns": [{"name": "row_weight", "dtype": "float32", "role": "feature"}]}, "row_weight"),
    ],
)
def test_a_manifest_with_wrong_content_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    write_tiny_dataset(tmp_path / "tiny", 10)
    rewrite(tmp_path / "tiny" / "manifest.json", **changes)
    with pytest.raises(DatasetInvalid, match=said):
        open_dataset(tmp_path / "tiny")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"path": "../../etc/passwd"}, "inside the dataset's directory"),
        ({"path": "/etc/passwd"}, "inside the dataset's directory"),
        ({"path": "train/../../x"}, "inside the dataset's directory"),
        ({"path": ""}, "inside the dataset's directory"),
        ({"rows": 11}, "has 11 rows, its row groups 10"),
    ],
)
def test_a_part_that_leads_outside_or_does_not_add_up_is_refused(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    write_tiny_dataset(tmp_path / "tiny", 10, num_parts=1)
    file = tmp_path / "tiny" / "manifest.json"
    splits = json.loads(file.read_text())["splits"]
    splits["train"]["parts"][0] |= changes
    rewrite(file, splits=splits)
    with pytest.raises(DatasetInvalid, match=said):
        open_dataset(tmp_path / "tiny")


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    manifest = write_tiny_dataset(tmp_path / "tiny", 100).manifest
    assert Manifest.load(tmp_path / "tiny") == manifest
    assert (tmp_path / "tiny" / "manifest.json").read_text() == manifest.to_json()
