"""The pipelines' own models: what they take, what they give, and in which units."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import mean_squared_error

from pipelines.digits.model import Task as DigitTask
from pipelines.flight_delays import model as flight_delays
from pipelines.flight_minutes.model import Task as MinutesTask
from sparktrain.features import FittedFeatures
from sparktrain.features.fitted_columns import (
    FittedCategorical,
    FittedImage,
    FittedNumeric,
    FittedTarget,
)

CLASSES = ("0", "1", "2", "3")


def images(height: int, width: int) -> FittedFeatures:
    image = FittedImage(name="scan", column="scan", shape=(height, width, 1), fill=None)
    digit = FittedTarget(name="d", column="d", kind="multiclass", input_type="long", classes=CLASSES)
    return FittedFeatures(features=(image,), targets=(digit,))


@pytest.mark.parametrize(("height", "width"), [(8, 8), (12, 9)])
def test_the_digits_model_gives_a_logit_for_each_class_of_images_of_any_size(height: int, width: int) -> None:
    module = DigitTask(channels=(2, 3)).build_model(images(height, width)).eval()
    pixels = torch.randint(0, 17, (5, height, width, 1), dtype=torch.uint8)
    logits = module({"scan": pixels})
    assert logits.shape == (5, len(CLASSES)) and logits.dtype == torch.float32
    assert not torch.equal(logits[0], logits[1]), "it looks at the image"
    alone = module({"scan": pixels[3:4]})
    torch.testing.assert_close(alone[0], logits[3], msg="a row's logits depend on that row alone")


def test_the_digits_model_tells_rows_from_columns() -> None:
    module = DigitTask(channels=(2, 3)).build_model(images(8, 8)).eval()
    pixels = torch.zeros(1, 8, 8, 1, dtype=torch.uint8)
    pixels[:, 0] = 16  # the uppermost row
    upright, lying = module({"scan": pixels}), module({"scan": pixels.transpose(1, 2)})
    assert not torch.allclose(upright, lying)


@pytest.fixture
def flights() -> FittedFeatures:
    distance = FittedNumeric(name="distance", column="distance", input_type="double", fill=None)
    known = ("AA", "UA")
    carrier = FittedCategorical(name="carrier", column="carrier", input_type="string", vocabulary=known)
    return FittedFeatures(features=(distance, carrier))


@pytest.mark.parametrize("task", [flight_delays.Task, MinutesTask])
def test_both_flight_pipelines_build_the_same_module(
    task: type[flight_delays.FlightTask], flights: FittedFeatures
) -> None:
    torch.manual_seed(0)
    module = task(hidden_sizes=(4,), embedding_size=3).build_model(flights).eval()
    batch = {"distance": torch.tensor([0.1, 2.0]), "carrier": torch.tensor([2, 3], dtype=torch.int32)}
    given = module(batch)
    torch.manual_seed(0)
    other = flight_delays.FlightModel(flights, (4,), 3, 0.1).eval()
    assert given.shape == (2,)
    torch.testing.assert_close(given, other(batch), rtol=0, atol=0)


def test_the_minutes_are_predicted_in_minutes_and_learnt_in_hours() -> None:
    outputs, minutes = torch.tensor([0.5, -0.25, 3.0]), torch.tensor([30.0, 0.0, 60.0])
    task = MinutesTask()
    assert task.predict(outputs).tolist() == [30.0, -15.0, 180.0]
    loss = task.loss(outputs, minutes)
    assert loss.tolist() == pytest.approx([0.0, 0.0625, 4.0])
    # whoever lowers the loss lowers the error in minutes: one is a multiple of the other
    squared = mean_squared_error(minutes, task.predict(outputs))
    assert loss.mean().item() * 3600 == pytest.approx(squared)
    assert set(task.metrics()) == {"r2", "rmse", "mae"}
