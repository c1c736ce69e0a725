"""Golden values: a resumed run must meet the same order on any machine, with any numpy."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparktrain.dataset.permutation import _GAMMA, _mix_int, derive_key, permutation, spread


def test_the_hash_is_splitmix64() -> None:
    # The five first numbers that the published algorithm gives for the seed 1234567.
    words = [_mix_int(1234567 + (number + 1) * _GAMMA) for number in range(5)]
    assert words == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_an_order_is_the_sort_of_the_hashes() -> None:
    key = derive_key(3, 1, 4)
    hashes = [_mix_int(key + (number + 1) * _GAMMA) for number in range(200)]
    assert permutation(200, key).tolist() == sorted(range(200), key=hashes.__getitem__)


def test_orders_are_the_same_forever() -> None:
    assert permutation(10, 0).tolist() == [2, 4, 6, 8, 5, 1, 7, 0, 9, 3]
    assert permutation(8, derive_key(1, 2, 3)).tolist() == [0, 7, 2, 3, 4, 1, 6, 5]
    digest = hashlib.sha256(permutation(100_000, 42).astype("<i8").tobytes()).hexdigest()
    assert digest == "b107d6acb425cfd87b39442b6b590db0389fd93ee1548deb81b35cec1f1caaa6"


def test_keys_are_the_same_forever_and_depend_on_the_order_of_their_parts() -> None:
    assert derive_key(0) == 16294208416658607535
    assert derive_key(-1, 5) == 3846658174030194800
    assert derive_key(5, -1) == 13169544908547790070


@given(size=st.integers(0, 300), key=st.integers(0, 2**64 - 1))
def test_every_number_occurs_once(size: int, key: int) -> None:
    assert np.array_equal(np.sort(permutation(size, key)), np.arange(size))


def test_neighbouring_seeds_and_epochs_give_unrelated_orders() -> None:
    orders = [permutation(1000, derive_key(seed, epoch, 0)) for seed in range(4) for epoch in range(4)]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert np.sum(one == other) < 10  # 1 is expected of unrelated orders
            assert abs(np.corrcoef(one, other)[0, 1]) < 0.15


@given(
    rows=st.lists(st.integers(0, 30), max_size=300),
    num_lanes=st.integers(1, 70),
    key=st.integers(0, 2**64 - 1),
)
def test_a_spread_order_has_every_number_once(rows: list[int], num_lanes: int, key: int) -> None:
    assert np.array_equal(np.sort(spread(np.array(rows, np.int64), num_lanes, key)), np.arange(len(rows)))


@given(each=st.integers(1, 9), num_lanes=st.integers(2, 40), key=st.integers(0, 2**64 - 1))
def test_each_lane_has_a_stratum_of_its_own(each: int, num_lanes: int, key: int) -> None:
    size = each * num_lanes
    lanes = spread(np.full(size, 7), num_lanes, key).reshape(num_lanes, each)
    first = derive_key(key) % size
    strata = (lanes - first) % size // each
    assert np.all(strata == strata[:, :1]), "a lane stays in its stratum"
    assert sorted(strata[:, 0]) == list(range(num_lanes))


@pytest.mark.parametrize("num_ranks", [2, 3, 4, 8])
def test_the_lanes_of_a_rank_are_far_apart(num_ranks: int) -> None:
    lanes = spread(np.full(640, 7), 64, 3).reshape(64, 10)
    strata = (lanes[:, 0] - derive_key(3) % 640) % 640 // 10
    for rank in range(num_ranks):
        own = np.sort(strata[rank * 64 // num_ranks : (rank + 1) * 64 // num_ranks])
        gaps = np.diff([*own, own[0] + 64])
        assert gaps.max() <= 3 * num_ranks  # num_ranks if they were even


def test_spread_orders_are_the_same_forever_and_unrelated_to_each_other() -> None:
    assert spread(np.full(10, 5), 3, 0).tolist() == [6, 8, 5, 7, 2, 4, 3, 1, 0, 9]
    digest = hashlib.sha256(spread(np.arange(100_003) % 50, 64, 42).astype("<i8").tobytes()).hexdigest()
    assert digest == "044464a2b2fc3266b049cf048d1956fdcc83d4632d5af5830e65db78b6b09f95"
    orders = [spread(np.full(1000, 5), 8, key) for key in range(8)]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert np.sum(one == other) < 30  # 8 are expected where lanes share a stratum
