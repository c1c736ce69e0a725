"""Fits of our own kind: plain columns, invalid rows, a Task of the user's, MLflow, what stays behind."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pytest
from pyspark.ml.evaluation import BinaryClassificationEvaluator, RegressionEvaluator
from pyspark.ml.feature import VectorAssembler
from pyspark.ml.linalg import Vectors, VectorUDT
from pyspark.ml.tuning import TrainValidationSplit
from pyspark.sql import functions as F
from pyspark.sql.types import StructField, StructType

from sparktrain import TorchClassifier, TorchRegressor, score
from sparktrain.errors import (
    ConfigError,
    LabelUnfit,
    PipelineFailed,
    RowsInvalid,
    SchemaMismatch,
    SparktrainError,
    StorageUnwritable,
    WeightsUnfit,
)
from sparktrain.estimator.fitting import _warn_of_lost_digits
from sparktrain.estimator.look import Look, Spread
from sparktrain.features import Categorical, Numeric
from sparktrain.scoring.lookup import fetch_model

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

pytestmark = [pytest.mark.spark, pytest.mark.timeout(600)]

QUICK: dict[str, Any] = {"maxIter": 6, "batchSize": 32, "hiddenLayers": [8], "stepSize": 0.02}
PLAIN = ["size", "colour", "is_old", "made_at"]


@pytest.fixture(scope="module")
def plain(spark: SparkSession) -> DataFrame:
    """Columns of many types, one in ten values null."""
    rows = []
    for number in range(300):
        size, colour = number % 7 / 7.0, ("red", "green", "blue")[number % 3]
        label = float(size + (colour == "red") > 0.8)
        made_at = datetime(2020, 1 + number % 12, 1)
        gone = number % 10 == 3
        rows.append(
            (
                number,
                float("nan") if gone else size,
                None if gone else colour,
                None if gone else number % 2 == 0,
                None if gone else made_at,
                label,
                label * 50 + size,
                number % 4 == 0,
            )
        )
    types = "id long, size double, colour string, is_old boolean, made_at timestamp, label double"
    return spark.createDataFrame(rows, f"{types}, amount double, held_out boolean").cache()


def test_rows_with_a_null_are_refused_left_out_or_kept(plain: DataFrame) -> None:
    infinite = plain.withColumn("size", F.when(F.col("id") < 2, float("inf")).otherwise(F.col("size")))
    told = r"32 of 300 rows have a null, a NaN or an infinity, in one of: size, colour"
    with pytest.raises(RowsInvalid, match=told):
        TorchClassifier(inputCols=PLAIN, **QUICK).fit(infinite)
    told = r"30 of 300 rows have a null, a NaN or an infinity, in one of: size, colour"
    with pytest.raises(RowsInvalid, match=told):
        TorchClassifier(inputCols=PLAIN, **QUICK).fit(plain)
    model = TorchClassifier(inputCols=PLAIN, handleInvalid="keep", **QUICK).fit(plain)
    kept = model.transform(plain)
    assert kept.where("prediction IS NOT NULL").count() == 300
    assert BinaryClassificationEvaluator().evaluate(kept) > 0.85
    skipped = model.transform(plain, {model.handleInvalid: "skip"})
    assert skipped.count() == 270
    with pytest.raises(Exception, match="A row has a null, a NaN or an infinity"):
        model.setHandleInvalid("error").transform(plain).collect()
    assert model.numFeatures == 4
    with pytest.raises(SchemaMismatch, match="column `size` is string, expected double"):
        model.transform(plain.withColumn("size", F.lit("large")))  # refused before any job
    nominal = F.col("size").alias("size", metadata={"ml_attr": {"type": "nominal"}})
    again = model.transform(plain.withColumn("size", nominal), {model.handleInvalid: "keep"})
    assert again.select("probability").take(20) == kept.select("probability").take(20), (
        "a number became a class"
    )
    given = {"size": 0.9, "colour": "never seen", "is_old": None, "made_at": None}
    assert model.predict(given) in (0.0, 1.0)
    with pytest.raises(TypeError, match="give a dict of the columns size, colour"):
        model.predict(Vectors.dense(1.0))
    with pytest.raises(SchemaMismatch, match="missing column `colour`"):
        model.predict({"size": 0.9, "is_old": None, "made_at": None})


def test_columns_of_any_name_are_learnt_from_and_kept(plain: DataFrame) -> None:
    odd = plain.select(
        F.col("size").alias("si.ze"),
        F.col("colour").alias("the colour"),
        "label",
        F.lit(1).alias("my.extra"),
    )
    classifier = TorchClassifier(inputCols=["si.ze", "the colour"], handleInvalid="keep", **QUICK)
    scored = classifier.fit(odd).transform(odd)
    assert scored.columns[:4] == odd.columns
    assert scored.where("prediction IS NOT NULL").count() == 300


def test_rows_to_validate_on_are_named_or_drawn_and_end_the_training(plain: DataFrame) -> None:
    regressor = TorchRegressor(
        inputCols=["size", "colour"],
        labelCol="amount",
        handleInvalid="skip",
        validationIndicatorCol="held_out",
        patience=1,
        **{**QUICK, "maxIter": 40, "stepSize": 0.3},
    )
    model = regressor.fit(plain)
    told = model.summary
    assert len(told.validationHistory) >= 2 and told.metrics["validation/loss"] == min(told.validationHistory)
    assert told.totalIterations < 40, "it did not stop early"
    assert told.totalIterations == len(told.objectiveHistory) == len(told.validationHistory)
    evaluator = RegressionEvaluator(labelCol="amount", metricName="r2")
    assert evaluator.evaluate(model.transform(plain)) > 0.5


def test_a_split_takes_the_best_and_rows_that_are_drawn_end_the_training(plain: DataFrame) -> None:
    quick = {**QUICK, "maxIter": 40, "stepSize": 0.3}
    regressor = TorchRegressor(
        inputCols=["size", "colour"],
        labelCol="amount",
        handleInvalid="skip",
        patience=1,
        validationFraction=0.3,
        **quick,
    )
    maps = [{regressor.maxIter: 1, regressor.stepSize: 1e-6}, {regressor.hiddenLayers: [8]}]
    evaluator = RegressionEvaluator(labelCol="amount", metricName="r2")
    split = TrainValidationSplit(
        estimator=regressor, estimatorParamMaps=maps, evaluator=evaluator, trainRatio=0.7, seed=1
    )
    tuned = split.fit(plain)
    assert tuned.validationMetrics[0] < 0.3 < 0.5 < tuned.validationMetrics[1]
    told = tuned.bestModel.summary
    assert 2 <= len(told.validationHistory) < 40, "it did not stop early"
    assert told.metrics["validation/loss"] == min(told.validationHistory)


def test_patience_without_a_row_to_validate_on_is_refused(plain: DataFrame) -> None:
    never = plain.withColumn("held_out", F.lit(False))
    with pytest.raises(ConfigError, match="patience: there is no row to validate on; validationIndicatorCol"):
        TorchRegressor(inputCols=["id"], validationIndicatorCol="held_out", patience=1).fit(never)


def test_numbers_that_a_float32_can_not_tell_apart_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    spread = Spread(10, np.array([1e6, 1e6, 5.0]), np.array([10.0, 1e10, 0.0]))
    _warn_of_lost_digits(Look(vectors={"v": spread}))
    assert "v: 1 of its numbers vary by less than a 100000th of their mean, number 0 for one" in caplog.text


def test_what_features_say_of_nulls_holds(plain: DataFrame) -> None:
    declared = [Numeric("size", fill=0.5), Categorical("colour", max_size=2)]
    model = TorchClassifier(declaredFeatures=declared, **QUICK).fit(plain)
    assert model.transform(plain).where("prediction IS NOT NULL").count() == 300
    with pytest.raises(ConfigError, match="leave one of them out"):
        TorchClassifier(declaredFeatures=declared, inputCols=["size"]).fit(plain)


def test_a_task_of_ones_own_is_trained_and_travels_with_the_model(plain: DataFrame, tmp_path: Path) -> None:
    estimator = TorchClassifier(
        inputCols=["size", "colour"],
        handleInvalid="keep",
        task="pipelines.flight_delays",
        taskArguments={"hidden_sizes": [8], "embedding_size": 2},
        maxIter=2,
        batchSize=64,
    )
    model = estimator.fit(plain)
    model.save(str(tmp_path / "model"))
    scored = type(model).load(str(tmp_path / "model")).transform(plain)
    row = scored.first()
    assert row is not None and len(row["rawPrediction"]) == 2
    with pytest.raises(ConfigError, match="hiddenLayers: a task of your own is given"):
        estimator.copy({estimator.hiddenLayers: [4]}).fit(plain)


def test_a_task_that_can_not_be_made_is_told_before_rows_are_prepared(
    plain: DataFrame, tmp_path: Path
) -> None:
    own = TorchClassifier(inputCols=["size"], handleInvalid="keep", storageRoot=str(tmp_path))
    with pytest.raises(PipelineFailed, match=r"nowhere"):
        own.copy({own.task: "nowhere"}).fit(plain)
    with pytest.raises(PipelineFailed, match=r"deeper"):
        own.copy({own.task: "pipelines.flight_delays", own.taskArguments: {"deeper": 1}}).fit(plain)
    assert not (tmp_path / "datasets").exists()


def test_labels_that_can_not_be_learnt_are_told_of(plain: DataFrame) -> None:
    few = TorchClassifier(inputCols=["id"])
    with pytest.raises(LabelUnfit, match=r"not a number\. Way out: number the classes with .*StringIndexer"):
        few.setLabelCol("colour").fit(plain)
    with pytest.raises(LabelUnfit, match="null, NaN or infinite in 30 rows"):
        few.setLabelCol("size").fit(plain)
    with pytest.raises(WeightsUnfit, match=r"`size` is null, NaN, infinite or negative in 30 of 300 rows"):
        TorchClassifier(inputCols=["id"], weightCol="size").fit(plain)
    with pytest.raises(SchemaMismatch, match="make a vector with VectorAssembler, or name plain columns"):
        TorchClassifier(featuresCol="size").fit(plain)


def test_columns_of_another_type_than_their_param_wants_are_refused_with_a_way_out(plain: DataFrame) -> None:
    few = TorchClassifier(inputCols=["id"])
    told = r"`colour` is string, expected a number \(weightCol\)\nWay out: .*cast\(\"double\"\)"
    with pytest.raises(SchemaMismatch, match=told):
        few.copy({few.weightCol: "colour"}).fit(plain)
    told = r"`colour` is string, expected boolean \(validationIndicatorCol\)\nWay out: .*== \"yes\""
    with pytest.raises(SchemaMismatch, match=told):
        few.copy({few.validationIndicatorCol: "colour"}).fit(plain)
    with pytest.raises(
        SchemaMismatch, match=r'`label` is double, expected boolean.*\nWay out: .*\["label"\] == 1'
    ):
        few.copy({few.validationIndicatorCol: "label"}).fit(plain)
    with pytest.raises(LabelUnfit, match=r'it is boolean, not a number\. Way out: cast it: .*cast\("int"\)'):
        few.copy({few.labelCol: "held_out"}).fit(plain)
    with pytest.raises(
        LabelUnfit, match=r'it is boolean, not a number\. Way out: cast it: .*cast\("double"\)'
    ):
        TorchRegressor(inputCols=["id"], labelCol="held_out").fit(plain)


def test_an_output_that_is_there_already_is_refused_before_the_training(plain: DataFrame) -> None:
    scored = plain.withColumn("prediction", F.lit(0.0)).withColumn("chance", F.lit(0.0))
    few = TorchClassifier(inputCols=["id"], probabilityCol="chance")
    for there in (scored, scored.withColumnRenamed("prediction", "Prediction")):  # Spark takes them for one
        with pytest.raises(SchemaMismatch, match=r"`prediction \(predictionCol\)`") as caught:
            few.fit(there)
    assert "`chance (probabilityCol)`" in str(caught.value)
    few.copy({few.predictionCol: "", few.probabilityCol: "", few.maxIter: 1}).fit(scored)


def test_a_root_that_can_not_be_written_to_is_told_of_as_the_param(plain: DataFrame) -> None:
    with pytest.raises(StorageUnwritable, match=r"point it to a directory .* storageRoot=/") as caught:
        TorchClassifier(inputCols=["id"], storageRoot="/proc/none").fit(plain)
    assert "storage.root" not in str(caught.value)


def test_a_column_has_one_role(plain: DataFrame) -> None:
    with pytest.raises(ConfigError, match="inputCols: `label` is the labelCol, too; leave it out") as caught:
        TorchClassifier(inputCols=["id", "label", "size"], weightCol="size").fit(plain)
    assert "inputCols: `size` is the weightCol, too" in str(caught.value)
    with pytest.raises(ConfigError, match="weightCol: `label` is the labelCol, too"):
        TorchClassifier(inputCols=["id"], weightCol="label").fit(plain)
    with pytest.raises(ConfigError, match="declaredFeatures: `label` is the labelCol, too"):
        TorchClassifier(declaredFeatures=[Numeric("label")]).fit(plain)


def test_rows_that_are_all_validated_on_are_told_of(plain: DataFrame) -> None:
    always = plain.withColumn("held_out", F.lit(True))
    told = "validationIndicatorCol: `held_out` is true in all 300 rows .* none is left to train on"
    with pytest.raises(ConfigError, match=told):
        TorchClassifier(inputCols=["id"], validationIndicatorCol="held_out").fit(always)


def test_a_fit_leaves_nothing_unless_it_is_told_where(
    plain: DataFrame, tmp_path: Path, temporary_files: Path
) -> None:
    quick = TorchClassifier(inputCols=["id"], **QUICK)
    temporary = quick.fit(plain)
    assert not list(temporary_files.glob("sparktrain-*"))
    assert temporary.summary.runDirectory is None and temporary.runId is None
    root = tmp_path / "root"
    kept = quick.copy({quick.storageRoot: str(root)}).fit(plain)
    assert Path(kept.summary.runDirectory).parent == root / "runs"
    assert list((root / "datasets" / "torch_classifier").iterdir())
    assert not list(root.glob("mlflow*"))
    with pytest.raises(SparktrainError, match="stepSize") as caught:
        quick.copy({quick.stepSize: 1e38}).fit(plain)
    [left] = temporary_files.glob("sparktrain-fit-*")
    assert Path(str(caught.value.result["run_dir"])).is_relative_to(left)


def test_fits_that_differ_in_training_alone_share_their_rows(plain: DataFrame, tmp_path: Path) -> None:
    quick = TorchClassifier(inputCols=["id"], storageRoot=str(tmp_path), **QUICK)
    other = {quick.maxIter: 1, quick.storageRoot: str(tmp_path / "other")}
    maps = [{quick.hiddenLayers: [4]}, {quick.hiddenLayers: []}, {quick.validationFraction: 0.3}, other]
    models = quick.fit(plain, maps)
    assert [model.getHiddenLayers() for model in models] == [[4], [], [8], [8]]
    assert (tmp_path / "other" / "datasets").is_dir()
    assert len(list((tmp_path / "datasets" / "torch_classifier").glob("[0-9a-f]*"))) == 1


def test_a_fit_in_an_active_run_is_shown_under_it_and_registered_by_name(
    plain: DataFrame, tmp_path: Path
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    mlflow.set_tracking_uri(uri)
    try:
        place = (tmp_path / "artifacts").as_uri()
        with mlflow.start_run(experiment_id=mlflow.create_experiment("sweep", place)) as parent:
            model = TorchClassifier(
                inputCols=["size", "colour"], handleInvalid="keep", registeredModelName="colours", **QUICK
            ).fit(plain)
        client = mlflow.MlflowClient(uri)
        run = client.get_run(model.runId)
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.info.experiment_id == parent.info.experiment_id and run.info.status == "FINISHED"
        scored = score(plain, "models:/colours/1", tracking_uri=uri)
        there = {row["id"]: row["probability"] for row in scored.select("id", "probability").collect()}
        for row in model.transform(plain).select("id", "probability").collect():
            assert row["probability"][1] == pytest.approx(there[row["id"]], abs=1e-6)
    finally:
        mlflow.set_tracking_uri(None)


def test_vectors_of_another_size_are_told_of(spark: SparkSession) -> None:
    schema = StructType([StructField("features", VectorUDT())])
    df = spark.createDataFrame([(Vectors.dense(1.0, 2.0),), (Vectors.dense(1.0),)], schema)
    with pytest.raises(SchemaMismatch, match="a vector of 1 to 2 numbers, expected vectors of one size"):
        TorchRegressor().fit(df.withColumn("label", F.lit(1.0)))


def test_a_registered_model_takes_the_vectors_that_it_was_fitted_on(
    spark: SparkSession, tmp_path: Path
) -> None:
    rows = [(number, number / 60, 0.0, float(number % 2), float(number > 30)) for number in range(60)]
    numbers = spark.createDataFrame(rows, "id long, a double, b double, c double, label double")
    vectors = VectorAssembler(inputCols=["a", "b", "c"], outputCol="features").transform(numbers)
    kinds = F.udf(lambda vector: type(vector).__name__, "string")
    assert vectors.select(kinds("features")).distinct().count() == 2, "some dense, some sparse"
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    place = (tmp_path / "artifacts").as_uri()
    mlflow.MlflowClient(uri).create_experiment("vectors", place)
    quick = TorchClassifier(
        registeredModelName="vectors",
        trackingUri=uri,
        experiment="vectors",
        storageRoot=str(tmp_path),
        **QUICK,
    )
    model = quick.fit(vectors)
    wanted = {row["id"]: row["probability"][1] for row in model.transform(vectors).collect()}
    scored = score(vectors, "models:/vectors/1", tracking_uri=uri)
    assert {row["id"]: row["probability"] for row in scored.collect()} == pytest.approx(wanted, abs=1e-6)
    assert scored.schema["features"] == vectors.schema["features"]
    files = str(fetch_model("models:/vectors/1", uri, tmp_path))
    udf = mlflow.pyfunc.spark_udf(spark, files, env_manager="local")
    by_udf = vectors.select("id", udf(F.struct("features")).alias("scores")).select("id", "scores.*")
    assert {row["id"]: row["probability"] for row in by_udf.collect()} == pytest.approx(wanted, abs=1e-6)
    odd = spark.createDataFrame(
        [(Vectors.sparse(4, [1], [1.0]),), (None,)], vectors.select("features").schema
    )
    reasons = [row["score_error"] for row in score(odd, "models:/vectors/1", tracking_uri=uri).collect()]
    assert reasons[0] == "column `features`: 1 row that has not 3 values"
