"""Ranks together: the same gradient, the same losses, the same state after a fault, whoever breaks."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparktrain.config import TrainConfig
from sparktrain.dataset import Dataset, open_dataset
from sparktrain.errors import EXIT_TRAINING, RankFailed, RankLost
from sparktrain.testing import run_ranks
from sparktrain.training import checkpoint as checkpoints
from sparktrain.training.checkpoint_state import load_weights
from sparktrain.training.evaluate import evaluate
from sparktrain.training.loop import Loop
from sparktrain.world import World
from tests.fixtures.tiny_task import (
    TINY_CONFIG,
    FaultyTask,
    TinyTask,
    last_save,
    metric_curve,
    train_tiny,
)

pytestmark = pytest.mark.ranks

Gradients = dict[str, np.ndarray]


def config(**changes: Any) -> TrainConfig:
    return TINY_CONFIG.model_copy(update=changes)


def first_gradients(dataset: Path, directory: Path) -> tuple[int, Gradients]:
    """Rows of this rank in the first step, and the gradients that it takes."""
    unclipped = config(clip_gradient_norm=None)
    world = World.from_environment()
    loop = Loop(TinyTask(), open_dataset(dataset), unclipped, world, directory, lambda event: None)
    batch = next(iter(loop.stream))
    loop.updates.make(batch, 1)
    gradients = {name: parameter.grad.numpy() for name, parameter in loop.model.named_parameters()}
    return len(batch["row_id"]), gradients


def test_the_gradient_of_uneven_ranks_is_that_of_one_process(dataset: Dataset, tmp_path: Path) -> None:
    alone = run_ranks(1, first_gradients, dataset.path, tmp_path)
    together = run_ranks(3, first_gradients, dataset.path, tmp_path)
    assert [rows for rows, _ in together] == [10, 11, 11], "the ranks were to be uneven"
    ((_, expected),) = alone
    for _, gradients in together:
        for name, gradient in gradients.items():
            assert np.abs(expected[name]).max() > 1e-4
            np.testing.assert_allclose(gradient, expected[name], rtol=0, atol=1e-6, err_msg=name)


def test_losses_are_the_same_at_any_number_of_ranks(dataset: Dataset, tmp_path: Path) -> None:
    runs = [train_tiny(TinyTask(), dataset, config(), tmp_path / str(n), ranks=n)[0] for n in (1, 2, 3)]
    expected = metric_curve(runs[0]["events"], "train/loss")
    assert list(expected) == [10, 20, 30, 40]
    for run in runs[1:]:
        assert metric_curve(run["events"], "train/loss") == pytest.approx(expected, rel=1e-5)
        assert run["metrics"] == pytest.approx(runs[0]["metrics"], abs=1e-4)


def test_only_rank_0_reports_metrics_and_all_agree_on_the_outcome(dataset: Dataset, tmp_path: Path) -> None:
    found = train_tiny(TinyTask(), dataset, config(epochs=1), tmp_path, ranks=2)
    kinds = [{event["kind"] for event in rank["events"]} for rank in found]
    assert kinds == [{"phase", "progress", "metrics", "checkpoint"}, {"phase"}]
    assert found[0]["metrics"] == found[1]["metrics"]
    assert found[0]["best"] == found[1]["best"]


@pytest.mark.parametrize("every", [None, 3], ids=["at_epoch_ends", "every_3_steps"])
def test_three_kills_in_a_row_change_not_one_bit(dataset: Dataset, tmp_path: Path, every: int | None) -> None:
    plan = config(epochs=3, checkpoint_every_steps=every)
    task = TinyTask(dropout=0.3)
    straight = train_tiny(task, dataset, plan, tmp_path / "straight", ranks=2)
    for attempt, (rank, step) in enumerate([(1, 7), (0, 25), (1, 17)], start=1):
        faulty = FaultyTask(dropout=0.3, kind="sigkill", rank=rank, step=step)
        with pytest.raises(RankLost, match=f"rank {rank} ended without an error"):
            train_tiny(faulty, dataset, plan, tmp_path / "killed", ranks=2, attempt=attempt)
    resumed = train_tiny(task, dataset, plan, tmp_path / "killed", ranks=2, attempt=4)
    assert 0 < len(resumed[0]["rows"]) < 60, "it was to start from a checkpoint"
    assert last_save(tmp_path / "killed") == last_save(tmp_path / "straight")
    assert resumed[0]["metrics"] == straight[0]["metrics"]
    losses = metric_curve(resumed[0]["events"], "train/loss")
    expected = metric_curve(straight[0]["events"], "train/loss")
    assert losses == {step: expected[step] for step in losses}


def test_another_number_of_ranks_goes_on_with_the_same_global_batches(
    dataset: Dataset, tmp_path: Path
) -> None:
    plan = config(checkpoint_every_steps=5)
    straight = train_tiny(TinyTask(), dataset, plan, tmp_path / "straight", ranks=2)
    with pytest.raises(RankFailed):
        train_tiny(FaultyTask(rank=1, step=13), dataset, plan, tmp_path / "resized", ranks=2)
    resumed = train_tiny(TinyTask(), dataset, plan, tmp_path / "resized", ranks=3, attempt=2)
    ledger = global_batches(resumed)
    assert list(ledger) == list(range(11, 41))
    assert ledger == {step: rows for step, rows in global_batches(straight).items() if step > 10}
    assert resumed[0]["metrics"] == pytest.approx(straight[0]["metrics"], abs=1e-4)


def global_batches(ranks: list[dict[str, Any]]) -> dict[int, list[int]]:
    """Rows of each step, in order, over all ranks."""
    return {step: [row for rank in ranks for row in rank["rows"][step]] for step in ranks[0]["rows"]}


def test_every_row_is_trained_on_at_most_once_an_epoch(dataset: Dataset, tmp_path: Path) -> None:
    ledger = global_batches(train_tiny(TinyTask(), dataset, config(), tmp_path, ranks=3))
    for epoch in (range(1, 21), range(21, 41)):
        rows = [row for step in epoch for row in ledger[step]]
        assert len(rows) == len(set(rows)) == 640


def test_a_loss_that_is_not_finite_on_one_rank_stops_all_before_a_checkpoint(
    dataset: Dataset, tmp_path: Path
) -> None:
    task = FaultyTask(kind="nan", rank=1, step=12)
    with pytest.raises(RankFailed, match="The loss became nan by step 15") as failed:
        train_tiny(task, dataset, config(checkpoint_every_steps=5), tmp_path, ranks=2)
    assert failed.value.step == 15
    assert failed.value.exit_code == EXIT_TRAINING
    assert last_save(tmp_path)["step"] == 10


def test_all_ranks_stop_for_the_same_reason(dataset: Dataset, tmp_path: Path) -> None:
    found = run_ranks(2, reason_to_stop, dataset.path, tmp_path)
    assert found == [("NonFiniteLoss", 10), ("NonFiniteLoss", 10)]


def reason_to_stop(dataset: Path, directory: Path) -> tuple[str, int]:
    from sparktrain.errors import StepFailed

    task = FaultyTask(kind="nan", rank=1, step=4)
    world = World.from_environment()
    loop = Loop(task, open_dataset(dataset), config(), world, directory, lambda event: None)
    try:
        loop.run(None)
    except StepFailed as error:
        return type(error.__cause__).__name__, error.step
    raise AssertionError("it did not stop")


def test_a_task_that_raises_is_named_with_rank_step_and_line(dataset: Dataset, tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(RankFailed) as failed:
        train_tiny(FaultyTask(rank=1, step=7), dataset, config(), tmp_path, ranks=2)
    assert time.monotonic() - started < 20
    assert (failed.value.rank, failed.value.step) == (1, 7)
    headline, *lines = str(failed.value).splitlines()
    assert headline.endswith("(cpu) at step 7 failed: ValueError: broken on purpose")
    assert "tiny_task.py" in lines[0]
    assert any('raise ValueError("broken on purpose")' in line for line in lines)
    assert not any("site-packages" in line or "sparktrain/training" in line for line in lines)
    assert checkpoints.newest_valid(tmp_path) is None


def test_ranks_evaluate_with_the_same_running_statistics(dataset: Dataset, tmp_path: Path) -> None:
    """Batch norm counts its own rows on each rank; what is evaluated must be what is saved."""
    task = TinyTask(dropout=-1.0)
    found = train_tiny(task, dataset, config(epochs=1), tmp_path, ranks=2)
    model = task.build_model(dataset.features)
    load_weights(checkpoints.open_checkpoint(tmp_path / found[0]["best"]), model)
    saved = evaluate(model, task, dataset, "validation", 32, 4, World()).metrics
    reported = found[0]["metrics"]
    assert {name: reported[f"validation/{name}"] for name in saved} == pytest.approx(saved, abs=1e-5)
