"""Fitted features together: raw rows in, arrays out, and the same again after a trip through JSON."""

from __future__ import annotations

import pickle
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sparktrain.errors import EXIT_DATA, NotOneTarget, SchemaMismatch, TokenizerUnusable, ValuesRefused
from sparktrain.features import (
    Boolean,
    Feature,
    FittedBoolean,
    FittedCategorical,
    FittedFeature,
    FittedFeatures,
    FittedImage,
    FittedNumeric,
    FittedPassthrough,
    FittedTarget,
    FittedTimestamp,
    FittedTokens,
    FittedVector,
    FittedWeight,
    Image,
    InputType,
    Numeric,
    Passthrough,
    Target,
    Timestamp,
    Tokens,
    Vector,
    output_names,
)

finite = st.floats(allow_nan=False, allow_infinity=False)
LATE = FittedTarget(name="late", column="late", kind="binary", input_type="boolean")


def numeric(name: str = "x", **changes: Any) -> FittedNumeric:
    return FittedNumeric(**({"name": name, "column": name, "input_type": "double", "fill": 10.0} | changes))


def categorical(
    vocabulary: tuple[str, ...], name: str = "c", *, column: str = "", input_type: InputType = "string"
) -> FittedCategorical:
    return FittedCategorical(name=name, column=column or name, input_type=input_type, vocabulary=vocabulary)


def fitted(*features: Any, targets: tuple[FittedTarget, ...] = (LATE,), **others: Any) -> FittedFeatures:
    return FittedFeatures(features=features, targets=targets, **others)


def one_of_each() -> FittedFeatures:
    return fitted(
        numeric(null_flag=True),
        categorical(("a",)),
        FittedBoolean(name="b", column="b", fill=True),
        FittedTimestamp(
            name="t", column="t", input_type="timestamp", parts=("hour", "month"), cyclic=True,
            time_zone="Europe/Berlin", null_flag=True,
        ),
        FittedVector(name="v", column="v", input_type="doubles", shape=(2, 2), dtype="float32", fill=None),
        FittedImage(name="i", column="i", shape=(1, 2, 1), fill="zeros"),
        FittedTokens(name="k", column="k", input_type="string", block_size=3, tokenizer="bytes"),
        FittedPassthrough(name="p", column="p", input_type="long", fill=None),
        weight=FittedWeight(name="w", column="x", input_type="double", scale=2.0),
    )  # fmt: skip


ROWS = pa.table(
    {
        "x": [1.0, 2.0],
        "c": ["a", None],
        "b": [None, False],
        "t": pa.array([0, None], pa.timestamp("us", "UTC")),
        "v": [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]],
        "i": [b"\x01\x02", None],
        "k": ["é", "abcd"],
        "p": [2**53 + 1, -1],
        "late": [True, False],
        "unused": [0, 0],
    }
)


def test_every_declared_kind_has_a_fitted_one() -> None:
    def kinds(union: Any) -> set[str]:
        return {member.model_fields["kind"].default for member in get_args(get_args(union)[0])}

    assert kinds(Feature) == kinds(FittedFeature)


def test_the_outputs_say_what_transform_gives() -> None:
    features = one_of_each()
    for rows in (ROWS, ROWS.to_batches()[0], ROWS.slice(1), ROWS.slice(0, 0), pa.concat_tables([ROWS, ROWS])):
        arrays = features.transform(rows)
        assert list(arrays) == [output.name for output in features.outputs]
        for output in features.outputs:
            assert arrays[output.name].dtype == output.dtype
            assert arrays[output.name].shape == (rows.num_rows, *output.shape)
    assert [output.name for output in features.numeric] == [
        "x", "x_is_null", "b", "t_hour_sin", "t_hour_cos", "t_month_sin", "t_month_cos", "t_is_null"
    ]  # fmt: skip
    assert [(output.name, output.num_codes) for output in features.categorical] == [("c", 3)]
    arrays = features.transform(ROWS)
    assert arrays["v"].tolist() == [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]
    assert arrays["k"].tolist() == [[0xC3 + 1, 0xA9 + 1, 0], [98, 99, 100]]


def test_declared_and_fitted_features_agree_about_names() -> None:
    declared: list[Feature] = [
        Numeric("x", null_flag=True), Boolean("b"), Image("i", shape=(1, 2, 1)), Passthrough("p"),
        Timestamp("t", parts=("hour", "month"), null_flag=True),
        Vector("v", shape=4), Tokens("k", block_size=3, tokenizer="bytes"),
    ]  # fmt: skip
    by_name = {feature.name: feature for feature in one_of_each().features}
    for feature in declared:
        assert output_names(feature) == [output.name for output in by_name[feature.name].outputs]
    assert output_names(Target("late")) == [LATE.output.name]


def test_targets_and_weight_are_made_apart_from_the_features() -> None:
    arrays = one_of_each().transform_targets(ROWS)
    assert {name: (array.tolist(), str(array.dtype)) for name, array in arrays.items()} == {
        "late": ([1.0, 0.0], "float32"),
        "w": ([0.5, 1.0], "float32"),
    }
    assert "late" not in one_of_each().input_types


