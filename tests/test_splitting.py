"""The options of a split: what each method takes, and every mistake at once."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparktrain.config import PrepareConfig, parse_config
from sparktrain.errors import ConfigError
from sparktrain.splitting import SplitConfig, instant

SOUND: list[dict[str, Any]] = [
    {},
    {"validation": 0.0, "test": 0.0},
    {"method": "random", "seed": 3},
    {"method": "time", "column": "day", "test_from": 5},
    {
        "method": "time",
        "column": "day",
        "validation_from": date(2013, 10, 1),
        "test_from": "2013-11-01T06:00Z",
    },
    {"method": "stratified", "column": "c", "fractions": {True: {"validation": 0.5, "test": 0.4}}},
    {"method": "column", "column": "part", "validation": None, "seed": None, "fractions": None},
]


def problems_of(split: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config({"pipeline": "flight_delays", "prepare": {"split": split}})
    assert all(problem.startswith("prepare.split") for problem in caught.value.problems)
    return [problem.removeprefix("prepare.split").removeprefix(".") for problem in caught.value.problems]


@pytest.mark.parametrize("options", SOUND)
def test_options_that_fit_their_method_survive_as_json(options: dict[str, Any]) -> None:
    config = SplitConfig(**options)
    assert SplitConfig.model_validate_json(config.model_dump_json()) == config
    assert PrepareConfig(split=config).split == config


def test_an_option_that_the_method_does_not_use_is_none() -> None:
    config = SplitConfig(method="column", column="part")
    assert (config.validation, config.test, config.seed) == (None, None, None)
    assert SplitConfig(**SOUND[4]).validation_from == "2013-10-01"
    assert set(SplitConfig(**SOUND[5]).fractions) == {"true"}  # as Spark writes the column's value


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            {"column": "a"},
            ["column: method hash does not use it; leave it empty, or set prepare.split.method to"],
        ),
        ({"method": "random", "seed": None}, ["seed: method random needs a number"]),
        (
            {"method": "time"},
            ["column: method time needs it", "validation_from: method time needs it, or test_from"],
        ),
        (
            {"method": "time", "column": "t", "validation": 0.1, "seed": 0, "test_from": 1},
            ["validation: method time does not use it", "seed: method time does not use it"],
        ),
        (
            {"method": "time", "column": "t", "validation_from": "soon", "test_from": True},
            ["validation_from: 'soon' is neither a number nor", "test_from: True is neither"],
        ),
        (
            {"method": "time", "column": "t", "validation_from": 2, "test_from": 1},
            ["test rows come after those of"],
        ),
        (
            {"method": "time", "column": "t", "validation_from": 2, "test_from": "2013-01-01"},
            ["give two numbers or two timestamps"],
        ),
        ({"method": "stratified", "column": "c"}, ["fractions: method stratified needs them"]),
        (
            {
                "method": "stratified",
                "column": "c",
                "fractions": {"a": {"validation": 0.5, "test": 0.5}, "b": {}},
            },
            [
                "fractions: for 'a', validation + test is 1",
                "fractions.b.validation: missing",
                "fractions.b.test",
            ],
        ),
        ({"method": "hsh"}, ["method: 'hsh' given"]),
        ({"method": "column"}, ["column: method column needs it"]),
        (
            {"validation": 0.6, "test": 0.5, "sed": 1, "test_from": 3},
            [
                "sed: unknown key; did you mean prepare.split.seed",
                "test_from: method hash",
                ": validation + test is 1.1",
            ],
        ),
        (
            {"validation": 2, "test": "x", "fractions": {"a": 1}},
            ["validation: 2", "test: 'x'", "fractions.a", "fra"],
        ),
    ],
)
def test_every_mistake_is_told_at_once(options: dict[str, Any], told: list[str]) -> None:
    problems = problems_of(options)
    assert len(problems) == len(told), problems
    for part in told:
        assert any(part in problem for problem in problems), (part, problems)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (SOUND[0], ("train", "validation", "test")),
        (SOUND[1], ("train",)),
        (SOUND[3], ("train", "test")),
        (SOUND[4], ("train", "validation", "test")),
        ({**SOUND[5], "validation": 0.0, "test": 0.0}, ("train", "validation", "test")),
        (SOUND[6], ("train",)),
    ],
)
def test_splits_that_are_asked_for_must_get_rows(options: dict[str, Any], wanted: tuple[str, ...]) -> None:
    assert SplitConfig(**options).wanted == wanted


@given(st.datetimes(timezones=st.just(UTC)))
def test_an_instant_without_a_zone_is_in_utc(when: datetime) -> None:
    assert instant(when.isoformat()) == instant(when.replace(tzinfo=None).isoformat()) == when


@pytest.mark.parametrize("given", [True, None, "", "12", "2013-13-01", float("nan"), float("inf"), [1]])
def test_what_is_no_instant_is_refused(given: object) -> None:
    with pytest.raises(ValueError, match="neither a number nor an ISO timestamp"):
        instant(given)
