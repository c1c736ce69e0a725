"""Params as the configuration that the rest of the house knows."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

from sparktrain.config import Config, parse_config
from sparktrain.errors import ConfigError, SparktrainError, SplitEmpty, TrackingUnavailable
from sparktrain.estimator.params import ESTIMATOR, TorchParams
from sparktrain.gang.slots import setting
from sparktrain.runs.connection import mlflow_setting

SPLIT_COLUMN = "_split_of_row"
"""Says which split a row is of, where the user's validationIndicatorCol does."""

_LANES = 8
_OF_OUR_NETWORK = ("hiddenLayers", "embeddingSize", "dropout")
# Which Param says what a key of the configuration says elsewhere.
_PARAM_OF = {
    "train.epochs": "maxIter",
    "train.learning_rate": "stepSize",
    "train.seed": "seed",
    "train.ranks": "numWorkers",
    "train.global_batch_size": "batchSize",
    "train.early_stopping_evaluations": "patience",
    "train.model": "hiddenLayers or taskArguments",
    "prepare.seed": "seed",
    "prepare.split": "validationIndicatorCol or validationFraction",
    "storage.root": "storageRoot",
    "tracking.uri": "trackingUri",
    "tracking.experiment": "experiment",
    "tracking.parent_run_id": "parentRunId",
    "tracking.registered_model": "registeredModelName",
    "tracking.register_model": "registeredModelName",
    "pipeline": "task",
}
# Where the way out of an error is another one with an estimator, not just of another name.
_WAYS_OUT: dict[type[SparktrainError], str] = {
    TrackingUnavailable: (
        "Start the server, correct trackingUri (or MLFLOW_TRACKING_URI), leave both empty to log nothing, or "
        "set config={'tracking.required': False} to train without it."
    ),
    SplitEmpty: (
        "Give more rows or another validationFraction, or say which rows to validate on: "
        "validationIndicatorCol."
    ),
}
_KEY = re.compile(rf"\b({'|'.join(map(re.escape, _PARAM_OF))})\b(?:\.\w+)*")


def settings_of(params: TorchParams, spark: SparkSession, root: Path, num_rows: int | None = None) -> Config:
    """Return the configuration that Params amount to.

    Args:
        num_rows: of the train split, where they are known: no batch is larger.

    Raises:
        ConfigError: with everything that is out of range or unknown.
    """
    problems = list(_problems(params))
    batch = params.value("batchSize")
    if num_rows is not None:
        batch = min(batch, max(num_rows, params.value("numWorkers")))
    tree: dict[str, Any] = {
        "pipeline": _name_of(params),
        "storage": {"root": str(root)},
        "spark": {"master": setting(spark, "spark.master", "unknown")},
        "prepare": {"seed": params.value("seed"), "split": _split_of(params)},
        "data": {"tail": "mask"},  # every row counts, however few there are
        "train": {
            "epochs": params.value("maxIter"),
            "learning_rate": params.value("stepSize"),
            "seed": params.value("seed"),
            "ranks": params.value("numWorkers"),
            "global_batch_size": batch,
            "num_lanes": math.gcd(batch, _LANES) if batch > 0 else 1,
            "early_stopping_evaluations": max(params.value("patience"), 0) or None,
            "best_metric": "loss",
            "reference": "none",
            # other jobs of the session may hold the slots: a fold that is being prepared, say
            "start_timeout_seconds": 600,
        },
        "tracking": _tracking_of(params, problems),
    }
    for key, value in params.value("config").items():
        if owner := next((p for k, p in _PARAM_OF.items() if f"{key}.".startswith(f"{k}.")), None):
            problems.append(f"config: {key} is what the Param {owner} says; set that")
            continue
        _put(tree, key, value)
    with named_by_params():
        return parse_config(tree, ESTIMATOR, problems, has_package=False)


@contextmanager
def named_by_params() -> Iterator[None]:
    """Errors from here say which Param to set, not which key of the configuration."""
    try:
        yield
    except SparktrainError as error:
        if isinstance(error, TrackingUnavailable | SplitEmpty):
            error.args = (f"{error.problem}. {_WAYS_OUT[type(error)]}",)
        error.args = tuple(_by_param(arg) if isinstance(arg, str) else arg for arg in error.args)
        if isinstance(error, ConfigError):
            error.problems = [_by_param(problem) for problem in error.problems]
        raise


