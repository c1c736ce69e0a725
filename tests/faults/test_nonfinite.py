"""R31: NaN or infinite loss or gradient on one rank: all ranks act alike, and no such state is ever saved."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from sparktrain.config import TrainConfig
from sparktrain.dataset import Dataset, open_dataset
from sparktrain.errors import EXIT_TRAINING, NonFiniteLoss, RankFailed, StepFailed
from sparktrain.testing import run_ranks, write_tiny_dataset
from sparktrain.training.checkpoint import committed, newest_valid
from sparktrain.training.checkpoint_state import load_weights
from sparktrain.training.finite import MAX_SKIPPED_IN_A_ROW
from sparktrain.training.loop import Loop
from sparktrain.training.task import Batch
from sparktrain.world import World
from tests.fixtures.tiny_task import TINY_CONFIG, FaultyTask, TinyTask, train_tiny

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(120)]

KINDS = ("nan", "infinite_loss", "infinite_gradient")
FAULTY_STEP = 7


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """20 steps of 32 rows an epoch."""
    return write_tiny_dataset(tmp_path_factory.mktemp("datasets") / "tiny", 640, validation_rows=64)


def config(**changes: Any) -> TrainConfig:
    return TINY_CONFIG.model_copy(update={"ranks": 2, "epochs": 1, **changes})


def digest(loop: Loop) -> str:
    """SHA-256 of the weights, the buffers and the optimizer's state."""
    state = [*loop.model.state_dict().values()]
    state += [
        value for slots in loop.updates.optimizers["optimizer"].state.values() for value in slots.values()
    ]
    return hashlib.sha256(b"".join(torch.as_tensor(t).numpy().tobytes() for t in state)).hexdigest()


def watched_rank(task: TinyTask, dataset: Path, train: TrainConfig, directory: Path) -> dict[str, Any]:
    """Train one rank; what its own losses and its state were around each step."""
    world = World.from_environment()
    events: list[dict[str, Any]] = []
    loop = Loop(task, open_dataset(dataset), train, world, directory, lambda event: events.append({**event}))
    digests, finite = [digest(loop)], []
    guard = loop.updates.guard
    backward, make = guard.backward, loop.updates.make

    def watched_backward(mean: torch.Tensor) -> None:
        finite.append(bool(mean.isfinite()))
        backward(mean)

    def watched_make(batch: Batch, number: int) -> None:
        make(batch, number)
        digests.append(digest(loop))

    guard.backward, loop.updates.make = watched_backward, watched_make  # type: ignore[method-assign]
    stopped = None
    try:
        loop.run(None)
    except StepFailed as error:
        stopped = (type(error.__cause__).__name__, error.step)
    return {"digests": digests, "finite": finite, "events": events, "stopped": stopped}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dropout", [0.1, -1.0], ids=["dropout", "batch norm"])
def test_skip_leaves_the_step_out_on_all_ranks_bit_for_bit(
    dataset: Dataset, tmp_path: Path, kind: str, dropout: float
) -> None:
    task = FaultyTask(kind=kind, rank=1, step=FAULTY_STEP, dropout=dropout)
    found = run_ranks(2, watched_rank, task, dataset.path, config(on_nonfinite="skip"), tmp_path)
    if kind != "infinite_gradient":  # whose loss is finite
        assert [n for n, finite in enumerate(found[1]["finite"], 1) if not finite] == [FAULTY_STEP], "fired"
    for rank in found:
        before, after = rank["digests"][:-1], rank["digests"][1:]
        assert [n for n, pair in enumerate(zip(before, after, strict=True), 1) if len(set(pair)) == 1] == [
            FAULTY_STEP
        ]
        assert rank["stopped"] is None
    if dropout >= 0:  # each rank has running statistics of its own
        assert found[0]["digests"] == found[1]["digests"]
    counted = {
        e["step"]: e["values"]["train/steps_skipped"]
        for e in found[0]["events"]
        if e["kind"] == "metrics" and "train/steps_skipped" in e["values"]
    }
    assert counted == {10: 1.0}
    values = [v for e in found[0]["events"] if e["kind"] == "metrics" for v in e["values"].values()]
    assert all(map(math.isfinite, values)), "a skipped step spoils no mean"


@pytest.mark.parametrize("kind", KINDS)
def test_stop_stops_all_ranks_at_the_next_log_and_before_any_save(
    dataset: Dataset, tmp_path: Path, kind: str
) -> None:
    """Up to ten steps late, since looking at each step would make the processor wait for a GPU."""
    task = FaultyTask(kind=kind, rank=1, step=FAULTY_STEP)
    train = config(checkpoint_every_steps=5)
    found = run_ranks(2, watched_rank, task, dataset.path, train, tmp_path)
    assert [rank["stopped"] for rank in found] == [("NonFiniteLoss", 10)] * 2
    saved = newest_valid(tmp_path)
    assert saved is not None and saved.step == 5, "the one before the fault, although step 10 was due"
    assert [path.name for path in committed(tmp_path)] == ["step-000000005-attempt-001"]


