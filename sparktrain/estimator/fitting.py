"""fit: Params and a DataFrame become a prepared dataset, a trained gang's weights, and a model's files."""

from __future__ import annotations

import dataclasses
import importlib
import logging
import math
import shutil
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import BooleanType, DataType, NumericType

from sparktrain.dataset import Dataset
from sparktrain.errors import (
    ConfigError,
    LabelUnfit,
    NoRowsLeft,
    PipelineFailed,
    RowsInvalid,
    SchemaMismatch,
    WeightsUnfit,
)
from sparktrain.estimator.inputs import (
    Input,
    features_of,
    inputs_of,
    is_valid,
    num_classes_of,
    raw_column,
)
from sparktrain.estimator.look import Look, look_at
from sparktrain.estimator.params import ESTIMATOR, TorchParams
from sparktrain.estimator.settings import SPLIT_COLUMN, named_by_params, settings_of, threshold_problems
from sparktrain.estimator.summary import TrainingSummary, losses_by_epoch
from sparktrain.features import FittedFeatures, Target
from sparktrain.gang.slots import is_local
from sparktrain.gang.supervise import TrainResult, train
from sparktrain.preparation import prepare
from sparktrain.runs.directory import RunDirectory
from sparktrain.runs.events import EventReader
from sparktrain.runs.package import IMPORTING, WEIGHTS_FILE, copy_pipeline, find_package, write_artifacts
from sparktrain.runs.plots import curves_from
from sparktrain.runs.publish import Outcome
from sparktrain.scoring.packed import PackedModel
from sparktrain.tabular.model import Kind, Task
from sparktrain.training.checkpoint import open_checkpoint
from sparktrain.training.checkpoint_state import export_weights
from sparktrain.training.task import TrainTask

logger = logging.getLogger(__name__)

_MOST_CLASSES = 10_000

Goal = Literal["classes", "number"]


@dataclass(frozen=True)
class Fitted:
    """What a fit gives: all that a model is.

    Attributes:
        packed: the model's files.
        inputs: what it is given.
        num_classes: 0 for a number.
        run_id: MLflow's; None without MLflow.
    """

    packed: PackedModel
    inputs: tuple[Input, ...]
    num_classes: int
    run_id: str | None

    @cached_property
    def features(self) -> FittedFeatures:
        """How the model's inputs become what its module takes."""
        return self.packed.features


@dataclass(frozen=True)
class Prepared:
    """Rows that are ready for training; several fits may share them.

    Attributes:
        dataset: of these rows.
        inputs: with the sizes of vectors.
        kind: of the target.
        num_classes: 0 for a number.
        look: at the rows.
    """

    dataset: Dataset
    inputs: tuple[Input, ...]
    kind: Kind
    num_classes: int
    look: Look


def storage_root(params: TorchParams, spark: SparkSession) -> Path:
    """Return the directory to work in: the user's, or a new temporary one.

    Raises:
        ConfigError: there is none that the executors of a cluster could see.
    """
    if given := params.value("storageRoot"):
        return Path(given)
    if not is_local(spark):
        problem = (
            "storageRoot: it is not set, and executors on other hosts can't see this one's temporary files; "
            "give a directory that all share, such as a mount or /Volumes/..."
        )
        raise ConfigError([problem], ESTIMATOR)
    return Path(tempfile.mkdtemp(prefix="sparktrain-fit-"))


