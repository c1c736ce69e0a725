"""Golden values: a resumed run must meet the same order on any machine, with any numpy."""

import hashlib

import numpy as np
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


@given(size=st.integers(0, 400), num_lanes=st.integers(1, 70), key=st.integers(0, 2**64 - 1))
def test_a_spread_order_has_every_number_once(size: int, num_lanes: int, key: int) -> None:
    assert np.array_equal(np.sort(spread(size, num_lanes, key)), np.arange(size))


@given(rounds=st.integers(1, 9), num_lanes=st.integers(2, 40), key=st.integers(0, 2**64 - 1))
def test_lanes_are_in_strata_of_their_own_at_any_time(rounds: int, num_lanes: int, key: int) -> None:
    order = spread(rounds * num_lanes, num_lanes, key).reshape(num_lanes, rounds)
    assert np.all(np.sort(order // rounds, axis=0) == np.arange(num_lanes)[:, None])


def test_lanes_stay_apart_when_they_do_not_divide_the_row_groups() -> None:
    order, borders = spread(245, 32, 9), [lane * 245 // 32 for lane in range(33)]
    for round_ in range(7):
        strata = {int(order[border + round_]) * 32 // 245 for border in borders[:-1]}
        assert len(strata) >= 30


def test_spread_orders_are_the_same_forever_and_unrelated_to_each_other() -> None:
    assert spread(10, 3, 0).tolist() == [8, 7, 5, 2, 1, 9, 4, 6, 0, 3]
    digest = hashlib.sha256(spread(100_003, 64, 42).astype("<i8").tobytes()).hexdigest()
    assert digest == "aa420bf9fe9edbc885b4b1b29473a3c6f08c85841594ae093491196026d1ccb3"
    orders = [spread(1000, 8, key) for key in range(8)]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert np.sum(one == other) < 30  # 8 are expected of unrelated orders: a stratum has 125 numbers
            assert abs(np.corrcoef(one, other)[0, 1]) < 0.15
