"""What a fitted pyspark.ml model does, checked on pyspark's own and on ours: one list of checks for both."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.evaluation import (
    BinaryClassificationEvaluator,
    MulticlassClassificationEvaluator,
    RegressionEvaluator,
)
from pyspark.ml.linalg import DenseVector, Vectors, VectorUDT
from pyspark.ml.regression import LinearRegression
from pyspark.sql import functions as F
from pyspark.sql.types import DoubleType, LongType, StructField, StructType

from sparktrain import TorchClassifier, TorchRegressionModel, TorchRegressor
from sparktrain.estimator import persistence

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

pytestmark = [pytest.mark.spark, pytest.mark.timeout(300)]

QUICK: dict[str, Any] = {"maxIter": 6, "batchSize": 32, "hiddenLayers": [8], "stepSize": 0.02}
CLASSIFIERS = {"theirs": LogisticRegression, "ours": TorchClassifier}
REGRESSORS = {"theirs": LinearRegression, "ours": TorchRegressor}


def make(kind: type[Any], **params: Any) -> Any:
    return kind(**(QUICK if kind.__name__.startswith("Torch") else {}), **params)


@dataclass
class Case:
    """An estimator, what it was fitted to, and the model."""

    estimator: Any
    df: DataFrame
    model: Any
    scored: DataFrame


@pytest.fixture(scope="module")
def df(spark: SparkSession) -> DataFrame:
    """Rows whose classes and number can be told from the vector; every other vector is sparse."""
    rows = []
    for number in range(240):
        a, b = number % 7 / 7.0, float(number % 5)
        sparse, dense = Vectors.sparse(3, [(0, a), (2, b)]), Vectors.dense(a, 0.0, b)
        score = 5 * a + b
        three = 0.0 if score < 3 else 1.0 if score < 5 else 2.0
        rows.append((number, sparse if number % 2 else dense, float(score > 4), three, 100 + 30 * a + b))
    schema = StructType(
        [
            StructField("id", LongType()),
            StructField("features", VectorUDT()),
            *(StructField(name, DoubleType()) for name in ("label", "three", "amount")),
        ]
    )
    return spark.createDataFrame(rows, schema).cache()


@pytest.fixture(scope="module", params=CLASSIFIERS)
def classifier(request: pytest.FixtureRequest, df: DataFrame) -> Case:
    estimator = make(CLASSIFIERS[request.param])
    model = estimator.fit(df)
    return Case(estimator, df, model, model.transform(df))


@pytest.fixture(scope="module", params=REGRESSORS)
def regressor(request: pytest.FixtureRequest, df: DataFrame) -> Case:
    estimator = make(REGRESSORS[request.param], labelCol="amount")
    model = estimator.fit(df)
    return Case(estimator, df, model, model.transform(df))


def test_a_classifiers_columns_come_behind_the_rows_own(classifier: Case) -> None:
    added = classifier.scored.schema.fields[len(classifier.df.columns) :]
    assert classifier.scored.columns[: len(classifier.df.columns)] == classifier.df.columns
    assert [field.name for field in added] == ["rawPrediction", "probability", "prediction"]
    assert [type(field.dataType) for field in added] == [VectorUDT, VectorUDT, DoubleType]
    assert [field.metadata["ml_attr"].get("num_attrs") for field in added[:2]] == [2, 2]
    assert added[2].metadata["ml_attr"] == {"type": "nominal", "num_vals": 2}


def test_a_regressor_adds_its_prediction(regressor: Case) -> None:
    assert regressor.scored.columns == [*regressor.df.columns, "prediction"]
    assert regressor.scored.schema["prediction"].dataType == DoubleType()


def test_all_columns_of_a_row_stay_what_they_were(classifier: Case) -> None:
    before = {row["id"]: row for row in classifier.df.collect()}
    for row in classifier.scored.select(*classifier.df.columns).collect():
        assert row == before[row["id"]]


def test_probabilities_and_predictions_follow_from_the_raw_predictions(classifier: Case) -> None:
    for row in classifier.scored.collect():
        raw, probability = row["rawPrediction"].toArray(), row["probability"].toArray()
        assert raw[0] == pytest.approx(-raw[1])
        assert probability[1] == pytest.approx(1 / (1 + math.exp(-raw[1])), abs=1e-6)
        assert probability.sum() == pytest.approx(1)
        assert row["prediction"] == probability.argmax()


def test_columns_of_the_rows_own_may_share_a_name(classifier: Case) -> None:
    doubled = classifier.df.select("*", F.col("amount").alias("id")).limit(3)
    row = classifier.model.transform(doubled).first()
    assert row is not None and row[0] != row[5] == row["amount"]


def test_sparse_and_dense_vectors_mean_the_same(classifier: Case) -> None:
    found: dict[tuple[float, ...], set[float]] = {}
    for row in classifier.scored.collect():
        found.setdefault(tuple(row["features"].toArray()), set()).add(round(row["probability"][1], 6))
    assert len(found) == 35 and all(len(values) == 1 for values in found.values())


def test_evaluators_take_what_a_classifier_gives(classifier: Case) -> None:
    assert BinaryClassificationEvaluator().evaluate(classifier.scored) > 0.9
    assert MulticlassClassificationEvaluator(metricName="accuracy").evaluate(classifier.scored) > 0.8
    assert MulticlassClassificationEvaluator(metricName="logLoss").evaluate(classifier.scored) < 0.5


def test_evaluators_take_what_a_regressor_gives(regressor: Case) -> None:
    evaluator = RegressionEvaluator(labelCol="amount", metricName="r2")
    assert evaluator.evaluate(regressor.scored) > 0.85


def test_a_model_knows_its_sizes(classifier: Case, regressor: Case) -> None:
    assert (classifier.model.numClasses, classifier.model.numFeatures) == (2, 3)
    assert regressor.model.numFeatures == 3


def test_a_model_has_the_uid_and_the_params_of_its_estimator(classifier: Case) -> None:
    assert classifier.model.uid == classifier.estimator.uid
    for name in ("maxIter", "featuresCol", "labelCol", "predictionCol"):
        assert classifier.model.getOrDefault(name) == classifier.estimator.getOrDefault(name)
    assert classifier.model.hasSummary


def test_a_model_is_printed_with_its_uid_and_sizes(classifier: Case, regressor: Case) -> None:
    for model, sizes in (
        (classifier.model, "numClasses=2, numFeatures=3"),
        (regressor.model, "numFeatures=3"),
    ):
        assert str(model) == repr(model) == f"{type(model).__name__}: uid={model.uid}, {sizes}"


def test_iterations_are_counted_as_max_iter_counts_them(classifier: Case) -> None:
    estimator = classifier.estimator
    summary = estimator.fit(classifier.df, {estimator.maxIter: 2}).summary
    assert summary.totalIterations == 2
    losses = list(summary.objectiveHistory)[-2:]  # Spark puts the loss before the first iteration in front
    assert len(summary.objectiveHistory) == (2 if isinstance(estimator, TorchClassifier) else 3)
    assert losses[1] < losses[0]


def test_single_rows_are_predicted_as_many_are(classifier: Case) -> None:
    for row in classifier.scored.limit(4).collect():
        vector = row["features"]
        assert classifier.model.predict(vector) == row["prediction"]
        raw, probability = classifier.model.predictRaw(vector), classifier.model.predictProbability(vector)
        assert isinstance(raw, DenseVector) and isinstance(probability, DenseVector)
        np.testing.assert_allclose(raw.toArray(), row["rawPrediction"].toArray(), atol=1e-5)
        np.testing.assert_allclose(probability.toArray(), row["probability"].toArray(), atol=1e-6)


def test_single_numbers_are_predicted_as_many_are(regressor: Case) -> None:
    row = regressor.scored.first()
    assert regressor.model.predict(row["features"]) == pytest.approx(row["prediction"], rel=1e-5)


def test_transform_takes_a_map_of_params_for_once(classifier: Case) -> None:
    model = classifier.model
    scored = model.transform(classifier.df, {model.predictionCol: "guess", model.probabilityCol: "chance"})
    assert scored.columns[-3:] == ["rawPrediction", "chance", "guess"]
    assert model.getPredictionCol() == "prediction"


def test_an_empty_name_switches_a_column_off(classifier: Case) -> None:
    model = classifier.model
    scored = model.transform(classifier.df, {model.rawPredictionCol: "", model.probabilityCol: ""})
    assert scored.columns == [*classifier.df.columns, "prediction"]
    assert scored.select("prediction").first() is not None


def test_setters_of_a_model_name_its_columns(classifier: Case) -> None:
    model = classifier.model.copy()
    renamed = classifier.df.withColumnRenamed("features", "vector")
    changed = model.setFeaturesCol("vector").setPredictionCol("p").setRawPredictionCol("")
    assert changed is model
    expected = classifier.scored.orderBy("id").select("prediction").collect()
    assert [row[0] for row in model.transform(renamed).orderBy("id").select("p").collect()] == [
        row[0] for row in expected
    ]


def test_thresholds_decide_which_class_is_predicted(classifier: Case) -> None:
    model = classifier.model
    scored = model.transform(classifier.df, {model.thresholds: [0.001, 0.999]})
    rows = scored.collect()
    assert {row["prediction"] for row in rows if row["probability"][0] > 0.002} == {0.0}
    with pytest.raises(Exception, match=r"(?i)threshold"):
        model.transform(classifier.df, {model.thresholds: [0.1, 0.2, 0.7]}).collect()
    with pytest.raises(Exception, match=r"(?i)threshold"):  # before a model is trained that can't be used
        classifier.estimator.fit(classifier.df, {classifier.estimator.thresholds: [0.1, 0.2, 0.7]})


def test_a_missing_column_is_named(classifier: Case) -> None:
    with pytest.raises(Exception, match="features"):
        classifier.model.transform(classifier.df.drop("features"))
    with pytest.raises(Exception, match="features"):
        classifier.estimator.fit(classifier.df.drop("features"))
    with pytest.raises(Exception, match="label"):
        classifier.estimator.fit(classifier.df.drop("label"))


def test_a_column_that_is_there_already_is_not_written_over(classifier: Case) -> None:
    with pytest.raises(Exception, match="prediction"):
        classifier.model.transform(classifier.df.withColumn("prediction", F.lit(1.0)))


def test_a_label_of_text_is_refused(classifier: Case) -> None:
    with pytest.raises(Exception, match=r"(?s)label.*(string|numeric)"):
        classifier.estimator.fit(classifier.df.withColumn("label", F.lit("yes")))


def test_a_label_that_is_no_class_is_refused(classifier: Case) -> None:
    for wrong in (-1.0, 0.5):
        with pytest.raises(Exception, match=re.compile("class|label", re.IGNORECASE)):
            classifier.estimator.fit(classifier.df.withColumn("label", F.col("label") + wrong))


def test_no_rows_are_refused(classifier: Case) -> None:
    with pytest.raises(Exception):  # noqa: B017  # Spark's own is an internal one
        classifier.estimator.fit(classifier.df.where("id < 0"))


def test_what_was_saved_comes_back(classifier: Case, tmp_path: Path) -> None:
    path = str(tmp_path / "model")
    classifier.model.save(path)
    with pytest.raises(Exception, match="exist"):
        classifier.model.save(path)
    classifier.model.write().overwrite().save(path)
    loaded = type(classifier.model).load(path)
    assert loaded.uid == classifier.model.uid and not loaded.hasSummary
    assert (loaded.numClasses, loaded.numFeatures) == (2, 3)
    for param in classifier.model.params:
        before = classifier.model
        assert loaded.isSet(param.name) == before.isSet(param.name), param.name
        if before.isDefined(param.name):
            assert loaded.getOrDefault(param.name) == before.getOrDefault(param.name), param.name
    expected = classifier.scored.orderBy("id").collect()
    assert loaded.transform(classifier.df).orderBy("id").collect() == expected


def test_an_estimator_that_was_saved_comes_back(classifier: Case, tmp_path: Path) -> None:
    path = str(tmp_path / "estimator")
    classifier.estimator.save(path)
    with pytest.raises(Exception, match="exist"):
        classifier.estimator.save(path)
    loaded = type(classifier.estimator).load(path)
    assert loaded.uid == classifier.estimator.uid
    assert {param.name: value for param, value in loaded.extractParamMap().items()} == {
        param.name: value for param, value in classifier.estimator.extractParamMap().items()
    }


def test_a_regressor_that_was_saved_predicts_the_same(
    regressor: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(persistence, "_CHUNK_BYTES", 500)  # a task carries one chunk; ours is of several
    regressor.model.save(f"file://{tmp_path}/model")
    if isinstance(regressor.model, TorchRegressionModel):
        size = len(regressor.model.fitted.packed.content)
        assert len(list((tmp_path / "model" / "data").glob("*.parquet"))) == -(-size // 500) > 2
    loaded = type(regressor.model).load(f"file://{tmp_path}/model")
    expected = regressor.scored.orderBy("id").collect()
    assert loaded.transform(regressor.df).orderBy("id").collect() == expected


def test_fit_takes_a_map_or_a_list_of_maps(classifier: Case) -> None:
    estimator = classifier.estimator
    maps = [{estimator.maxIter: 1, estimator.predictionCol: "a"}, {estimator.maxIter: 2}]
    one = estimator.fit(classifier.df, maps[0])
    several = estimator.fit(classifier.df, maps)
    assert (one.getMaxIter(), one.getPredictionCol()) == (1, "a")
    assert [model.getMaxIter() for model in several] == [1, 2]
    assert [model.getPredictionCol() for model in several] == ["a", "prediction"]
    assert estimator.getMaxIter() == classifier.model.getMaxIter(), "the estimator stays as it was"


def test_fit_multiple_gives_each_index_once(classifier: Case) -> None:
    estimator = classifier.estimator
    found = estimator.fitMultiple(classifier.df, [{estimator.maxIter: n} for n in (1, 2)])
    assert isinstance(found, Iterator)
    assert {index: model.getMaxIter() for index, model in found} == {0: 1, 1: 2}


def test_rows_of_weight_zero_teach_nothing(classifier: Case) -> None:
    right = classifier.df.withColumn("w", F.lit(2.0))
    wrong = classifier.df.withColumn("label", 1 - F.col("label")).withColumn("w", F.lit(0.0))
    weighted = right.unionByName(wrong)
    scored = classifier.estimator.copy().setWeightCol("w").fit(weighted).transform(classifier.df)
    assert BinaryClassificationEvaluator().evaluate(scored) > 0.9


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_several_classes_have_a_place_each_the_metadata_decide_how_many(df: DataFrame, kind: str) -> None:
    nominal = {"ml_attr": {"type": "nominal", "vals": ["low", "middle", "high", "never"]}}
    told = df.withColumn("three", F.col("three").alias("three", metadata=nominal))
    for rows, num_classes in ((df, 3), (told, 4)):
        model = make(CLASSIFIERS[kind], labelCol="three").fit(rows)
        assert model.numClasses == num_classes
        scored = model.transform(rows)
        row = scored.first()
        assert len(row["probability"]) == len(row["rawPrediction"]) == num_classes
        assert row["probability"].toArray().sum() == pytest.approx(1)
        evaluator = MulticlassClassificationEvaluator(labelCol="three", metricName="accuracy")
        assert evaluator.evaluate(scored) > 0.75
        assert {row["prediction"] for row in scored.collect()} <= {0.0, 1.0, 2.0}