def _by_param(text: str) -> str:
    return "\n".join(
        # what was written into config is told as it was written
        line if "unknown key" in line or "config: " in line else _KEY.sub(lambda key: _PARAM_OF[key[1]], line)
        for line in text.split("\n")
    )


def threshold_problems(params: TorchParams, num_classes: int = 0) -> Iterator[str]:
    """What is wrong with `thresholds`; 0 where the number of classes is not known yet, or there are none."""
    given = params.value("thresholds") if params.hasParam("thresholds") else None
    if given and (num_classes not in (0, len(given)) or min(given) < 0 or sum(t == 0 for t in given) > 1):
        how_many = f"{num_classes} numbers" if num_classes else "numbers"
        yield f"thresholds: {given} given; give {how_many} above 0, of which one may be 0"


def _problems(params: TorchParams) -> list[str]:
    found = [*handling_problems(params)]
    if params.value("patience") < 0:
        found.append(f"patience: {params.value('patience')} given; it is 0 or more")
    if not 0 < params.value("validationFraction") < 1:
        found.append(f"validationFraction: {params.value('validationFraction')} given; it is between 0 and 1")
    if not params.value("labelCol"):
        found.append("labelCol: it is empty; name the column to predict")
    return [*found, *threshold_problems(params), *_network_problems(params)]


def _network_problems(params: TorchParams) -> Iterator[str]:
    if params.value("task"):
        if given := [name for name in _OF_OUR_NETWORK if params.isSet(params.getParam(name))]:
            yield f"{', '.join(given)}: a task of your own is given; set what it has in taskArguments"
        return
    if params.value("taskArguments"):
        yield "taskArguments: no task is given; set task, or leave them out"
    widths, size, dropout = (params.value(name) for name in _OF_OUR_NETWORK)
    if any(width < 1 for width in widths):
        yield f"hiddenLayers: {widths} given; each layer has 1 or more, and [] is a linear model"
    if size < 1:
        yield f"embeddingSize: {size} given; it is 1 or more"
    if not 0 <= dropout < 1:
        yield f"dropout: {dropout} given; it is at least 0 and below 1"


def handling_problems(params: TorchParams) -> Iterator[str]:
    """What is wrong with handleInvalid, which a fit and a model read alike."""
    given = params.value("handleInvalid")
    if given not in ("error", "skip", "keep"):
        yield f"handleInvalid: {given!r} given; it is error, skip or keep"


def _name_of(params: TorchParams) -> str:
    """What datasets and runs are called."""
    name = str(params.value("task") or type(params).__name__).rpartition(".")[2]
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    return re.sub(r"[^a-z0-9_]", "_", snake)


def _split_of(params: TorchParams) -> dict[str, Any]:
    if params.value("validationIndicatorCol"):
        return {"method": "column", "column": SPLIT_COLUMN}
    fraction = params.value("validationFraction") if params.value("patience") > 0 else 0.0
    if not 0 <= fraction < 1:
        fraction = 0.0  # it is among the problems already
    return {"method": "hash", "validation": fraction, "test": 0.0, "seed": params.value("seed")}


def _tracking_of(params: TorchParams, problems: list[str]) -> dict[str, Any]:
    uri, active = mlflow_setting()
    given = params.value("trackingUri")
    wanted = {name: params.value(name) for name in ("experiment", "parentRunId", "registeredModelName")}
    if not given and uri is None and any(wanted.values()):
        names = ", ".join(name for name, value in wanted.items() if value)
        problems.append(f"{names}: there is no MLflow; set trackingUri, or MLFLOW_TRACKING_URI")
    parent = wanted["parentRunId"] or ((active or params.caller_run) if given in (None, uri) else None)
    return {
        "uri": given or uri or "none",
        "experiment": wanted["experiment"],
        "parent_run_id": parent,
        "registered_model": wanted["registeredModelName"],
        "register_model": wanted["registeredModelName"] is not None,
    }


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *sections, leaf = key.split(".")
    node = tree
    for section in sections:
        node = node.setdefault(section, {})
        if not isinstance(node, dict):
            raise ConfigError([f"config: {key}: {section} is a value, not a section"], ESTIMATOR)
    node[leaf] = dict(value) if isinstance(value, Mapping) else value
