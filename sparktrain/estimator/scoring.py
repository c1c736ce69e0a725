"""transform: what Params ask for is checked on the driver, and done by `worker` for each partition."""

from __future__ import annotations

from functools import partial

from pyspark.ml.linalg import VectorUDT
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, DataType, DoubleType, LongType, StructField, StructType

from sparktrain.errors import ConfigError, SchemaMismatch
from sparktrain.estimator.fitting import Fitted
from sparktrain.estimator.inputs import Input, Shape, inputs_of, is_valid
from sparktrain.estimator.params import MODEL, TorchParams
from sparktrain.estimator.settings import handling_problems, threshold_problems
from sparktrain.estimator.worker import Job, score_partition
from sparktrain.scoring.on_spark import by_number, check_columns

_VALID = "_sparktrain_is_valid"


def transform(df: DataFrame, params: TorchParams, fitted: Fitted) -> DataFrame:
    """Add the columns that Params name.

    Raises:
        SchemaMismatch: inputs that are missing or of another type, outputs that are there already.
        ConfigError: handleInvalid or thresholds that can't be.
    """
    names = output_names(params, fitted.num_classes)
    if not names:
        return df
    inputs = _inputs(params, df.schema, fitted)
    check_outputs(names, df)
    job = job_of(params, fitted, inputs)
    schema = StructType([*df.schema.fields, *output_fields(names, fitted.num_classes)])
    if job.handle_invalid == "keep" or params.value("declaredFeatures") is not None:
        rows = df.withColumn(_VALID, F.lit(True))
    elif job.handle_invalid == "skip":
        rows = df.where(is_valid(inputs, df.schema)).withColumn(_VALID, F.lit(True))
    else:
        rows = df.withColumn(_VALID, is_valid(inputs, df.schema))
    return by_number(rows).mapInArrow(partial(score_partition, job, rows.columns), schema)


def job_of(params: TorchParams, fitted: Fitted, inputs: tuple[Input, ...]) -> Job:
    """Make the work of the Python workers."""
    return Job(
        fitted.packed,
        inputs,
        tuple(item.name for item in fitted.inputs),
        fitted.num_classes,
        tuple(output_names(params, fitted.num_classes)),
        _handling(params),
        _thresholds(params, fitted.num_classes),
    )


def output_names(params: TorchParams, num_classes: int) -> dict[str, str]:
    """Names of the columns to add, by what they are; an empty name switches one off."""
    kinds = ("rawPrediction", "probability", "prediction") if num_classes else ("prediction",)
    return {kind: name for kind in kinds if (name := params.value(f"{kind}Col"))}


def check_outputs(names: dict[str, str], df: DataFrame) -> None:
    """Refuse rows that have a column which is to be added.

    Args:
        names: of the outputs, by what they are.

    Raises:
        SchemaMismatch
    """
    there = {name.lower() for name in df.columns}  # Spark tells no capitals apart
    if taken := [f"{name} ({kind}Col)" for kind, name in names.items() if name.lower() in there]:
        way_out = "drop or rename it, or give the output another name; an empty one leaves it out"
        raise SchemaMismatch("the DataFrame", unexpected=taken, way_out=way_out)


def output_fields(names: dict[str, str], num_classes: int) -> list[StructField]:
    """The columns to add, with what Spark's own models tell of theirs."""
    fields = []
    for kind, name in names.items():
        if kind == "prediction":
            nominal = {"ml_attr": {"type": "nominal", "num_vals": num_classes}} if num_classes else None
            fields.append(StructField(name, DoubleType(), True, nominal))
        else:
            fields.append(StructField(name, VectorUDT(), True, {"ml_attr": {"num_attrs": num_classes}}))
    return fields


def _inputs(params: TorchParams, schema: StructType, fitted: Fitted) -> tuple[Input, ...]:
    """The inputs as this DataFrame has them, which must be those that the model was trained on."""
    found = inputs_of(params, params.value("featuresCol"), schema)
    before = fitted.inputs
    retyped = {}
    for given, wanted in zip(found, before, strict=False):
        # a dense array will do for a vector, and the other way round
        if given.is_shaped != wanted.is_shaped or (given.size and given.size != wanted.size):
            expected = f"{wanted.type} of {wanted.size} numbers" if wanted.is_shaped else wanted.type
            retyped[given.name] = (f"{given.type} of {given.size or '?'} numbers", expected)
    if len(found) != len(before) or retyped:
        names = ", ".join(item.name for item in before)
        raise SchemaMismatch("the DataFrame", retyped=retyped, way_out=f"the model was trained on {names}")
    inputs = tuple(
        Input(given.name, _shape(given, wanted), wanted.type, wanted.size)
        for given, wanted in zip(found, before, strict=True)
    )
    raw = [
        StructField(wanted.name, _raw_type(item, schema[item.name].dataType))
        for item, wanted in zip(inputs, before, strict=True)
    ]
    check_columns(StructType(raw), fitted.features, [], "this model")
    return inputs


def _shape(given: Input, wanted: Input) -> Shape:
    """As it is given, but a double is what it was in training, whatever its metadata tell now."""
    return wanted.shape if given.type == wanted.type == "double" else given.shape


def _raw_type(item: Input, given: DataType) -> DataType:
    """Of what `raw_rows` makes of an input."""
    if item.shape == "vector":
        return ArrayType(DoubleType())
    return LongType() if item.shape == "index" else given


def _handling(params: TorchParams) -> str:
    if problems := [*handling_problems(params)]:
        raise ConfigError(problems, MODEL)
    given: str = params.value("handleInvalid")
    return given


def _thresholds(params: TorchParams, num_classes: int) -> tuple[float, ...]:
    if problems := [*threshold_problems(params, num_classes)]:
        raise ConfigError(problems, MODEL)
    return tuple(params.value("thresholds") or ()) if num_classes else ()
