"""Declaring columns: what is taken, and what is refused at once."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from sparktrain.features import Categorical, FittedNumeric, Numeric, Target


def test_a_feature_is_made_of_the_column_of_its_name_or_of_another() -> None:
    assert Numeric("month").source == "month"
    assert Categorical("month_category", column="month").source == "month"


@pytest.mark.parametrize(
    ("declare", "arguments", "word"),
    [
        (Numeric, {"normalise": "none"}, "normalise"),
        (Numeric, {"normalize": "robust"}, "normalize"),
        (Numeric, {"fill": "median"}, "fill"),
        (Numeric, {"fill": float("nan")}, "finite"),
        (Numeric, {"fill": float("inf")}, "finite"),
        (Categorical, {"max_size": 0}, "max_size"),
        (Categorical, {"min_count": 0}, "min_count"),
        (Categorical, {"fill": 0.0}, "fill"),
        (Target, {"kind": "ranking"}, "kind"),
        (Target, {"columns": "late"}, "columns"),
    ],
)
def test_an_argument_that_means_nothing_is_refused_by_name(
    declare: Any, arguments: dict[str, Any], word: str
) -> None:
    with pytest.raises(ValidationError, match=word):
        declare("distance", **arguments)


def test_what_was_declared_can_not_be_changed() -> None:
    feature = Numeric("distance")
    with pytest.raises(ValidationError, match="frozen"):
        feature.fill = 0.0


@pytest.mark.parametrize("change", [{"scale": 0.0}, {"scale": float("nan")}, {"offset": float("inf")}])
def test_statistics_that_would_give_no_number_are_refused(change: dict[str, float]) -> None:
    sound = {"fill": 0.0, "offset": 0.0, "scale": 1.0}
    with pytest.raises(ValidationError):
        FittedNumeric(name="x", column="x", input_type="double", **(sound | change))
