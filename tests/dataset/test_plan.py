"""The ledger: which rows the plan gives to which rank at which step."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparktrain.dataset.plan import Copy, EpochOrder, Plan, Tail, count_steps, row_order
from sparktrain.errors import ConfigError

SPLITS = st.lists(st.integers(0, 40), min_size=1, max_size=30).filter(sum)
BATCHES = st.tuples(st.integers(1, 8), st.integers(1, 9))  # lanes, rows of a lane and step
WORLD_SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16)


def rows_of(copy: Copy, stride: int) -> np.ndarray:
    """The rows of its row group that a copy reads: shape [num_steps, width]."""
    if copy.is_padding:
        return np.full((1, copy.width), copy.start)
    return copy.start + np.arange(copy.num_steps)[:, None] * stride + np.arange(copy.width)


def assemble(
    plan: Plan, order: EpochOrder, rank: int, size: int, first_step: int, last_step: int
) -> np.ndarray:
    """What one rank's copies write: (row group, row, weight) of shape [steps, rows of the rank, 3]."""
    shares = plan.shares(rank, size)
    batches = np.full((last_step - first_step, sum(share.width for share in shares), 3), -1)
    for share in shares:
        for copy in plan.copies(order, share, first_step, last_step):
            step = copy.step - first_step
            target = batches[step : step + copy.num_steps, copy.offset : copy.offset + copy.width]
            assert np.all(target == -1), "a place was written twice"
            target[..., 0], target[..., 1] = copy.row_group, rows_of(copy, plan.lane_rows)
            target[..., 2] = not copy.is_padding or plan.tail != "mask"
    assert np.all(batches >= 0), "a place was never written"
    return batches


def assemble_gang(plan: Plan, order: EpochOrder, size: int, first_step: int, last_step: int) -> np.ndarray:
    return np.concatenate(
        [assemble(plan, order, rank, size, first_step, last_step) for rank in range(size)], axis=1
    )


def make(
    row_groups: list[int], batch: tuple[int, int], tail: Tail, epoch: int = 0, shuffle: bool = True
) -> tuple[Plan, EpochOrder]:
    num_lanes, lane_rows = batch
    rows = np.array(row_groups)
    plan = Plan(int(rows.sum()), num_lanes * lane_rows, num_lanes, tail)
    return plan, EpochOrder.of(rows, num_lanes, seed=7, epoch=epoch, shuffle=shuffle)


@given(
    row_groups=SPLITS,
    batch=BATCHES,
    tail=st.sampled_from(["drop", "repeat", "mask"]),
    size=st.sampled_from(WORLD_SIZES),
)
def test_ranks_together_assemble_the_global_batch_of_the_definition(
    row_groups: list[int], batch: tuple[int, int], tail: Tail, size: int
) -> None:
    plan, order = make(row_groups, batch, tail)
    batches = assemble_gang(plan, order, size, 0, plan.steps_per_epoch)
    for step in range(plan.steps_per_epoch):
        positions, is_padding = plan.global_positions(step)
        row_group, row = order.locate(positions)
        assert np.array_equal(batches[step], np.stack([row_group, row, ~is_padding], axis=1))


@given(row_groups=SPLITS, batch=BATCHES, shuffle=st.booleans())
def test_every_row_comes_exactly_once_with_weight_1_under_mask(
    row_groups: list[int], batch: tuple[int, int], shuffle: bool
) -> None:
    plan, order = make(row_groups, batch, "mask", shuffle=shuffle)
    rows = assemble_gang(plan, order, 3, 0, plan.steps_per_epoch).reshape(-1, 3)
    seen = [(row_group, row) for row_group, row, weight in rows.tolist() if weight]
    assert sorted(seen) == [(g, row) for g, count in enumerate(row_groups) for row in range(count)]
    padding = [(row_group, row) for row_group, row, weight in rows.tolist() if not weight]
    assert all(0 <= row < row_groups[row_group] for row_group, row in padding), (
        "padding must be a row that exists"
    )


@given(row_groups=SPLITS, batch=BATCHES, shuffle=st.booleans())
def test_every_row_comes_under_repeat_and_less_than_a_batch_comes_again(
    row_groups: list[int], batch: tuple[int, int], shuffle: bool
) -> None:
    plan, order = make(row_groups, batch, "repeat", shuffle=shuffle)
    rows = assemble_gang(plan, order, 3, 0, plan.steps_per_epoch).reshape(-1, 3)
    assert np.all(rows[:, 2] == 1)
    seen = {(row_group, row) for row_group, row, _ in rows.tolist()}
    assert seen == {(g, row) for g, count in enumerate(row_groups) for row in range(count)}
    assert 0 <= len(rows) - plan.num_rows < plan.global_batch_size


@given(row_groups=SPLITS, batch=BATCHES)
def test_no_row_comes_twice_under_drop_and_less_than_a_batch_is_left_out(
    row_groups: list[int], batch: tuple[int, int]
) -> None:
    plan, order = make(row_groups, batch, "drop")
    rows = assemble_gang(plan, order, 2, 0, plan.steps_per_epoch).reshape(-1, 3)
    assert np.all(rows[:, 2] == 1)
    assert len(np.unique(rows, axis=0)) == len(rows)
    assert 0 <= plan.num_rows - len(rows) < plan.global_batch_size


