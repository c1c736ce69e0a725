"""The network that fits itself to the features."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from sparktrain.features import (
    FittedBoolean,
    FittedCategorical,
    FittedFeature,
    FittedFeatures,
    FittedImage,
    FittedNumeric,
    FittedPassthrough,
    FittedVector,
)
from sparktrain.tabular.network import TabularNetwork

NUMBER = FittedNumeric(name="a.number", column="a.number", input_type="double", fill=0.0, null_flag=True)
COLOUR = FittedCategorical(name="colour", column="colour", input_type="string", vocabulary=("red", "blue"))
FLAG = FittedBoolean(name="flag", column="flag", fill=False)
POINT = FittedVector(
    name="point", column="point", input_type="doubles", shape=(3,), dtype="float32", fill="zeros"
)
NOTE = FittedPassthrough(name="note", column="note", input_type="long", fill=0)
ROWS = pa.table(
    {
        "a.number": [0.5, None, -1.0],
        "colour": ["red", "green", None],
        "flag": [True, False, None],
        "point": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]],
        "note": [1, 2, 3],
    }
)


def batch_of(features: FittedFeatures) -> dict[str, Tensor]:
    arrays = features.transform(ROWS)
    return {name: torch.from_numpy(np.require(array, requirements="W")) for name, array in arrays.items()}


@pytest.mark.parametrize(
    "wanted",
    [
        (NUMBER,),
        (COLOUR,),
        (FLAG,),
        (POINT,),
        (NUMBER, COLOUR),
        (POINT, COLOUR, NOTE),
        (FLAG, NUMBER, COLOUR, POINT, NOTE),
    ],
    ids=lambda wanted: "+".join(feature.name for feature in wanted),
)
@pytest.mark.parametrize("hidden_sizes", [(), (4,), (8, 4)])
def test_every_mixture_of_features_gives_one_number_a_row_or_several(
    wanted: tuple[FittedFeature, ...], hidden_sizes: tuple[int, ...]
) -> None:
    features = FittedFeatures(features=wanted)
    batch = batch_of(features)
    for num_outputs, shape in ((1, (3,)), (5, (3, 5))):
        network = TabularNetwork(features, num_outputs, hidden_sizes)
        outputs = network(batch)
        assert (tuple(outputs.shape), outputs.dtype) == (shape, torch.float32)
        outputs.sum().backward()
        assert all(parameter.grad is not None for parameter in network.parameters())


def test_each_input_matters_and_what_is_handed_on_does_not() -> None:
    features = FittedFeatures(features=(FLAG, NUMBER, COLOUR, POINT, NOTE))
    torch.manual_seed(0)
    network = TabularNetwork(features, 1, (16,)).eval()
    batch = batch_of(features)
    before = network(batch)
    for name, values in batch.items():
        changed = (values + 1).clamp(max=3) if name == "colour" else values + 1
        after = network({**batch, name: changed})
        assert torch.equal(after, before) == (name == "note"), name


def test_vectors_are_scaled_as_told_and_the_scale_is_kept_with_the_weights() -> None:
    features = FittedFeatures(features=(POINT,))
    torch.manual_seed(0)
    scaled = TabularNetwork(features, 1, (), scaling={"point": ((4.0, 5.0, 6.0), (0.5, 0.5, 0.0))})
    seen = scaled.scaling[0](batch_of(features)["point"])
    assert seen.tolist() == [[-1.5, -1.5, 0.0], [0.0, 0.0, 0.0], [1.5, 1.5, 0.0]]
    assert {name for name, _ in scaled.named_buffers()} == {"scaling.0.mean", "scaling.0.scale"}
    assert not [name for name, _ in scaled.named_parameters() if "scaling" in name]


def test_what_needs_another_network_is_refused() -> None:
    image = FittedImage(name="photo", column="photo", shape=(2, 2, 1), fill="zeros")
    with pytest.raises(ValueError, match="not photo: write a Task of your own, or leave them out"):
        TabularNetwork(FittedFeatures(features=(NUMBER, image)), 1)
    with pytest.raises(ValueError, match="no feature to learn from"):
        TabularNetwork(FittedFeatures(features=(NOTE,)), 1)
