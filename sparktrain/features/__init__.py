"""Declared columns and their fitted statistics; knows neither Spark nor torch."""

from sparktrain.features.declare import Categorical, Feature, Numeric, Target
from sparktrain.features.fitted import FittedCategorical, FittedFeatures, FittedNumeric

__all__ = [
    "Categorical",
    "Feature",
    "FittedCategorical",
    "FittedFeatures",
    "FittedNumeric",
    "Numeric",
    "Target",
]