def test_the_target_is_the_only_one() -> None:
    other = LATE.model_copy(update={"name": "cancelled"})
    assert fitted(numeric()).target == LATE
    with pytest.raises(NotOneTarget, match=r"2 targets \(late, cancelled\)"):
        _ = fitted(numeric(), targets=(LATE, other)).target
    with pytest.raises(NotOneTarget, match=r"0 targets \(none\)"):
        _ = fitted(numeric(), targets=()).target


@pytest.mark.parametrize(
    ("features", "problem"),
    [
        ((numeric("a"), numeric("a")), "twice: a"),
        ((numeric("a"), numeric("A")), "twice: a, A"),
        ((numeric("a", null_flag=True), numeric("a_is_null")), "twice: a_is_null"),
        ((numeric("late"),), "twice: late"),
        ((numeric("weight"),), "twice: weight"),
        ((numeric("a"), categorical(("1",), "b", column="a", input_type="long")), "read as two types: a"),
    ],
    ids=str,
)
def test_names_that_clash_are_refused(features: tuple[Any, ...], problem: str) -> None:
    weight = FittedWeight(name="weight", column="w", input_type="double")
    with pytest.raises(ValidationError, match=problem):
        fitted(*features, weight=weight)


def test_a_mismatch_lists_every_column_at_once() -> None:
    features = fitted(
        numeric("distance"), numeric("seats"), categorical(("a",), "carrier"), categorical(("1",), "origin")
    )
    rows = pa.table({"distance": ["far"], "carrier": [3], "unused": [1]})
    with pytest.raises(SchemaMismatch) as caught:
        features.transform(rows)
    text = str(caught.value)
    assert "missing column `seats`" in text
    assert "missing column `origin`" in text
    assert "column `distance` is string, expected double" in text
    assert "column `carrier` is int64, expected string" in text
    assert "unused" not in text
    assert "Way out" in text
    assert caught.value.exit_code == EXIT_DATA


def test_refused_values_of_all_columns_come_at_once() -> None:
    features = fitted(numeric("a", fill=None), numeric("b"), FittedBoolean(name="c", column="c", fill=None))
    rows = pa.table({"a": [None, float("nan")], "b": [1.0, None], "c": pa.array([None, None], pa.bool_())})
    with pytest.raises(ValuesRefused) as caught:
        features.transform(rows)
    assert caught.value.columns == {"a": "1 null, 1 NaN", "c": "2 nulls"}
    assert "column `a`: 1 null, 1 NaN" in str(caught.value)


def test_one_raw_column_serves_two_features() -> None:
    features = fitted(
        numeric("month", input_type="long"),
        categorical(("12", "1"), "month_category", column="month", input_type="long"),
    )
    assert features.input_types == {"month": "long"}
    out = features.transform(pa.table({"month": [1.0, 12.0, float("nan")]}))
    assert list(out) == ["month", "month_category"]
    assert out["month"].tolist() == [1.0, 12.0, 10.0]
    assert out["month_category"].tolist() == [3, 2, 0]


def test_tokenizers_are_imported_on_request() -> None:
    one_of_each().import_tokenizers()  # has none to import
    missing = FittedTokens(name="k", column="k", input_type="string", block_size=3, tokenizer="gone:words")
    with pytest.raises(TokenizerUnusable, match="gone:words"):
        fitted(missing).import_tokenizers()


def test_used_features_can_still_be_sent_elsewhere() -> None:
    features = one_of_each()
    before = features.transform(ROWS)
    again = pickle.loads(pickle.dumps(features))
    assert again == features == one_of_each()
    for name, array in again.transform(ROWS).items():
        np.testing.assert_array_equal(array, before[name])


def test_a_trip_through_json_keeps_every_kind() -> None:
    features = one_of_each()
    again = FittedFeatures.from_json(features.to_json())
    assert again == features
    assert again.to_json() == features.to_json()


@given(
    fill=finite,
    offset=finite,
    scale=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    words=st.lists(st.text(), unique=True),
)
def test_a_trip_through_json_changes_no_bit(
    fill: float, offset: float, scale: float, words: list[str]
) -> None:
    features = fitted(numeric(fill=fill, offset=offset, scale=scale), categorical(tuple(words)))
    text = features.to_json()
    again = FittedFeatures.from_json(text)
    assert again == features
    assert again.to_json() == text
    assert FittedFeatures.from_json(text.encode()).to_json().encode() == text.encode()


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (
            '"version": 2',
            '"version": 1',
            "have version 1, this sparktrain reads version 2: prepare the dataset",
        ),
        ('"kind": "numeric"', '"kind": "spline"', "spline"),
    ],
)
def test_json_of_another_version_or_kind_is_refused(old: str, new: str, problem: str) -> None:
    text = fitted(numeric()).to_json()
    assert old in text
    with pytest.raises(ValidationError, match=problem):
        FittedFeatures.from_json(text.replace(old, new))


def test_the_first_version_is_refused_by_its_number() -> None:
    text = '{"version": 1, "features": [], "target": {"name": "late", "kind": "binary"}}'
    with pytest.raises(ValidationError, match="these features have version 1") as caught:
        FittedFeatures.from_json(text)
    assert len(caught.value.errors()) == 1
