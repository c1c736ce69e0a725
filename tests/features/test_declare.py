"""Declaring columns: what is taken, what is refused at once, and what the outputs will be called."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from sparktrain.features import (
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
    output_names,
)

DECLARED: list[Feature] = [
    Numeric("n", column="raw", normalize="log1p", clip=(None, 9.0), fill="fail", nan=-1.0, infinity="clip"),
    Categorical("c"),
    Categorical("h", encoding="hash", num_buckets=64),
    Boolean("b", fill=True),
    Timestamp("t", parts=("year",), cyclic=False, time_zone="Europe/Berlin"),
    Vector("v", shape=(2, 3), dtype="int64"),
    Image("i", shape=(8, 9, 3), fill="fail"),
    Tokens("k", block_size=4, tokenizer="package.module:function"),
    Passthrough("p", fill=0),
]


def test_a_feature_is_made_of_the_column_of_its_name_or_of_another() -> None:
    assert Numeric("month").source == "month"
    assert Categorical("month_category", column="month").source == "month"
    assert Target("late", column="is_late").source == "is_late"


@pytest.mark.parametrize(
    ("declare", "arguments", "word"),
    [
        (Numeric, {"normalise": "none"}, "normalise"),
        (Numeric, {"normalize": "zscore"}, "normalize"),
        (Numeric, {"fill": "mode"}, "fill"),
        (Numeric, {"fill": float("nan")}, "finite"),
        (Numeric, {"nan": float("inf")}, "finite"),
        (Numeric, {"infinity": 3.0}, "infinity"),
        (Numeric, {"clip": (2.0, 1.0)}, r"clip's lowest value 2 is above its highest 1"),
        (
            Numeric,
            {"clip": (None, -1.0), "normalize": "log1p"},
            r"clip's lowest value 0 is above its highest -1",
        ),
        (Numeric, {"clip": (-1.0, None), "normalize": "log1p"}, "log1p takes values above -1"),
        (Categorical, {"max_size": 0}, "max_size"),
        (Categorical, {"min_count": 0}, "min_count"),
        (Categorical, {"fill": 0.0}, "fill"),
        (Categorical, {"num_buckets": 64}, 'num_buckets would be ignored with encoding="vocabulary"'),
        (
            Categorical,
            {"encoding": "hash", "max_size": 9, "min_count": 2},
            'max_size and min_count would be ignored with encoding="hash".*encoding="vocabulary"',
        ),
        (Categorical, {"encoding": "hash", "num_buckets": 2**31}, "num_buckets"),
        (Boolean, {"fill": "mean"}, "fill"),
        (Timestamp, {"parts": ()}, "parts"),
        (Timestamp, {"parts": ("second",)}, "parts"),
        (Timestamp, {"parts": ("hour", "hour")}, "twice"),
        (Timestamp, {"parts": ("hour", "year")}, "a year never comes again.*cyclic=False"),
        (Timestamp, {"time_zone": "Mars/Olympus"}, "there is no time zone 'Mars/Olympus'"),
        (Timestamp, {"time_zone": "../etc/passwd"}, "there is no time zone"),
        (Vector, {}, "shape"),
        (Vector, {"shape": ()}, "shape"),
        (Vector, {"shape": (3, 0)}, "shape"),
        (Vector, {"shape": 3, "dtype": "float16"}, "dtype"),
        (Image, {"shape": (8, 8)}, "shape"),
        (Image, {"shape": (8, 8, 3), "dtype": "float32"}, "dtype"),
        (Tokens, {}, "block_size"),
        (Tokens, {"block_size": 0}, "block_size"),
        (Tokens, {"block_size": 8, "tokenizer": "words"}, "tokenizer is 'words': give \"module:function\""),
        (Tokens, {"block_size": 8, "tokenizer": "bytes", "pad_id": 32}, "pad_id 32 is a byte's token"),
        (Passthrough, {"fill": float("nan")}, "finite"),
        (Target, {"kind": "ranking"}, "kind"),
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


@pytest.mark.parametrize("feature", DECLARED, ids=lambda f: f.name)
def test_a_declared_feature_survives_json(feature: Feature) -> None:
    adapter: TypeAdapter[Feature] = TypeAdapter(Feature)
    again = adapter.validate_json(adapter.dump_json(feature))
    assert again == feature
    assert type(again) is type(feature)


def test_the_shape_of_a_plain_vector_is_a_number() -> None:
    assert Vector("v", shape=3).shape == (3,)


def test_the_kind_of_a_fill_is_kept() -> None:
    for fill in (True, 1, 1.0, "1"):
        kept = Passthrough("p", fill=fill).fill
        assert (kept, type(kept)) == (fill, type(fill))


@pytest.mark.parametrize(
    ("feature", "names"),
    [
        (Numeric("n"), ["n"]),
        (Numeric("n", null_flag=True), ["n", "n_is_null"]),
        (Boolean("b", null_flag=True), ["b", "b_is_null"]),
        (Timestamp("t", parts=("hour",), null_flag=True), ["t_hour_sin", "t_hour_cos", "t_is_null"]),
        (Timestamp("t", parts=("year", "day"), cyclic=False), ["t_year", "t_day"]),
        (Tokens("k", block_size=4), ["k", "k_length"]),
        (Target("late", column="x"), ["late"]),
    ],
)
def test_output_names_are_known_before_any_row(feature: Feature | Target, names: list[str]) -> None:
    assert output_names(feature) == names
