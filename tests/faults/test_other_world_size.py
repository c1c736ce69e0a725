"""R34, R28: another world size on resume; parts that are empty, fewer row groups than ranks, no rows at all.

What streams do at any world size is tested in tests/dataset/test_stream.py; here it is training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sparktrain.config import TrainConfig
from sparktrain.errors import EXIT_DATA, RankLost, TooFewRows
from sparktrain.testing import write_tiny_dataset
from tests.fixtures.tiny_task import TINY_CONFIG, FaultyTask, TinyTask, metric_curve, train_here, train_tiny

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(180)]

ROWS = [[70, 3], [], [1], [330, 120], []]  # of each row group of each part


def config(**changes: Any) -> TrainConfig:
    return TINY_CONFIG.model_copy(update=changes)


def ledger_of(ranks: list[dict[str, Any]]) -> dict[int, list[int]]:
    """The global batch of each step: the row ids of all ranks, in their order."""
    return {step: [row for rank in ranks for row in rank["rows"][step]] for step in ranks[0]["rows"]}


def test_a_run_goes_on_at_other_world_sizes_with_the_same_global_batches(tmp_path: Path) -> None:
    dataset = write_tiny_dataset(tmp_path / "tiny", ROWS, validation_rows=50, test_rows=40)
    plan = config(epochs=3, checkpoint_every_steps=5)  # 16 steps an epoch
    straight = train_tiny(TinyTask(), dataset, plan, tmp_path / "straight", ranks=2)
    ledgers: dict[int, list[int]] = {}
    losses: dict[int, float] = {}
    sizes = [(2, 1, 8), (3, 2, 9), (1, 0, 13)]  # ranks, and who is killed at which step of the process
    for attempt, (ranks, rank, step) in enumerate(sizes, start=1):
        with pytest.raises(RankLost, match=f"rank {rank} ended without an error"):
            task = FaultyTask(kind="sigkill", rank=rank, step=step)
            train_tiny(task, dataset, plan, tmp_path / "resized", ranks=ranks, attempt=attempt)
    resumed = train_tiny(TinyTask(), dataset, plan, tmp_path / "resized", ranks=3, attempt=4)
    ledgers, losses = ledger_of(resumed), metric_curve(resumed[0]["events"], "train/loss")
    assert 5 < min(ledgers) < 40 and max(ledgers) == 48, "it went on from a checkpoint of the gang before"
    assert ledgers == {step: rows for step, rows in ledger_of(straight).items() if step in ledgers}
    expected = metric_curve(straight[0]["events"], "train/loss")
    assert losses and losses == pytest.approx({step: expected[step] for step in losses}, rel=1e-4)
    assert resumed[0]["metrics"] == pytest.approx(straight[0]["metrics"], abs=1e-3)


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(ROWS, id="empty parts"),
        pytest.param([[96]], id="one row group"),
        pytest.param([[40], [56], []], id="fewer row groups than ranks"),
    ],
)
def test_ranks_take_equal_steps_however_the_rows_lie(tmp_path: Path, rows: list[list[int]]) -> None:
    total = sum(map(sum, rows))
    dataset = write_tiny_dataset(tmp_path / "tiny", rows, validation_rows=2, test_rows=1)
    found = train_tiny(TinyTask(), dataset, config(), tmp_path / "run", ranks=3)
    steps = total // 32
    assert {rank["steps"] for rank in found} == {2 * steps}
    assert len({tuple(rank["rows"]) for rank in found}) == 1, "the same steps on every rank"
    for epoch in (range(1, steps + 1), range(steps + 1, 2 * steps + 1)):
        trained = [row for step in epoch for row in ledger_of(found)[step]]
        assert len(trained) == len(set(trained)) == 32 * steps
        assert set(trained) <= set(range(total))
    # one row to test on has one class: an area under the curve is not a number
    same = pytest.approx(found[0]["metrics"], rel=0, abs=0, nan_ok=True)
    assert all(rank["metrics"] == same for rank in found)


@pytest.mark.parametrize("rows", [0, [[], []], 31], ids=["no part has a row", "empty parts alone", "too few"])
def test_a_training_without_one_step_is_refused_with_the_way_out(tmp_path: Path, rows: Any) -> None:
    """`train` asks the same of the dataset on the driver, before a gang exists."""
    dataset = write_tiny_dataset(tmp_path / "tiny", rows, validation_rows=4)
    with pytest.raises(TooFewRows, match="an epoch would have no step") as refused:
        dataset.steps_per_epoch("train", 32)
    assert refused.value.exit_code == EXIT_DATA
    with pytest.raises(TooFewRows, match="an epoch would have no step"):
        train_here(TinyTask(), dataset, config(), tmp_path / "run")
