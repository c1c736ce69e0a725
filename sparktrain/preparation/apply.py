"""Fitted features as native Column expressions.

The same arithmetic, in the same order, as `FittedFeatures.transform`.
"""

from __future__ import annotations

import json

from pyspark.sql import Column
from pyspark.sql import functions as F

from sparktrain.features import FittedCategorical, FittedFeatures, FittedNumeric
from sparktrain.features.fitted import FIRST_VOCABULARY_CODE, NULL_CODE, UNKNOWN_CODE


def feature_columns(features: FittedFeatures) -> list[Column]:
    """One non-null column per feature (float or int), in the declared order, under the feature's name."""
    return [
        (_numeric(f) if isinstance(f, FittedNumeric) else _categorical(f)).alias(f.name)
        for f in features.features
    ]


def target_column(features: FittedFeatures) -> Column:
    return _unsigned_zero(F.col(f"`{features.target.name}`").cast("float")).alias(features.target.name)


def _numeric(feature: FittedNumeric) -> Column:
    value = F.col(f"`{feature.column}`").cast("double")
    # A comparison with NaN is not false in Spark (NaN is the largest number), so it is asked for by name.
    finite = value.isNotNull() & ~F.isnan(value) & (F.abs(value) < F.lit(float("inf")))
    filled = F.when(finite, value).otherwise(F.lit(feature.fill))
    return _unsigned_zero(((filled - F.lit(feature.offset)) / F.lit(feature.scale)).cast("float"))


def _unsigned_zero(value: Column) -> Column:
    """Turn -0.0 into 0.0: they sort as equals, so that the bytes would depend on the order of the rows."""
    return value + F.lit(0.0).cast("float")


def _categorical(feature: FittedCategorical) -> Column:
    text = F.col(f"`{feature.column}`").cast("string")
    codes = {value: code for code, value in enumerate(feature.vocabulary, FIRST_VOCABULARY_CODE)}
    # One literal, folded by the optimizer into a constant map: an expression per value would grow the plan.
    lookup = F.from_json(F.lit(json.dumps(codes)), "map<string,int>")
    known = F.coalesce(F.try_element_at(lookup, text), F.lit(UNKNOWN_CODE))
    return F.when(text.isNull(), F.lit(NULL_CODE)).otherwise(known)
