"""Batches from files: the same at any world size, once each, from any step on, and no thread left behind."""

import gc
import json
import multiprocessing
import pickle
import re
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterable
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from sparktrain.dataset import Dataset, Stream
from sparktrain.dataset.assemble import Assembler
from sparktrain.dataset.load import Loader, Rows
from sparktrain.dataset.prefetch import THREAD_NAME
from sparktrain.dataset.read import RowGroupReader
from sparktrain.errors import ConfigError, NameUnknown, StreamMoved, StreamStateMismatch, TooFewRows
from sparktrain.testing import write_tiny_dataset
from sparktrain.world import World

UNEQUAL = [[17, 3, 64], [], [1], [64, 64, 0, 40], [5] * 12]
WORLD_SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_tiny_dataset(
        tmp_path_factory.mktemp("data") / "tiny", UNEQUAL, validation_rows=50, test_rows=3
    )


def row_ids(batches: Iterable[dict[str, torch.Tensor]]) -> list[list[int]]:
    return [batch["row_id"].tolist() for batch in batches]


def flat(lists: Iterable[list[int]]) -> list[int]:
    return list(chain.from_iterable(lists))


def least_bytes(dataset: Dataset, global_batch_size: int, **options: Any) -> int:
    """The least memory that a stream can do with, as its refusal of less says."""
    with pytest.raises(ConfigError) as caught:
        dataset.stream("train", global_batch_size, memory_bytes=1, **options)
    found = re.search(r"need ([\d,]+) at least", str(caught.value))
    assert found
    return int(found[1].replace(",", ""))


def reader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == THREAD_NAME]


def gang_of(dataset: Dataset, size: int, **options: Any) -> list[list[dict[str, torch.Tensor]]]:
    """One epoch of every rank: [rank][step]."""
    return [list(dataset.stream("train", 32, world=World(rank, size), **options)) for rank in range(size)]


def test_a_batch_holds_every_column_and_the_weight(dataset: Dataset) -> None:
    stream = dataset.stream("train", 32)
    batch = next(iter(stream))
    dtypes = {name: values.dtype for name, values in batch.items()}
    assert dtypes == {
        "row_id": torch.int64,
        "numeric_0": torch.float32,
        "numeric_1": torch.float32,
        "category_0": torch.int32,
        "label": torch.float32,
        "row_weight": torch.float32,
    }
    assert {tuple(values.shape) for values in batch.values()} == {(32,)}
    assert stream.rows_per_step == 32


@pytest.mark.parametrize("shuffle", [True, False])
def test_the_values_of_a_row_stay_together(dataset: Dataset, shuffle: bool) -> None:
    stored = dataset.to_arrow("train")
    order = np.argsort(stored["row_id"].to_numpy())
    for batch in dataset.stream("train", 32, tail="mask", shuffle=shuffle):
        rows = order[batch["row_id"].numpy()]
        for name in stored.column_names:
            assert np.array_equal(batch[name].numpy(), stored[name].to_numpy()[rows])