@given(row_groups=SPLITS, batch=BATCHES, tail=st.sampled_from(["drop", "repeat", "mask"]), data=st.data())
def test_a_seek_gives_what_the_straight_way_gives(
    row_groups: list[int], batch: tuple[int, int], tail: Tail, data: st.DataObject
) -> None:
    plan, order = make(row_groups, batch, tail)
    num_steps = plan.steps_per_epoch
    first = data.draw(st.integers(0, num_steps))
    last = data.draw(st.integers(first, num_steps))
    straight = assemble(plan, order, 0, 2, 0, num_steps)
    assert np.array_equal(assemble(plan, order, 0, 2, first, last), straight[first:last])


@given(row_groups=SPLITS, batch=BATCHES, tail=st.sampled_from(["drop", "mask"]))
def test_lanes_never_overlap_and_stay_inside_the_split(
    row_groups: list[int], batch: tuple[int, int], tail: Tail
) -> None:
    plan, _ = make(row_groups, batch, tail)
    borders = [border for lane in range(plan.num_lanes) for border in plan.lane_interval(lane)]
    assert borders == sorted(borders)
    assert borders[0] >= 0 and borders[-1] <= plan.num_rows


@pytest.mark.parametrize("size", WORLD_SIZES)
@pytest.mark.parametrize("global_batch_size", [16, 24, 48, 2048])
def test_ranks_share_every_position_and_differ_by_one_row_at_most(size: int, global_batch_size: int) -> None:
    plan = Plan(10_000, global_batch_size, 8)
    shares = [share for rank in range(size) for share in plan.shares(rank, size)]
    widths = [sum(share.width for share in plan.shares(rank, size)) for rank in range(size)]
    assert sum(widths) == global_batch_size and max(widths) - min(widths) <= 1
    places = np.concatenate([s.lane * plan.lane_rows + s.skip + np.arange(s.width) for s in shares])
    assert np.array_equal(places, np.arange(global_batch_size))


def test_epochs_have_orders_of_their_own_and_leave_out_other_rows() -> None:
    left_out = []
    for epoch in range(4):
        plan, order = make([10] * 20, (4, 12), "drop", epoch)
        rows = assemble_gang(plan, order, 1, 0, plan.steps_per_epoch)[..., 0].ravel()
        left_out.append(
            tuple(np.sort(np.bincount(rows, minlength=20)).tolist() + np.argsort(order.row_groups).tolist())
        )
    assert len(set(left_out)) == 4


def test_row_groups_of_one_size_have_orders_of_their_own_in_every_epoch() -> None:
    orders = {tuple(row_order(50, *key)) for key in product((0, 1), repeat=3)}
    assert len(orders) == 8


def test_without_shuffling_one_lane_keeps_the_stored_order() -> None:
    plan, order = make([3, 0, 4, 5], (1, 5), "mask", shuffle=False)
    rows = assemble_gang(plan, order, 1, 0, plan.steps_per_epoch).reshape(-1, 3)
    stored = [(0, 0), (0, 1), (0, 2), *((2, row) for row in range(4)), *((3, row) for row in range(5))]
    assert [(g, row) for g, row, weight in rows.tolist() if weight] == stored


def test_a_million_row_groups_are_planned_and_sought_by_arithmetic() -> None:
    rows = np.full(1_000_000, 16_384)
    rows[::3] = 5
    order = EpochOrder.of(rows, 64, seed=1, epoch=2)
    plan = Plan(int(rows.sum()), 65_536, 64)
    assert order.starts[-1] == plan.num_rows
    step = plan.steps_per_epoch - 1
    batches = assemble_gang(plan, order, 16, step, step + 1)
    row_group, row = order.locate(plan.global_positions(step)[0])
    assert np.array_equal(batches[0, :, :2], np.stack([row_group, row], axis=1))
    assert np.all(row < rows[row_group])


def test_many_steps_of_a_lane_are_one_copy() -> None:
    plan, order = make([1000], (1, 10), "drop")
    (share,) = plan.shares(0, 1)
    assert list(plan.copies(order, share, 3, 11)) == [Copy(0, 30, 8, 3, 0, 10)]


@pytest.mark.parametrize(
    ("rows", "tail", "num_steps"),
    [
        (0, "drop", 0),
        (0, "mask", 0),
        (7, "drop", 0),
        (7, "mask", 1),
        (7, "repeat", 1),
        (8, "mask", 1),
        (8, "drop", 1),
        (17, "mask", 3),
    ],
)
def test_steps_are_one_number_from_rows_and_batch_size(rows: int, tail: Tail, num_steps: int) -> None:
    assert count_steps(rows, 8, tail) == num_steps


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((100, 10, 3), "num_lanes is 3, which must divide global_batch_size 10"),
        ((100, 0, 1), "global_batch_size is 0"),
        ((100, 8, 8, "again"), "tail is 'again'; allowed are 'drop', 'repeat' and 'mask'"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(arguments: tuple[int, int, int], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Plan(*arguments)
