"""Scoring a table on Spark beside MLflow's own way on the same model, and beside what is written by hand."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from inspect import Parameter, Signature
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from pyspark.ml.functions import predict_batch_udf
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import FloatType
from safetensors.torch import load_file, save_file

from pipelines.flight_delays.model import Task
from sparktrain.features import FittedCategorical, FittedFeatures, FittedNumeric, FittedTarget
from sparktrain.runs.registry import log_model
from sparktrain.runs.tracking import Tracker
from sparktrain.scoring import score
from sparktrain.scoring.lookup import fetch_model
from sparktrain.testing import write_tiny_dataset
from tests.benchmarks.tables import median_seconds, print_table, scaled
from tests.fixtures.arrow import to_arrow
from tests.fixtures.tiny_model import new_run, tiny_config

pytestmark = [pytest.mark.spark, pytest.mark.timeout(3600)]

ROWS = scaled(2_000_000)
NUM_NUMBERS, SIZES = 12, (2, 3, 16, 100, 1000, 4000)  # values of the columns of text
NUMBERS = [f"number_{i}" for i in range(NUM_NUMBERS)]
WORDS = [f"word_{i}" for i in range(len(SIZES))]
PARTITIONS = 4  # two for each core
BATCH = 10_000  # rows: Spark's own, for all alike


def fitted() -> FittedFeatures:
    numbers = [
        FittedNumeric(name=name, column=name, input_type="double", fill=0.5, offset=0.5, scale=0.3 + 0.01 * i)
        for i, name in enumerate(NUMBERS)
    ]
    words = [
        FittedCategorical(
            name=name,
            column=name,
            input_type="string",
            vocabulary=tuple(f"w{value}" for value in range(size)),
        )
        for name, size in zip(WORDS, SIZES, strict=True)
    ]
    target = FittedTarget(name="late", column="late", kind="binary", input_type="boolean")
    return FittedFeatures(features=(*numbers, *words), targets=(target,))


def made_up(spark: SparkSession, path: Path) -> DataFrame:
    """A row's number, numbers of which some are null, words of which some are unknown or null."""
    columns = [F.when(F.rand(i) > 0.05, F.rand(100 + i)).alias(name) for i, name in enumerate(NUMBERS)]
    columns += [
        F.when(
            F.rand(200 + i) > 0.02, F.concat(F.lit("w"), (F.rand(300 + i) * size * 1.01).cast("int"))
        ).alias(name)
        for i, (name, size) in enumerate(zip(WORDS, SIZES, strict=True))
    ]
    spark.range(0, ROWS, 1, PARTITIONS).select("id", *columns).write.parquet(str(path))
    return spark.read.parquet(str(path))


def registered(folder: Path, features: FittedFeatures, rows: DataFrame) -> Path:
    """A model of random weights in a registry of its own; return its files."""
    torch.manual_seed(0)
    weights = folder / "weights.safetensors"
    save_file(Task().build_model(features).state_dict(), weights)
    tracker = Tracker.start(new_run(folder), tiny_config(folder), write_tiny_dataset(folder / "tiny"))
    uri = log_model(
        tracker,
        weights=weights,
        features=features,
        pipeline="pipelines.flight_delays",
        arguments={},
        sample=to_arrow(rows.limit(5)),
        registered_name="benchmark",
        alias="champion",
    )
    return fetch_model(uri, tracker.uri, folder / "files")


def by_hand(model: Path) -> Callable[..., Column]:
    """The same network with one's own preprocessing, in NumPy and pandas' quick look-ups."""
    text = (model / "artifacts" / "features.json").read_bytes()
    weights = str(model / "artifacts" / "model.safetensors")

    def make() -> Callable[..., NDArray[np.float32]]:
        torch.set_num_threads(1)
        features = FittedFeatures.from_json(text)
        network = Task().build_model(features).eval()
        network.load_state_dict(load_file(weights))
        plain = json.loads(text)["features"]
        numbers = [f for f in plain if f["kind"] == "numeric"]
        words = [(f["name"], pd.Index(f["vocabulary"])) for f in plain if f["kind"] == "categorical"]

        def predict(*columns: NDArray[Any]) -> NDArray[np.float32]:
            batch: dict[str, torch.Tensor] = {}
            for feature, column in zip(numbers, columns[: len(numbers)], strict=True):
                filled = np.where(np.isnan(column), feature["fill"], column)
                normal = (filled - feature["offset"]) / feature["scale"]
                batch[feature["name"]] = torch.from_numpy(normal.astype(np.float32))
            for (name, vocabulary), column in zip(words, columns[len(numbers) :], strict=True):
                codes = vocabulary.get_indexer(column) + 2  # type: ignore[no-untyped-call]
                codes[pd.isna(column)] = 0
                batch[name] = torch.from_numpy(codes.astype(np.int32))
            with torch.inference_mode():
                return torch.sigmoid(network(batch)).numpy()

        # as if each column stood there by its name, which is how Spark counts them
        names = [Parameter(name, Parameter.POSITIONAL_ONLY) for name in (*NUMBERS, *WORDS)]
        predict.__signature__ = Signature(names)  # type: ignore[attr-defined]
        return predict

    return predict_batch_udf(make, return_type=FloatType(), batch_size=BATCH)


@pytest.fixture
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


def test_scoring_beside_mlflow_and_by_hand(spark: SparkSession, scratch: Path) -> None:
    rows = made_up(spark, scratch / "rows")
    model = registered(scratch, fitted(), rows)
    inputs = [*NUMBERS, *WORDS]
    hand = by_hand(model)
    udf = mlflow.pyfunc.spark_udf(spark, str(model), env_manager="local")
    with_udf = rows.withColumn("scores", udf(F.struct(*inputs)))
    scored = {
        "score()": score(rows, str(model)),
        "mlflow.pyfunc.spark_udf": with_udf.select("*", "scores.*").drop("scores"),
        "predict_batch_udf, by hand": rows.withColumn("probability", hand(*inputs)),
    }
    found = {name: probabilities(frame) for name, frame in scored.items()}
    for name, values in found.items():
        assert len(values) == ROWS
        np.testing.assert_allclose(values, found["score()"], rtol=0, atol=1e-5, err_msg=name)
    seconds = median_seconds({name: written(frame) for name, frame in scored.items()})
    title = f"{ROWS:,} rows, {NUM_NUMBERS} numbers and {len(WORDS)} words, {PARTITIONS} partitions, local[2]"
    for yardstick in list(scored)[1:]:
        print_table(title, seconds, yardstick, ROWS)


def probabilities(frame: DataFrame) -> NDArray[np.float64]:
    """In the order of the rows' numbers."""
    table = to_arrow(frame.select("id", "probability")).sort_by("id")
    return np.asarray(table["probability"].to_numpy(), np.float64)


def written(frame: DataFrame) -> Callable[[], None]:
    """Compute every column, and keep none."""
    return lambda: frame.write.format("noop").mode("overwrite").save()
