"""Declared columns and their fitted statistics; knows neither Spark nor torch."""

from sparktrain.features.declare import (
    Boolean,
    Categorical,
    Feature,
    Image,
    Numeric,
    Passthrough,
    Target,
    Timestamp,
    Tokens,
    Vector,
)
from sparktrain.features.fitted import FittedFeature, FittedFeatures
from sparktrain.features.fitted_columns import (
    FittedBoolean,
    FittedCategorical,
    FittedImage,
    FittedNumeric,
    FittedPassthrough,
    FittedTarget,
    FittedTimestamp,
    FittedTokens,
    FittedVector,
    FittedWeight,
)
from sparktrain.features.fitted_columns.categorical import FIRST_CODE, NULL_CODE, UNKNOWN_CODE
from sparktrain.features.output import Output, output_names
from sparktrain.features.raw import MALFORMED_COLUMN, UNCASTABLE_COLUMN, InputType, is_readable, read_as
from sparktrain.features.refused import marked_rows, refused_rows, short_reason
from sparktrain.features.scores import NUMBER, NUMBERS, PREDICTION, PROBABILITY, SCORE_ERROR, score_schema

__all__ = [
    "FIRST_CODE",
    "MALFORMED_COLUMN",
    "NULL_CODE",
    "NUMBER",
    "NUMBERS",
    "PREDICTION",
    "PROBABILITY",
    "SCORE_ERROR",
    "UNCASTABLE_COLUMN",
    "UNKNOWN_CODE",
    "Boolean",
    "Categorical",
    "Feature",
    "FittedBoolean",
    "FittedCategorical",
    "FittedFeature",
    "FittedFeatures",
    "FittedImage",
    "FittedNumeric",
    "FittedPassthrough",
    "FittedTarget",
    "FittedTimestamp",
    "FittedTokens",
    "FittedVector",
    "FittedWeight",
    "Image",
    "InputType",
    "Numeric",
    "Output",
    "Passthrough",
    "Target",
    "Timestamp",
    "Tokens",
    "Vector",
    "is_readable",
    "marked_rows",
    "output_names",
    "read_as",
    "refused_rows",
    "score_schema",
    "short_reason",
]