@pytest.mark.parametrize("tail", ["drop", "repeat", "mask"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_global_batches_are_the_same_at_any_world_size(dataset: Dataset, tail: Any, shuffle: bool) -> None:
    alone = row_ids(gang_of(dataset, 1, tail=tail, shuffle=shuffle)[0])
    for size in WORLD_SIZES:
        ranks = gang_of(dataset, size, tail=tail, shuffle=shuffle)
        assert {len(steps) for steps in ranks} == {len(alone)}, "unequal steps hang a gang"
        together = [flat(row_ids(parts)) for parts in zip(*ranks, strict=True)]
        assert together == alone


def test_every_row_comes_once_under_mask_and_padding_repeats_rows(dataset: Dataset) -> None:
    for shuffle in (True, False):
        batches = [batch for rank in gang_of(dataset, 3, tail="mask", shuffle=shuffle) for batch in rank]
        ids = torch.cat([batch["row_id"] for batch in batches])
        weights = torch.cat([batch["row_weight"] for batch in batches])
        assert sorted(ids[weights == 1].tolist()) == list(range(dataset.num_rows("train")))
        assert set(weights.tolist()) == {0.0, 1.0}
        assert set(ids[weights == 0].tolist()) <= set(range(dataset.num_rows("train")))


def test_the_ledger_of_three_epochs_is_the_same_at_any_world_size(dataset: Dataset) -> None:
    ledgers = set()
    for size in WORLD_SIZES:
        ledger = []
        streams = [dataset.stream("train", 32, world=World(rank, size), tail="mask") for rank in range(size)]
        for _ in range(3):
            ranks = [list(stream) for stream in streams]
            assert {len(batches) for batches in ranks} == {streams[0].steps_per_epoch}
            epoch = []
            for parts in zip(*ranks, strict=True):
                ids = torch.cat([part["row_id"] for part in parts]).tolist()
                weights = torch.cat([part["row_weight"] for part in parts]).tolist()
                epoch += [row for row, weight in zip(ids, weights, strict=True) if weight]
            assert sorted(epoch) == list(range(dataset.num_rows("train")))
            ledger.append(tuple(epoch))
        assert len(set(ledger)) == 3, "every epoch has another order"
        ledgers.add(tuple(ledger))
    assert len(ledgers) == 1


def test_no_row_comes_twice_under_drop_and_each_epoch_has_another_order(dataset: Dataset) -> None:
    stream = dataset.stream("train", 32)
    epochs = [flat(row_ids(stream)) for _ in range(3)]
    for ids in epochs:
        assert len(ids) == len(set(ids)) == stream.steps_per_epoch * 32
    assert len({tuple(ids) for ids in epochs}) == 3
    assert len({frozenset(ids) for ids in epochs}) == 3, "the rows left out should differ too"


def test_the_seed_fixes_the_order(dataset: Dataset) -> None:
    first, again, other = (row_ids(dataset.stream("train", 32, seed=seed)) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("num_threads", [1, 3, 20])
@pytest.mark.parametrize("memory", ["least", "plenty"])
def test_reading_ahead_changes_no_batch(dataset: Dataset, num_threads: int, memory: str) -> None:
    memory_bytes = least_bytes(dataset, 16, num_threads=num_threads) if memory == "least" else 1 << 30
    stream = dataset.stream("train", 16, num_threads=num_threads, memory_bytes=memory_bytes)
    assert stream.memory_bytes <= memory_bytes
    assert row_ids(stream) == row_ids(dataset.stream("train", 16))


def test_a_split_smaller_than_a_batch_is_one_masked_step(dataset: Dataset) -> None:
    for size in (1, 4):
        batches = [
            batch
            for rank in range(size)
            for batch in dataset.stream("test", 64, world=World(rank, size), tail="mask")
        ]
        assert len(batches) == size
        weights = torch.cat([batch["row_weight"] for batch in batches])
        ids = torch.cat([batch["row_id"] for batch in batches])
        first = dataset.num_rows("train") + dataset.num_rows("validation")
        assert sorted(ids[weights == 1].tolist()) == [first, first + 1, first + 2]
        assert torch.cat([batch["category_0"] for batch in batches]).min() >= 2


def test_too_few_rows_are_refused_with_the_way_out(dataset: Dataset) -> None:
    said = r"`test` .* has 3 rows, global_batch_size is 64: .* to 3 or less, or use tail='mask'"
    with pytest.raises(TooFewRows, match=said):
        dataset.stream("test", 64)
    with pytest.raises(TooFewRows, match=said):
        dataset.steps_per_epoch("test", 64)


def test_a_split_without_rows_is_refused_whatever_the_tail(tmp_path: Path) -> None:
    empty = write_tiny_dataset(tmp_path / "tiny", [[], []])
    for tail in ("drop", "mask"):
        with pytest.raises(TooFewRows, match="has 0 rows"):
            empty.stream("train", 8, tail=tail)


def test_wrong_names_and_numbers_are_refused(dataset: Dataset) -> None:
    with pytest.raises(NameUnknown, match=r"no split `trian`.* Did you mean `train`"):
        dataset.stream("trian", 8)
    with pytest.raises(NameUnknown, match="no column `numeric_9`"):
        dataset.stream("train", 8, columns=["numeric_9"])
    with pytest.raises(ConfigError, match="num_lanes is 8, which must divide global_batch_size 20"):
        dataset.stream("train", 20)
    with pytest.raises(ConfigError, match="num_threads is 0"):
        dataset.stream("train", 8, num_threads=0)
    with pytest.raises(
        ConfigError, match=r"memory_bytes is 1,000; 8 lanes and 2 threads .* need [\d,]+ at least: allow"
    ):
        dataset.stream("train", 8, memory_bytes=1000)
    with pytest.raises(ConfigError, match="on_bad_data is 'Fail'; allowed are 'fail' and 'mask'"):
        dataset.stream("train", 8, on_bad_data="Fail")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="global_batch_size is 8, fewer than the 9 ranks"):
        dataset.stream("train", 8, world=World(0, 9))
    with pytest.raises(ConfigError, match=r"global_batch_size is 8\.0, num_lanes 8; give whole numbers"):
        dataset.stream("train", 8.0)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"seed is 1\.5; give a whole number"):
        dataset.stream("train", 8, seed=1.5)  # type: ignore[arg-type]
    json.dumps(dataset.stream("train", np.int64(8), seed=np.int32(3)).state_dict())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="verify is 'never'; allowed are 'first' and 'always'"):
        dataset.stream("train", 8, verify="never")  # type: ignore[arg-type]


