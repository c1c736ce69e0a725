"""One fitted column of each kind: what it holds after fitting, and what it makes of Arrow columns."""

from sparktrain.features.fitted_columns.boolean import FittedBoolean
from sparktrain.features.fitted_columns.categorical import FittedCategorical
from sparktrain.features.fitted_columns.image import FittedImage
from sparktrain.features.fitted_columns.numeric import FittedNumeric
from sparktrain.features.fitted_columns.passthrough import FittedPassthrough
from sparktrain.features.fitted_columns.target import FittedTarget, FittedWeight
from sparktrain.features.fitted_columns.timestamp import FittedTimestamp
from sparktrain.features.fitted_columns.tokens import FittedTokens
from sparktrain.features.fitted_columns.vector import FittedVector

__all__ = [
    "FittedBoolean",
    "FittedCategorical",
    "FittedImage",
    "FittedNumeric",
    "FittedPassthrough",
    "FittedTarget",
    "FittedTimestamp",
    "FittedTokens",
    "FittedVector",
    "FittedWeight",
]
