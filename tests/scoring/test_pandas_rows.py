"""Rows as pandas delivers them, and scores as MLflow takes them."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pytest
from mlflow.pyfunc.scoring_server import predictions_to_json

from sparktrain.features import InputType
from sparktrain.preparation import cast_columns
from sparktrain.scoring.pandas_rows import raw_columns, scores_frame

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

SCORES = pa.RecordBatch.from_pydict(
    {
        "flag": pa.array([True, None, False]),
        "class": pa.array([1, None, 3], pa.int64()),
        "number": pa.array([0.5, None, 1.0]),
        "numbers": pa.array([[1.0, 2.0], None, [3.0, 4.0]]),
        "reason": pa.array([None, "x", None], pa.string()),
    }
)


def test_scores_with_nulls_are_json_that_everybody_reads() -> None:
    from io import StringIO

    answer = StringIO()
    predictions_to_json(scores_frame(SCORES, pd.RangeIndex(3)), answer)
    assert "NaN" not in answer.getvalue()
    assert json.loads(answer.getvalue())["predictions"] == SCORES.to_pylist()


def test_scores_with_nulls_stay_null_in_mlflows_udf() -> None:
    from mlflow.pyfunc import _convert_struct_values
    from pyspark.sql.pandas.types import from_arrow_schema

    frame = _convert_struct_values(scores_frame(SCORES, pd.RangeIndex(3)), from_arrow_schema(SCORES.schema))
    assert pa.RecordBatch.from_pandas(frame, schema=SCORES.schema).to_pylist() == SCORES.to_pylist()


def test_scores_without_nulls_are_what_numpy_has() -> None:
    frame = scores_frame(SCORES.take(pa.array([0, 2])), pd.Index([7, 8]))
    assert [str(kind) for kind in frame.dtypes] == ["bool", "int64", "float64", "object", "object"]
    assert list(frame.index) == [7, 8] and frame["reason"].isna().all()
    assert frame.loc[8, "numbers"].tolist() == [3.0, 4.0]
    assert len(scores_frame(SCORES.slice(0, 0), pd.RangeIndex(0))) == 0


@pytest.mark.parametrize(
    ("values", "kind", "read", "refused"),
    [
        ([1, None, 2.5], "double", [1.0, None, 2.5], {}),
        ([1.5, "x", None], "double", [1.5, None, None], {1: "'x' is no number"}),
        ([" 1.5", "-.5e1", "+2", "1."], "double", [1.5, -5.0, 2.0, 1.0], {}),
        (["far", "1_000", "1e999", "٣", ""], "double", [None] * 5, dict.fromkeys(range(5), "'")),
        (["7", 8, "7.0", "1e2"], "long", [7, 8, None, None], dict.fromkeys((2, 3), "'")),
        ([str(2**63), str(-(2**63))], "long", [None, -(2**63)], {0: "'9"}),
        ([5], "string", [None], {0: "5 is int64, expected string"}),
        ([True, None, "no"], "boolean", [True, None, None], {2: "'no' is string, expected boolean"}),
        (["a", 5], "string", ["a", None], {1: "5 is int64, expected string"}),
        (["AAE=", "AA\nE=", "?"], "binary", [b"\0\1", b"\0\1", None], {2: "no base64"}),
        ([[1, 2], [0.5], None], "doubles", [[1.0, 2.0], [0.5], None], {}),
        ([[1, 2], "1,2"], "doubles", [[1.0, 2.0], None], {1: "'1,2' is string, expected doubles"}),
        (
            ["2024-03-01", "2024-03-01T00:00:00", "soon"],
            "date",
            [date(2024, 3, 1), date(2024, 3, 1), None],
            {2: "'soon' is no ISO time"},
        ),
        (
            ["2024-03-01T10:00:00Z", "2024-03-01T10:00:00+02:00", "2024-03-01T10:00:00"],
            "timestamp",
            [datetime(2024, 3, 1, 10, tzinfo=UTC), datetime(2024, 3, 1, 8, tzinfo=UTC), None],
            {2: "a time without zone, where other rows have one"},
        ),
        (["2024-03-01T10:00:00", None], "timestamp", [datetime(2024, 3, 1, 10), None], {}),
    ],
)
def test_values_are_read_one_by_one_where_a_column_is_not_of_one_type(
    values: list[Any], kind: InputType, read: list[Any], refused: dict[int, str]
) -> None:
    rows, errors = raw_columns(pd.DataFrame({"x": pd.Series(values, dtype=object)}), {"x": kind})
    assert rows["x"].to_pylist() == read
    assert errors.keys() == refused.keys()
    assert all(errors[place].startswith(f"column `x`: {reason}") for place, reason in refused.items())


def test_vectors_of_spark_are_read_as_arrays() -> None:
    from pyspark.ml.linalg import Vectors

    values = [Vectors.dense(1.0, 2.0), Vectors.sparse(2, [1], [3.0]), None, [4, 5], "x"]
    for some, refused in ((values, {4}), (values[:4], set()), (values[:1], set())):
        rows, errors = raw_columns(pd.DataFrame({"x": pd.Series(some, dtype=object)}), {"x": "doubles"})
        assert rows["x"].to_pylist() == [[1.0, 2.0], [0.0, 3.0], None, [4.0, 5.0], None][: len(some)]
        assert set(errors) == refused


def test_text_is_the_number_that_sparks_cast_makes_of_it(spark: SparkSession) -> None:
    texts = [
        "12",
        " 1.5 ",
        "-.5",
        "1.e2",
        "1E-3",
        "+4",
        "inf",
        "-Infinity",
        "nan",
        "0x10",
        "1,5",
        "1e999",
        "5d",
    ]
    marked = cast_columns(spark.createDataFrame([(text,) for text in texts], "x string"), {"x": "double"})
    cast = dict(zip(texts, (row.x for row in marked.collect()), strict=True))
    rows, errors = raw_columns(pd.DataFrame({"x": texts}), {"x": "double"})
    for place, (text, read) in enumerate(zip(texts, rows["x"].to_pylist(), strict=True)):
        assert (place in errors) == (read is None)
        if text == "5d":  # Java's notation: refused, rather than guessed at
            assert read is None and cast[text] == 5.0
        else:
            assert repr(read) == repr(cast[text]), text


def test_a_column_that_is_not_there_is_left_to_the_check_of_the_schema() -> None:
    rows, errors = raw_columns(pd.DataFrame({"x": ["far", "near"], "y": [1, 2]}), {"x": "double"})
    assert rows["x"].null_count == 2 and set(errors) == {0, 1}
    assert raw_columns(pd.DataFrame({"y": [1, 2]}), {"x": "double"})[0].num_columns == 0


def test_times_of_a_sparks_session_are_of_its_zone() -> None:
    frame = pd.DataFrame({"x": pd.to_datetime(["2024-03-01T10:00:00", "2024-10-27T02:30:00", None])})
    rows, _ = raw_columns(frame, {"x": "timestamp"}, "Europe/Berlin")
    first, second = datetime(2024, 3, 1, 9, tzinfo=UTC), datetime(2024, 10, 27, 0, 30, tzinfo=UTC)
    assert [value and value.astimezone(UTC) for value in rows["x"].to_pylist()] == [first, second, None]
    assert raw_columns(frame, {"x": "timestamp"})[0]["x"].type.tz is None