def test_columns_can_be_chosen(dataset: Dataset) -> None:
    batch = next(iter(dataset.stream("train", 8, columns=["label", "row_id"])))
    assert list(batch) == ["label", "row_id", "row_weight"]


def through_json(stream: Stream) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(json.dumps(stream.state_dict()))
    return state


def test_a_state_counts_batches_handed_out_and_not_those_read_ahead(dataset: Dataset) -> None:
    stream = dataset.stream("train", 16)
    for number, _ in enumerate(stream, 1):
        assert (stream.state_dict()["epoch"], stream.state_dict()["step"]) == (0, number)
    assert (stream.epoch, stream.step) == (1, 0)


@pytest.mark.parametrize("tail", ["drop", "mask"])
def test_a_resume_at_any_step_goes_on_as_if_nothing_had_happened(dataset: Dataset, tail: Any) -> None:
    whole = dataset.stream("train", 32, tail=tail)
    straight = row_ids(whole) + row_ids(whole)
    for step in range(len(straight) // 2 + 1):
        first = dataset.stream("train", 32, tail=tail)
        taken = [batch for _, batch in zip(range(step), iter(first), strict=False)]
        second = dataset.stream("train", 32, tail=tail)
        second.load_state_dict(through_json(first))
        assert row_ids(taken) + row_ids(second) + row_ids(second) == straight


def test_three_resumes_at_other_world_sizes_lose_and_repeat_nothing(dataset: Dataset) -> None:
    whole = dataset.stream("train", 16, num_lanes=4)
    straight = row_ids(whole) + row_ids(whole)
    state = dataset.stream("train", 16, num_lanes=4).state_dict()
    batches: list[list[int]] = []
    for size, num_steps in ((2, 3), (3, 5), (5, 9), (1, 1000)):
        ranks = [dataset.stream("train", 16, num_lanes=4, world=World(rank, size)) for rank in range(size)]
        for rank in ranks:
            rank.load_state_dict(state)
        steps: list[list[list[int]]] = [[] for _ in range(size)]
        for taken, rank in zip(steps, ranks, strict=True):
            while len(taken) < num_steps and rank.epoch < 2:
                for batch in rank:
                    taken.append(batch["row_id"].tolist())
                    if len(taken) == num_steps:
                        break
        state = through_json(ranks[-1])
        batches += [flat(parts) for parts in zip(*steps, strict=True)]
    assert batches == straight


def test_a_state_of_other_batches_is_refused_with_every_difference(dataset: Dataset) -> None:
    state = dataset.stream("train", 32, seed=1).state_dict()
    other = dataset.stream("validation", 16, num_lanes=4, seed=2, tail="mask", shuffle=False)
    with pytest.raises(StreamStateMismatch) as caught:
        other.load_state_dict({**state, "fingerprint": "0" * 32, "step": -1})
    for said in (
        "seed: the state has 1",
        "fingerprint",
        "global_batch_size: the state has 32, the stream 16",
    ):
        assert said in str(caught.value)
    for said in ("num_lanes", "split: the state has 'train'", "tail", "shuffle", "step: the state has -1"):
        assert said in str(caught.value)
    assert (other.epoch, other.step) == (0, 0)


@pytest.mark.parametrize("changed", [{"version": 1}, {"step": 10**6}, {"step": "3"}, {"epoch": None}])
def test_a_state_that_makes_no_sense_is_refused(dataset: Dataset, changed: dict[str, Any]) -> None:
    stream = dataset.stream("train", 32)
    with pytest.raises(StreamStateMismatch, match=next(iter(changed))):
        stream.load_state_dict({**stream.state_dict(), **changed})


def test_breaking_out_leaves_no_thread_and_keeps_the_place(dataset: Dataset) -> None:
    stream = dataset.stream("train", 16)
    taken = []
    for batch in stream:
        taken.append(batch)
        if len(taken) == 2:
            break
    assert not reader_threads()
    rest = row_ids(stream)
    assert row_ids(taken) + rest == row_ids(dataset.stream("train", 16))
    assert not reader_threads()


def test_an_error_of_the_consumer_leaves_no_thread(dataset: Dataset) -> None:
    def consume() -> None:
        for _ in dataset.stream("train", 16):
            raise KeyError("consumer")

    with pytest.raises(KeyError, match="consumer"):
        consume()
    gc.collect()
    assert not reader_threads()


def test_a_forgotten_iteration_leaves_no_thread(dataset: Dataset) -> None:
    batches = iter(dataset.stream("train", 16, memory_bytes=least_bytes(dataset, 16)))
    next(batches)
    assert reader_threads()
    del batches
    gc.collect()
    assert not reader_threads()


def test_the_garbage_collector_can_close_an_iteration_in_a_reader_thread(dataset: Dataset) -> None:
    """A cycle that holds an iteration is freed wherever the collector happens to run."""
    program = (
        "import gc, sys, threading, time\n"
        "from sparktrain.dataset import open_dataset\n"
        "dataset = open_dataset(sys.argv[1])\n"
        "class Holder: pass\n"
        "for _ in range(15):\n"
        "    holder = Holder()\n"
        "    holder.batches = iter(dataset.stream('train', 64, num_lanes=64, columns=['row_id']))\n"
        "    holder.itself = holder\n"
        "    next(holder.batches)\n"
        "    gc.set_threshold(1, 1, 1)\n"
        "    del holder\n"
        "    deadline = time.monotonic() + 20\n"
        "    while threading.active_count() > 1 and time.monotonic() < deadline:\n"
        "        gc.collect(); time.sleep(0.01)\n"
        "    gc.set_threshold(700, 10, 10)\n"
        "    assert threading.active_count() == 1, threading.enumerate()\n"
        "print('done')"
    )
    command = [sys.executable, "-c", program, str(dataset.path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (0, "done\n"), ended.stderr


def test_no_thread_starts_before_the_first_batch_is_asked_for(dataset: Dataset) -> None:
    stream = dataset.stream("train", 16, memory_bytes=least_bytes(dataset, 16))
    batches = iter(stream)
    assert not reader_threads()
    next(batches)
    assert len(reader_threads()) == 2


def test_an_old_iteration_does_not_move_the_stream(dataset: Dataset) -> None:
    stream = dataset.stream("train", 16)
    old = iter(stream)
    next(old)
    state = stream.state_dict()
    stream.load_state_dict(state)
    with pytest.raises(StreamMoved):
        next(old)
    assert stream.state_dict() == state
    assert not reader_threads()


def test_an_error_of_the_reader_reaches_the_consumer_after_the_batches_before_it(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    read_table = RowGroupReader.read_table

    def fail_late(self: RowGroupReader, row_group: int) -> Any:
        reads.append(row_group)
        if len(reads) == 12:
            raise OSError("the disk is gone")
        return read_table(self, row_group)

    monkeypatch.setattr(RowGroupReader, "read_table", fail_late)
    taken = []
    little = least_bytes(dataset, 16, num_threads=1)
    with pytest.raises(OSError, match="the disk is gone"):
        for batch in dataset.stream("train", 16, num_threads=1, memory_bytes=little):
            taken.append(batch["row_id"].tolist())
    assert len(reads) == 12, "the fault did not fire"
    assert 0 < len(taken) < dataset.steps_per_epoch("train", 16)
    assert not reader_threads()
    monkeypatch.undo()
    assert taken == row_ids(dataset.stream("train", 16))[: len(taken)]


@pytest.mark.parametrize("num_threads", [1, 4])
def test_the_reader_holds_no_more_row_groups_than_lanes(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, num_threads: int
) -> None:
    living: weakref.WeakSet[Rows] = weakref.WeakSet()
    most = []
    load = Loader.load

    def count(self: Loader, row_group: int, epoch: int) -> Rows:
        rows = load(self, row_group, epoch)
        living.add(rows)
        most.append(len(living))
        return rows

    monkeypatch.setattr(Loader, "load", count)
    for _ in dataset.stream("train", 64, num_lanes=4, num_threads=num_threads):
        pass
    assert 4 <= max(most) <= 4 + num_threads - 1


def test_the_reader_waits_when_enough_batches_are_ready(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    start = Assembler.start
    monkeypatch.setattr(Assembler, "start", lambda self, n: (started.append(n), start(self, n))[1])
    batches = iter(dataset.stream("train", 8, memory_bytes=least_bytes(dataset, 8)))
    next(batches)
    deadline = time.monotonic() + 20
    while len(started) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    # of the least memory: a chunk of one step is being handed out, one is ready
    assert started == [0, 1]


def test_waiting_is_measured(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    read_table = RowGroupReader.read_table

    def slow(self: RowGroupReader, row_group: int) -> Any:
        time.sleep(0.05)
        return read_table(self, row_group)

    monkeypatch.setattr(RowGroupReader, "read_table", slow)
    stream = dataset.stream("train", 32)
    assert stream.wait_seconds == 0.0
    began = time.perf_counter()
    next(iter(stream))
    assert 0.1 < stream.wait_seconds <= time.perf_counter() - began


def _iterate(stream: Stream, answers: Any) -> None:
    answers.put(row_ids(stream))


def test_a_stream_that_was_not_yet_iterated_survives_a_fork(dataset: Dataset) -> None:
    stream = dataset.stream("train", 32)
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=_iterate, args=(stream, answers))
    child.start()
    assert answers.get() == row_ids(stream)
    child.join(30)
    assert child.exitcode == 0


def test_a_process_can_end_in_the_middle_of_an_epoch(dataset: Dataset) -> None:
    program = (
        "import sys; from sparktrain.dataset import open_dataset\n"
        "batches = iter(open_dataset(sys.argv[1]).stream('train', 8))\n"
        "print(len(next(batches)))"
    )
    command = [sys.executable, "-c", program, str(dataset.path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "6\n", "")


def test_datasets_are_opened_without_torch(dataset: Dataset) -> None:
    program = (
        "import sys; from sparktrain.dataset import open_dataset\n"
        "dataset = open_dataset(sys.argv[1]); dataset.verify(); dataset.features; dataset.to_arrow('train')\n"
        "print(dataset.steps_per_epoch('train', 8), 'torch' in sys.modules, 'pyspark' in sys.modules)"
    )
    command = [sys.executable, "-c", program, str(dataset.path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert ended.stdout.split()[1:] == ["False", "False"]


@pytest.fixture(scope="module")
def shaped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    """The same rows in both layouts."""
    home = tmp_path_factory.mktemp("shaped")
    return {
        layout: write_tiny_dataset(
            home / layout,
            UNEQUAL,
            num_numeric=3,
            num_categorical=2,
            vector_shape=(2, 3),
            vector_dtype="uint8",
            text=True,
            layout=layout,
        )
        for layout in ("columns", "blocks")
    }


@pytest.mark.parametrize("tail", ["drop", "mask"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_both_layouts_give_the_same_batches(shaped: dict[str, Dataset], tail: Any, shuffle: bool) -> None:
    for size in (1, 3):
        for rank in range(size):
            options: Any = {"tail": tail, "shuffle": shuffle}
            streams = [
                dataset.stream("train", 32, world=World(rank, size), **options) for dataset in shaped.values()
            ]
            for columns, blocks in zip(*streams, strict=True):
                assert list(columns) == list(blocks)
                for name, values in columns.items():
                    assert values.dtype == blocks[name].dtype
                    assert torch.equal(values, blocks[name])


@pytest.mark.parametrize("layout", ["columns", "blocks"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_a_column_with_a_shape_comes_in_its_shape(
    shaped: dict[str, Dataset], layout: str, shuffle: bool
) -> None:
    dataset = shaped[layout]
    stored = dataset.to_arrow("train")
    order = np.argsort(stored["row_id"].to_numpy())
    vectors = np.array(stored["vector"].to_pylist(), np.uint8).reshape(-1, 2, 3)
    seen = 0
    for batch in dataset.stream("train", 32, tail="mask", shuffle=shuffle):
        assert "text" not in batch
        rows = order[batch["row_id"].numpy()]
        assert batch["vector"].dtype == torch.uint8
        assert np.array_equal(batch["vector"].numpy(), vectors[rows])
        for name in ("numeric_2", "category_0", "category_1", "label"):
            assert np.array_equal(batch[name].numpy(), stored[name].to_numpy()[rows])
        seen += int(batch["row_weight"].sum())
    assert seen == dataset.num_rows("train")


@pytest.mark.parametrize("layout", ["columns", "blocks"])
def test_some_columns_of_a_block_can_be_chosen(shaped: dict[str, Dataset], layout: str) -> None:
    names = ["numeric_2", "vector", "row_id", "numeric_0"]
    whole = shaped["columns"].stream("train", 32)
    for some, every in zip(shaped[layout].stream("train", 32, columns=names), whole, strict=True):
        assert list(some) == [*names, "row_weight"]
        assert all(torch.equal(some[name], every[name]) for name in names)


@pytest.mark.parametrize("tail", ["drop", "repeat", "mask"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_text_comes_as_bytes_where_it_is_asked_for(
    shaped: dict[str, Dataset], tail: Any, shuffle: bool
) -> None:
    options: Any = {"columns": ["row_id", "text"], "tail": tail, "shuffle": shuffle}
    for dataset in shaped.values():
        for size in (1, 3):
            for rank in range(size):
                for batch in dataset.stream("train", 32, world=World(rank, size), **options):
                    assert list(batch) == ["row_id", "text", "text_offsets", "row_weight"]
                    offsets = batch["text_offsets"].tolist()
                    whole = bytes(batch["text"].tolist())
                    assert (batch["text"].dtype, batch["text_offsets"].dtype) == (torch.uint8, torch.int64)
                    texts = [whole[i:j].decode() for i, j in pairwise(offsets)]
                    assert texts == [f"row {row}" for row in batch["row_id"].tolist()]
                    assert offsets[-1] == len(whole)


def test_text_can_be_all_that_is_asked_for(shaped: dict[str, Dataset]) -> None:
    for dataset in shaped.values():
        stream = dataset.stream("train", 32, columns=["text"])
        batches = list(stream)
        assert len(batches) == stream.steps_per_epoch > 0
        assert all(len(batch["text_offsets"]) == 33 for batch in batches)


def test_text_can_be_padded(shaped: dict[str, Dataset]) -> None:
    for width in (5, 12):
        for dataset in shaped.values():
            for batch in dataset.stream("train", 32, pad={"text": width}):
                assert batch["text"].shape == (32, width) and "numeric_0" in batch
                for row, padded, length in zip(
                    batch["row_id"].tolist(),
                    batch["text"].tolist(),
                    batch["text_length"].tolist(),
                    strict=True,
                ):
                    text = f"row {row}".encode()[:width]
                    assert (bytes(padded[:length]), length) == (text, len(text))
                    assert not any(padded[length:])


def test_text_is_left_out_unless_asked_for_and_padded_in_words(shaped: dict[str, Dataset]) -> None:
    dataset = shaped["columns"]
    assert not any(name.startswith("text") for name in next(iter(dataset.stream("train", 32))))
    for pad, said in (
        ({"text": 0}, "text=0; give 1 byte"),
        ({"label": 4}, "label, which is no column of text"),
    ):
        with pytest.raises(ConfigError, match=said):
            dataset.stream("train", 32, pad=pad)


def test_batches_do_not_change_after_they_were_handed_out(shaped: dict[str, Dataset]) -> None:
    for dataset in shaped.values():
        for shuffle in (True, False):
            stream = dataset.stream("train", 32, shuffle=shuffle)
            kept = [(batch, {name: values.clone() for name, values in batch.items()}) for batch in stream]
            assert all(torch.equal(batch[name], copy[name]) for batch, copy in kept for name in copy)


@pytest.mark.parametrize("options", [{}, {"tail": "mask"}, {"tail": "repeat"}, {"shuffle": False}])
@pytest.mark.parametrize("where", [None, [("row_id", "<", 200)]])
def test_explain_names_the_rows_of_a_batch(dataset: Dataset, options: Any, where: Any) -> None:
    ids = iter(dataset.to_arrow("train")["row_id"].to_pylist())
    stored = {
        (part.path, group, row): next(ids)
        for part in dataset.manifest.splits["train"].parts
        for group, count in enumerate(part.row_groups)
        for row in range(count)
    }
    stream = dataset.stream("train", 32, where=where, **options)
    for epoch in range(2):
        for step, batch in enumerate(stream):
            told = stream.explain(step, epoch).to_pylist()
            assert [stored[t["part"], t["row_group"], t["row"]] for t in told] == batch["row_id"].tolist()
            assert [not t["is_padding"] for t in told] == (batch["row_weight"] > 0).tolist()


def test_explain_tells_the_rank_that_gets_a_row(dataset: Dataset) -> None:
    ranks = [dataset.stream("train", 32, world=World(rank, 3)) for rank in range(3)]
    told = ranks[1].explain(4)["rank"].to_pylist()
    assert told == sorted(told)
    assert [told.count(rank) for rank in range(3)] == [stream.rows_per_step for stream in ranks]
    with pytest.raises(ConfigError, match="step 99 of epoch 0; an epoch has the steps 0 to 8"):
        ranks[0].explain(99)


def test_kept_batches_stay_out_of_the_memory_that_is_used_again(dataset: Dataset) -> None:
    stream = dataset.stream("train", 16, memory_bytes=least_bytes(dataset, 16))
    pointers: set[int] = set()
    kept = []
    for number, batch in enumerate(stream):
        pointers.add(batch["row_id"].data_ptr())
        if number % 9 == 0:
            kept.append((batch["row_id"], batch["row_id"].clone()))
    assert all(torch.equal(values, copy) for values, copy in kept)
    assert len(pointers) < stream.steps_per_epoch, "no memory was used again"


def test_headroom_is_the_share_of_the_time_that_nobody_waits(dataset: Dataset) -> None:
    stream = dataset.stream("train", 32)
    assert stream.headroom == 1.0
    for _ in stream:
        time.sleep(0.01)
    assert stream.num_batches == stream.steps_per_epoch
    assert stream.compute_seconds >= 0.01 * stream.num_batches
    together = stream.compute_seconds + stream.wait_seconds
    assert stream.headroom == pytest.approx(stream.compute_seconds / together)
    assert 0.3 < stream.headroom < 1.0


def test_a_data_loader_takes_the_stream_as_it_is(dataset: Dataset) -> None:
    stream = dataset.stream("train", 32)
    loader: DataLoader[Any] = DataLoader(stream, batch_size=None)
    assert len(loader) == stream.steps_per_epoch
    plain = dataset.stream("train", 32)
    for _ in range(2):
        assert row_ids(loader) == row_ids(plain)
    assert stream.state_dict() == plain.state_dict()


def test_a_stateful_data_loader_saves_and_restores_the_place(dataset: Dataset) -> None:
    straight = row_ids(dataset.stream("train", 32))
    first: StatefulDataLoader[Any] = StatefulDataLoader(dataset.stream("train", 32), batch_size=None)
    taken = [batch["row_id"].tolist() for _, batch in zip(range(4), first, strict=False)]
    state = first.state_dict()
    second: StatefulDataLoader[Any] = StatefulDataLoader(dataset.stream("train", 32), batch_size=None)
    second.load_state_dict(state)
    assert taken + row_ids(second) == straight


def test_worker_processes_are_refused_in_words(dataset: Dataset) -> None:
    loader: DataLoader[Any] = DataLoader(dataset.stream("train", 32), batch_size=None, num_workers=1)
    with pytest.raises(RuntimeError, match=r"num_workers above 0.* own, and .*give num_workers=0"):
        next(iter(loader))


def test_a_stream_and_its_dataset_can_be_sent_to_another_process(dataset: Dataset) -> None:
    stream = dataset.stream("train", 32)
    list(stream)
    copied = pickle.loads(pickle.dumps(stream))
    assert row_ids(copied) == row_ids(stream)