def prepare_rows(params: TorchParams, df: DataFrame, goal: Goal, root: Path) -> Prepared:
    """Look at the rows, and write them as a dataset.

    Raises:
        SchemaMismatch, LabelUnfit, WeightsUnfit, RowsInvalid: what can't be learnt from; other DataErrors
            as `prepare`.
        ConfigError: Params that are out of range.
    """
    settings = settings_of(params, df.sparkSession, root)
    if params.value("task"):
        _own_task(params)  # what can't be imported is told before rows are prepared
    features_col, label = params.value("featuresCol"), params.value("labelCol")
    _check_columns(params, df, label, goal)
    inputs = inputs_of(params, features_col, df.schema)
    _check_roles(params, inputs, label)
    indicator, weight = params.value("validationIndicatorCol"), params.value("weightCol")
    is_validation = F.coalesce(F.col(f"`{indicator}`"), F.lit(False)) if indicator else None
    keeps = params.value("handleInvalid") == "keep" or params.value("declaredFeatures") is not None
    is_train = ~is_validation if is_validation is not None else F.lit(True)
    weights = F.col(f"`{weight}`") if weight else F.lit(1.0)
    look = look_at(df, label, inputs, is_train=is_train, weight=weights, ignores_invalid=keeps)
    _check_rows(params, look, label, inputs)
    _warn_of_lost_digits(look)
    inputs = [_sized(item, look) for item in inputs]
    num_classes = _num_classes(df, label, look) if goal == "classes" else 0
    _check_thresholds(params, num_classes)
    kind: Kind = "regression" if not num_classes else "binary" if num_classes == 2 else "multiclass"
    rows = df if keeps else df.where(is_valid(inputs, df.schema))
    columns = [raw_column(item) for item in inputs]
    target = F.col(f"`{label}`")
    columns.append((target.cast("long") if num_classes else target.cast("double")).alias(label))
    if weight:
        columns.append(F.col(f"`{weight}`").cast("double").alias(weight))
    if is_validation is not None:
        columns.append(F.when(is_validation, F.lit("validation")).otherwise("train").alias(SPLIT_COLUMN))
    with named_by_params():
        dataset = prepare(
            rows.select(*columns),
            features_of(inputs, params),
            Target(name=label, kind=kind),
            settings.prepare,
            name=settings.pipeline,
            root=root,
            weight=weight,
        )
    return Prepared(dataset, tuple(inputs), kind, num_classes, look)


def _check_columns(params: TorchParams, df: DataFrame, label: str, goal: Goal) -> None:
    types = {field.name: field.dataType for field in df.schema.fields}
    wanted = {"labelCol": label, "weightCol": params.value("weightCol")}
    wanted["validationIndicatorCol"] = params.value("validationIndicatorCol")
    missing = [f"{name} ({param})" for param, name in wanted.items() if name and name not in types]
    if missing:
        raise SchemaMismatch("the DataFrame", missing=missing, way_out=f"there are {', '.join(types)}")
    if not isinstance(types[label], NumericType):
        raise LabelUnfit(
            label, f"it is {types[label].simpleString()}, not a number", _as_label(label, types[label], goal)
        )
    weight, indicator = wanted["weightCol"], wanted["validationIndicatorCol"]
    if weight and not isinstance(types[weight], NumericType):
        retyped = {weight: (types[weight].simpleString(), "a number (weightCol)")}
        way_out = f'cast it: df.withColumn("{weight}", df["{weight}"].cast("double"))'
        raise SchemaMismatch("the DataFrame", retyped=retyped, way_out=way_out)
    if indicator and not isinstance(types[indicator], BooleanType):
        retyped = {indicator: (types[indicator].simpleString(), "boolean (validationIndicatorCol)")}
        yes = "1" if isinstance(types[indicator], NumericType) else '"yes"'
        way_out = f'say what is true: df.withColumn("{indicator}", df["{indicator}"] == {yes}), or the like'
        raise SchemaMismatch("the DataFrame", retyped=retyped, way_out=way_out)


def _as_label(label: str, given: DataType, goal: Goal) -> str:
    """How a column that is no number becomes a label."""
    if goal == "classes" and not isinstance(given, BooleanType):  # which StringIndexer refuses
        return "number the classes with pyspark.ml.feature.StringIndexer, and take its output as labelCol"
    kind = "int" if goal == "classes" else "double"
    return f'cast it: df.withColumn("{label}", df["{label}"].cast("{kind}"))'