def poisoned_rank(dataset: Path, train: TrainConfig, directory: Path) -> tuple[str, int]:
    world = World.from_environment()
    loop = Loop(TinyTask(), open_dataset(dataset), train, world, directory, lambda event: None)
    make = loop.updates.make

    def poisoned(batch: Batch, number: int) -> None:
        if loop.step + 1 == FAULTY_STEP and world.rank == 1:
            batch["row_weight"].fill_(math.nan)
        make(batch, number)

    loop.updates.make = poisoned  # type: ignore[method-assign]
    try:
        loop.run(None)
    except StepFailed as error:
        return type(error.__cause__).__name__, error.step
    return "finished", loop.step


@pytest.mark.parametrize(
    ("on_nonfinite", "end"), [("stop", ("NonFiniteLoss", 10)), ("skip", ("finished", 20))]
)
def test_weights_of_rows_that_are_not_finite_are_a_loss_that_is_not(
    dataset: Dataset, tmp_path: Path, on_nonfinite: str, end: tuple[str, int]
) -> None:
    train = config(on_nonfinite=on_nonfinite)
    assert run_ranks(2, poisoned_rank, dataset.path, train, tmp_path) == [end] * 2


def test_the_message_says_what_to_do(dataset: Dataset, tmp_path: Path) -> None:
    task = FaultyTask(kind="nan", rank=1, step=FAULTY_STEP)
    with pytest.raises(RankFailed, match=r"train\.on_nonfinite=skip") as failed:
        train_tiny(task, dataset, config(), tmp_path, ranks=2)
    assert failed.value.exit_code == EXIT_TRAINING


def test_a_run_that_can_only_skip_stops(dataset: Dataset, tmp_path: Path) -> None:
    class AlwaysInfinite(TinyTask):
        def loss(self, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return super().loss(outputs, target) * float("inf")

    found = run_ranks(2, watched_rank, AlwaysInfinite(), dataset.path, config(on_nonfinite="skip"), tmp_path)
    assert [rank["stopped"] for rank in found] == [("NonFiniteLoss", MAX_SKIPPED_IN_A_ROW)] * 2
    assert not list(committed(tmp_path))


def overflowing_rank(dataset: Path, train: TrainConfig, directory: Path) -> tuple[str, int, bool]:
    """Train with a weight (of rank 1 alone) that overflows at the last update before a save."""
    world = World.from_environment()
    loop = Loop(TinyTask(), open_dataset(dataset), train, world, directory, lambda event: None)
    make = loop.updates.make

    def overflowing(batch: Batch, number: int) -> None:
        make(batch, number)
        if loop.step + 1 == 10 and world.rank == 1:
            with torch.no_grad():
                next(loop.model.parameters()).view(-1)[0] = math.inf

    loop.updates.make = overflowing  # type: ignore[method-assign]
    try:
        loop.run(None)
    except StepFailed as error:
        fired = not all(bool(p.isfinite().all()) for p in loop.model.parameters())
        return type(error.__cause__).__name__, error.step, fired
    raise AssertionError("it did not stop")


@pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
def test_a_state_that_is_not_finite_is_never_saved(
    dataset: Dataset, tmp_path: Path, on_nonfinite: str
) -> None:
    """No loss shows it yet: the weight overflowed in the very step after which a checkpoint is due."""
    train = config(checkpoint_every_steps=5, on_nonfinite=on_nonfinite)
    found = run_ranks(2, overflowing_rank, dataset.path, train, tmp_path)
    assert found == [("NonFiniteLoss", 10, False), ("NonFiniteLoss", 10, True)]
    saved = newest_valid(tmp_path)
    assert saved is not None and saved.step == 5
    model = TinyTask().build_model(dataset.features)
    load_weights(saved, model)
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_skipping_needs_no_other_rank(dataset: Dataset, tmp_path: Path) -> None:
    task = FaultyTask(kind="nan", rank=0, step=FAULTY_STEP)
    found = watched_rank(task, dataset.path, config(ranks=1, on_nonfinite="skip"), tmp_path)
    assert found["finite"].count(False) == 1 and found["stopped"] is None
    assert found["digests"][FAULTY_STEP - 1] == found["digests"][FAULTY_STEP]


def test_the_error_names_what_it_was() -> None:
    assert "norm of the gradients became inf by step 3" in str(
        NonFiniteLoss(3, math.inf, "norm of the gradients")
    )
