"""The columns that scoring adds to raw rows, by the kind of each target."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from sparktrain.features.raw import ARROW_TYPES

if TYPE_CHECKING:
    from sparktrain.features.fitted import FittedFeatures
    from sparktrain.features.fitted_columns import FittedTarget

PREDICTION = "prediction"
PROBABILITY = "probability"
SCORE_ERROR = "score_error"

NUMBER = pa.float64()
NUMBERS = pa.list_(pa.field("element", pa.float64()))


def score_schema(features: FittedFeatures, without_target: pa.DataType = NUMBER) -> pa.Schema:
    """Return the columns that a model of these features gives a row, all nullable, in their order.

    binary: `prediction`, of the target's type: whether the probability is 0.5 or more; `probability`, double.
    multiclass: `prediction`, of the target's type: the most probable class; `probability`, array of double,
        in the order of the target's classes.
    regression: `prediction`, double.
    no target: `prediction`, what the Task predicts.

    Several targets have theirs one after the other, with `<target>_` in front. The last one is `score_error`,
    string: null, or why the row has no score; the others are null then.

    Args:
        without_target: NUMBER, or NUMBERS where a Task predicts more than one a row.
    """
    fields: list[pa.Field] = []
    for target in features.targets:
        prefix = f"{target.name}_" if len(features.targets) > 1 else ""
        fields += [pa.field(f"{prefix}{name}", kind) for name, kind in _columns(target).items()]
    if not features.targets:
        fields.append(pa.field(PREDICTION, without_target))
    return pa.schema([*fields, pa.field(SCORE_ERROR, pa.string())])


def _columns(target: FittedTarget) -> dict[str, pa.DataType]:
    if target.kind == "regression":
        return {PREDICTION: NUMBER}
    probability = NUMBERS if target.kind == "multiclass" else NUMBER
    return {PREDICTION: ARROW_TYPES[target.input_type], PROBABILITY: probability}