def _check_roles(params: TorchParams, inputs: list[Input], label: str) -> None:
    """A column is an input, or what is predicted, or what a row weighs."""
    declared = params.value("declaredFeatures")
    among = "declaredFeatures" if declared else "inputCols" if params.value("inputCols") else "featuresCol"
    names = {item.name for item in inputs}
    roles = {"labelCol": label, "weightCol": params.value("weightCol")}
    problems = [
        f"{among}: `{name}` is the {role}, too; leave it out of the inputs"
        for role, name in roles.items()
        if name in names
    ]
    if roles["weightCol"] == label:
        problems.append(f"weightCol: `{label}` is the labelCol, too; name another column")
    if problems:
        raise ConfigError(problems, ESTIMATOR)


_FAR = 1e5  # of the seven digits that a float32 has, two are left for what varies


def _warn_of_lost_digits(look: Look) -> None:
    for name, spread in look.vectors.items():
        far = (spread.deviation > 0) & (np.abs(spread.mean) > _FAR * spread.deviation)
        if far.any():
            logger.warning(
                "%s: %d of its numbers vary by less than a %dth of their mean, number %d for one; stored as "
                "float32 they lose most of that: centre them first, by StandardScaler(withMean=True)",
                name,
                far.sum(),
                _FAR,
                int(far.argmax()),
            )


def _check_rows(params: TorchParams, look: Look, label: str, inputs: list[Input]) -> None:
    names = [item.name for item in inputs]
    if look.num_invalid and params.value("handleInvalid") == "error":
        raise RowsInvalid(
            f"{look.num_invalid:,} of {look.num_rows:,} rows have a null, a NaN or an infinity", names
        )
    if look.num_invalid:
        logger.warning(
            "%d of %d rows are left out: they have a null, a NaN or an infinity",
            look.num_invalid,
            look.num_rows,
        )
    num_valid = look.num_rows - look.num_invalid
    indicator = params.value("validationIndicatorCol")
    if num_valid and indicator and not look.num_training:
        problem = (
            f"`{indicator}` is true in all {num_valid:,} rows that can be used, none is left to train on"
        )
        raise ConfigError([f"validationIndicatorCol: {problem}; make it false in some"], ESTIMATOR)
    if look.num_rows == 0:
        raise NoRowsLeft(0, {}, "the DataFrame, which is empty")
    if look.num_training == 0:
        raise NoRowsLeft(look.num_rows, {"handleInvalid": look.num_invalid}, "the DataFrame")
    if look.num_unlabelled:
        problem = f"it is null, NaN or infinite in {look.num_unlabelled:,} rows"
        raise LabelUnfit(label, problem, f'leave these out: df.where("{label} IS NOT NULL")')
    if params.value("patience") and indicator and num_valid == look.num_training:
        problem = "patience: there is no row to validate on; validationIndicatorCol is true in none"
        raise ConfigError([problem], ESTIMATOR)
    if look.num_unweighted:
        raise WeightsUnfit(params.value("weightCol"), look.num_unweighted, look.num_rows)


def _sized(item: Input, look: Look) -> Input:
    if not item.is_shaped:
        return item
    low, high = look.sizes.get(item.name, (0, 0))
    if low != high or high == 0:
        sizes = {item.name: (f"a vector of {low} to {high} numbers", "vectors of one size, at least 1")}
        raise SchemaMismatch("the DataFrame", retyped=sizes, way_out="see VectorSizeHint")
    return dataclasses.replace(item, size=high)


def _num_classes(df: DataFrame, label: str, look: Look) -> int:
    if look.num_fractions or look.lowest < 0:
        problem = f"classes are 0, 1, 2, ..., and there are others, from {look.lowest:g} to {look.highest:g}"
        raise LabelUnfit(label, problem, "number the classes with StringIndexer, or take TorchRegressor")
    seen = int(look.highest) + 1
    said = num_classes_of(df.schema[label])
    if said is not None and seen > said:
        raise LabelUnfit(
            label, f"its metadata tell of {said} classes, and there are {seen}", "index it again"
        )
    if seen > _MOST_CLASSES:
        raise LabelUnfit(label, f"there are {seen:,} classes", "take TorchRegressor if it is a number")
    return max(said or seen, 2)


