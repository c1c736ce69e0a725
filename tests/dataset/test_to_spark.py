"""A split as a DataFrame: the same rows and columns as in Arrow, in both layouts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest

from sparktrain.dataset import Dataset
from sparktrain.errors import NameUnknown
from sparktrain.testing import write_tiny_dataset
from tests.fixtures.arrow import needs_page_checksums

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

pytestmark = pytest.mark.spark


@pytest.fixture(scope="module", params=["columns", "blocks"])
def dataset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_tiny_dataset(
        tmp_path_factory.mktemp("data") / "tiny d",
        [[10, 3], [], [7]],
        test_rows=0,
        vector_shape=(2, 3),
        vector_dtype="uint8",
        text=True,
        layout=request.param,
    )


def rows(frame: DataFrame) -> list[dict[str, Any]]:
    return sorted((row.asDict() for row in frame.collect()), key=lambda row: str(row["row_id"]))


def test_a_frame_has_the_rows_of_the_split(dataset: Dataset, spark: SparkSession) -> None:
    frame = dataset.to_spark(spark, "train")
    assert frame.dtypes == [
        ("row_id", "bigint"),
        ("numeric_0", "float"),
        ("numeric_1", "float"),
        ("category_0", "int"),
        ("label", "float"),
        ("vector", "array<smallint>"),
        ("text", "string"),
    ]
    wanted = sorted(dataset.to_arrow("train").to_pylist(), key=lambda row: str(row["row_id"]))
    assert rows(frame) == wanted


@pytest.mark.parametrize(
    "names", [["row_id", "category_0", "text"], ["vector", "row_id"], ["numeric_1", "row_id", "label"]]
)
def test_columns_can_be_chosen(dataset: Dataset, spark: SparkSession, names: list[str]) -> None:
    frame = dataset.to_spark(spark, "train", names)
    assert frame.columns == names
    wanted = sorted(dataset.to_arrow("train", names).to_pylist(), key=lambda row: str(row["row_id"]))
    assert rows(frame) == wanted


def test_scalar_columns_are_read_by_spark_itself(dataset: Dataset, spark: SparkSession) -> None:
    frame = dataset.to_spark(spark, "train", ["row_id", "numeric_0"])
    assert bool(frame.inputFiles()) == (dataset.manifest.layout == "columns")


def test_a_split_without_rows_has_the_columns(dataset: Dataset, spark: SparkSession) -> None:
    assert dataset.to_spark(spark, "test").count() == 0
    none = dataset.manifest.splits["test"].model_copy(update={"parts": ()})
    splits = {**dataset.manifest.splits, "test": none}
    without = Dataset(dataset.path, dataset.manifest.model_copy(update={"splits": splits}))
    frame = without.to_spark(spark, "test", ["text", "vector"])
    assert (frame.columns, frame.count()) == (["text", "vector"], 0)


def test_rows_of_a_large_shape_go_over_in_several_batches(tmp_path: Path, spark: SparkSession) -> None:
    dataset = write_tiny_dataset(tmp_path / "tiny", [[30]], vector_shape=(512, 512))
    sizes = dataset.to_spark(spark, "train", ["row_id", "vector"]).selectExpr(
        "row_id", "vector[512 * 512 - 1] as last", "size(vector) as size"
    )
    wanted = [values[-1] for values in dataset.to_arrow("train")["vector"].to_pylist()]
    found = sorted(sizes.collect(), key=lambda row: row["row_id"])
    assert [(row["last"], row["size"]) for row in found] == [(last, 512 * 512) for last in wanted]


def test_unknown_names_are_refused(dataset: Dataset, spark: SparkSession) -> None:
    with pytest.raises(NameUnknown, match=r"no split `trian`.* Did you mean `train`"):
        dataset.to_spark(spark, "trian")
    with pytest.raises(NameUnknown, match="no column `numeric_9`"):
        dataset.to_spark(spark, "train", ["numeric_9"])


@needs_page_checksums
def test_a_flipped_bit_is_never_read_as_data(tmp_path: Path, spark: SparkSession) -> None:
    for layout, said in (("columns", "CRC"), ("blocks", "row group 0 can't be read")):
        dataset = write_tiny_dataset(tmp_path / layout, [[1000]], layout=layout)
        file = dataset.path / dataset.manifest.splits["train"].parts[0].path
        content = bytearray(file.read_bytes())
        content[pq.read_metadata(file).row_group(0).column(1).data_page_offset + 200] ^= 1
        file.write_bytes(content)
        with pytest.raises(Exception, match=said):
            dataset.to_spark(spark, "train").collect()
