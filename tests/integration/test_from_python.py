"""The functions of the package, as a notebook or a script uses them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
from pyspark.sql import SparkSession

import sparktrain
from sparktrain.config import parse_config
from sparktrain.errors import ConfigError
from sparktrain.features import Categorical, Numeric, Target
from sparktrain.gang.shipping import ship_package
from sparktrain.testing import write_tiny_dataset
from sparktrain.training.task import BinaryClassification

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

SCORES = ("prediction", "probability", "score_error")
NAMES = ("prepare", "train", "score", "open_dataset", "Gang", "Dataset")

MODEL = """
    from dataclasses import dataclass

    import torch
    from torch import nn

    from sparktrain.training.task import BinaryClassification


    @dataclass(frozen=True)
    class Task(BinaryClassification):
        width: int = 8

        def build_model(self, features):
            return Network(features, self.width)


    class Network(nn.Module):
        def __init__(self, features, width):
            super().__init__()
            self.numeric = [feature.name for feature in features.numeric]
            [colour] = features.categorical
            self.colour = nn.Embedding(colour.num_codes, 2)
            inputs = len(self.numeric) + 2
            self.layers = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, 1))

        def forward(self, batch):
            columns = [batch[name].unsqueeze(1) for name in self.numeric]
            return self.layers(torch.cat([*columns, self.colour(batch["colour"])], dim=1)).squeeze(1)
"""


def test_every_name_of_the_package_is_there() -> None:
    program = "import sparktrain; " + "; ".join(f"sparktrain.{name}" for name in NAMES)
    program += (
        "; assert callable(sparktrain.prepare) and callable(sparktrain.train) and callable(sparktrain.score)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


class TaskOfThisFile(BinaryClassification):
    """A Task where a registered model would not find it again."""

    def build_model(self, features: object) -> object:  # type: ignore[override]
        raise AssertionError("nobody should come here")


def test_a_task_that_a_model_could_not_find_again_is_refused_before_the_training(tmp_path: Path) -> None:
    config = parse_config({"pipeline": "flight_delays", "storage": {"root": tmp_path / "out"}})
    dataset = write_tiny_dataset(tmp_path / "dataset")
    with pytest.raises(
        ConfigError, match=r"TaskOfThisFile was given; define the class as Task in the model.py"
    ):
        sparktrain.train(dataset, TaskOfThisFile(), config)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of the user's own with a Task, on the driver's path."""
    package = tmp_path / "code" / "shapes"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "model.py").write_text(dedent(MODEL))
    monkeypatch.syspath_prepend(str(package.parent))
    return package


@pytest.mark.spark
def test_a_dataframe_becomes_probabilities(spark: SparkSession, shapes: Path, tmp_path: Path) -> None:
    from shapes.model import Task

    values = [(i, i % 7 / 7.0, i % 5 / 5.0, "red" if i % 3 else "blue") for i in range(4000)]
    rows = spark.createDataFrame(
        [(i, a, b, colour, a + b + (colour == "red") > 1.3) for i, a, b, colour in values],
        "id long, length double, height double, colour string, large boolean",
    )
    config = parse_config(
        {
            "pipeline": "flight_delays",
            "storage": {"root": tmp_path / "out"},
            "train": {"epochs": 8, "global_batch_size": 256, "learning_rate": 0.02},
            "tracking": {"experiment": "shapes", "registered_model": "shapes"},
        }
    )
    features = [Numeric("length"), Numeric("height"), Categorical("colour")]
    dataset = sparktrain.prepare(
        rows, features, Target("large"), config.prepare, name="shapes", root=tmp_path / "out", key=["id"]
    )
    result = sparktrain.train(dataset, Task(width=16), config, spark=spark)
    uri = f"sqlite:///{tmp_path}/out/mlflow.db"
    scored = sparktrain.score(rows.drop("large"), result.model_uri, tracking_uri=uri)

    assert result.status == "finished" and result.metrics["test/auroc"] > 0.9
    assert sparktrain.open_dataset(dataset.path).fingerprint == dataset.fingerprint
    assert scored.columns == ["id", "length", "height", "colour", *SCORES]
    ends = scored.where("id in (6, 27)").orderBy("id").collect()
    assert scored.count() == 4000 and len(ends) == 2
    assert sparktrain.Gang(spark, ranks=2).run(abs, -3) == [3, 3]


@pytest.mark.spark
def test_a_package_is_sent_once_a_session_and_a_change_is_told(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    package = tmp_path / "code" / "circles"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(package.parent))
    ship_package(spark, "circles")
    ship_package(spark, "circles")
    assert not caplog.records
    (package / "__init__.py").write_text("changed = True\n")
    ship_package(spark, "circles")
    assert "has changed: executors keep the code" in caplog.text


THREE_LINES = """
    from dataclasses import dataclass

    from torch import nn

    from sparktrain.training.module_task import ModuleTask


    @dataclass(frozen=True)
    class Task(ModuleTask):
        loss_name = "binary_cross_entropy_with_logits"
        width: int = 8

        def module(self, features):
            inputs = len(features.numeric)
            return nn.Sequential(nn.Linear(inputs, self.width), nn.ReLU(), nn.Linear(self.width, 1))
"""


@pytest.mark.spark
def test_a_module_that_knows_no_batch_trains_in_a_gang_and_scores_raw_rows(
    spark: SparkSession, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = shapes.parent / "lines"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "model.py").write_text(dedent(THREE_LINES))
    from lines.model import Task

    dataset = write_tiny_dataset(
        tmp_path / "dataset", 2000, validation_rows=200, test_rows=200, num_categorical=0
    )
    tree = {
        "pipeline": "flight_delays",
        "storage": {"root": tmp_path / "out"},
        "train": {"epochs": 3, "global_batch_size": 64, "num_lanes": 4, "learning_rate": 0.02},
        "tracking": {"experiment": "lines", "registered_model": "lines"},
    }
    result = sparktrain.train(dataset, Task(width=5), parse_config(tree), spark=spark)
    rows = spark.createDataFrame([(3.0, 3.0), (-3.0, -3.0)], "numeric_0 double, numeric_1 double")
    uri = f"sqlite:///{tmp_path}/out/mlflow.db"
    scored = sparktrain.score(rows, result.model_uri, tracking_uri=uri).orderBy("numeric_0").collect()
    assert result.world_size == 2 and result.metrics["test/auroc"] > 0.9
    assert scored[0].probability < 0.1 and scored[1].probability > 0.9