def _check_thresholds(params: TorchParams, num_classes: int) -> None:
    if problems := [*threshold_problems(params, num_classes)]:
        raise ConfigError(problems, ESTIMATOR)


def train_model(
    params: TorchParams, prepared: Prepared, spark: SparkSession, root: Path
) -> tuple[Fitted, TrainingSummary]:
    """Train on rows that are prepared.

    Raises:
        SparktrainError: as `sparktrain.train`.
    """
    _check_thresholds(params, prepared.num_classes)  # of this map of Params, for fitMultiple
    num_rows = prepared.dataset.num_rows("train")
    settings = settings_of(params, spark, root, num_rows)
    task = task_of(params, prepared)
    with named_by_params():
        result = train(prepared.dataset, task, settings, spark=spark)
    run = RunDirectory(Path(result.run_dir))
    outcome = Outcome.load(run)
    stays = params.value("storageRoot") is not None
    fitted = Fitted(
        _pack(run, outcome, prepared.dataset), prepared.inputs, prepared.num_classes, result.run_id
    )
    steps_per_epoch = prepared.dataset.steps_per_epoch(
        "train", settings.train.global_batch_size, settings.data.tail
    )
    summary = _summary(run, result, steps_per_epoch, stays=stays)
    if not stays:  # the model has what it needs; after an error it stays as long as anything of the fit
        shutil.rmtree(run.path, ignore_errors=True)
    return fitted, summary


def _own_task(params: TorchParams) -> TrainTask:
    package = params.value("task")
    try:
        with IMPORTING:
            module = importlib.import_module(f"{package}.model")
        task: TrainTask = module.Task(**params.value("taskArguments"))
    except Exception as error:
        raise PipelineFailed(f"{package}.model.Task", error, "", 2) from error
    return task


def task_of(params: TorchParams, prepared: Prepared) -> TrainTask:
    """Make the Task: the user's own, or ours in the size that Params say."""
    if params.value("task"):
        return _own_task(params)
    scaling = {}
    if params.value("standardization"):
        for name, spread in prepared.look.vectors.items():
            deviation = spread.deviation
            scale = [1 / d if d > 0 else 0.0 for d in deviation]
            scaling[name] = (spread.mean.tolist(), scale)
    target: dict[str, float] = {}
    if prepared.kind == "regression":
        label = prepared.look.label
        target = {
            "target_mean": float(label.mean[0]),
            "target_scale": float(label.deviation[0]) or 1.0,
        }
    return Task(
        kind=prepared.kind,
        hidden_sizes=tuple(params.value("hiddenLayers")),
        embedding_size=params.value("embeddingSize"),
        dropout=params.value("dropout"),
        scaling=scaling,
        **target,
    )


def _pack(run: RunDirectory, outcome: Outcome, dataset: Dataset) -> PackedModel:
    """The files of a model as scoring wants them; a user's own Task with its code."""
    with tempfile.TemporaryDirectory(prefix="sparktrain-model-") as name:
        artifacts = Path(name, "artifacts")
        write_artifacts(artifacts, dataset.features, outcome.pipeline, outcome.arguments)
        export_weights(open_checkpoint(outcome.checkpoint(run)), artifacts / WEIGHTS_FILE)
        # sparktrain itself the executors have: they trained with it
        copy_pipeline(outcome.pipeline, find_package(outcome.pipeline), Path(name, "code"))
        return PackedModel.of(Path(name), "of this fit")


def _summary(run: RunDirectory, result: TrainResult, steps_per_epoch: int, *, stays: bool) -> TrainingSummary:
    curves = curves_from(EventReader(run.events).poll())
    return TrainingSummary(
        objectiveHistory=losses_by_epoch(curves.get("train/loss", []), steps_per_epoch),
        validationHistory=tuple(value for _, value in curves.get("validation/loss", [])),
        totalIterations=math.ceil(result.steps / steps_per_epoch),
        metrics=dict(result.metrics),
        runId=result.run_id,
        runDirectory=result.run_dir if stays else None,
        seconds=dict(result.seconds),
    )
