"""What a line of progress tells, and numbers as people say them."""

from __future__ import annotations

import pytest

from sparktrain.runs.in_words import duration, news_of, ranks_text


@pytest.mark.parametrize(
    ("validation", "told"),
    [
        ({"loss": 0.5, "average_precision": 0.2, "auroc": 0.75}, {"validation auroc": "0.7500"}),
        ({"loss": 0.5, "rmse": 3.0, "r2": 0.25}, {"validation r2": "0.2500"}),
        (
            {"loss": 0.5, "late_loss": 0.1, "late_auroc": 0.5, "cause_accuracy": 0.9},
            {"validation late_auroc": "0.5000"},
        ),
        ({"loss": 0.5, "bits_per_byte": 1.9}, {"validation bits_per_byte": "1.9000"}),
        ({"loss": 0.5}, {"validation loss": "0.5000"}),
        ({}, {}),
    ],
)
def test_one_metric_of_validation_is_told_whatever_the_target(
    validation: dict[str, float], told: dict[str, str]
) -> None:
    assert news_of({f"validation/{name}": value for name, value in validation.items()}) == told


def test_loss_and_speed_are_told_as_they_come() -> None:
    assert news_of({"train/loss": 0.25, "train/rows_per_second": 12345.6}) == {
        "loss": "0.2500",
        "rows/s": "12,346",
    }
    assert news_of({"train/loss": 0.25, "system/cpu": 3.0}) == {"loss": "0.2500"}


def test_numbers_are_said_as_people_say_them() -> None:
    assert [ranks_text(n) for n in (1, 2)] == ["1 rank", "2 ranks"]
    assert [duration(s) for s in (0.25, 61, 3599.6)] == ["0.2 s", "1 min 01 s", "1 h 00 min"]
