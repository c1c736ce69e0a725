"""Datasets in an object store, by a server on loopback that speaks S3 and can be told to fail."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import pickle
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from sparktrain.dataset import Dataset, open_dataset
from sparktrain.dataset.check import check_dataset
from sparktrain.dataset.layout import stored_columns
from sparktrain.dataset.manifest import FEATURES_FILE, MANIFEST_FILE
from sparktrain.dataset.read import WRITE_CHECKSUMS, RowGroupReader
from sparktrain.dataset.statistics import STATISTICS_FILE, Statistics
from sparktrain.errors import EXIT_INFRASTRUCTURE, DatasetInvalid, NotLocal, StoreFailed
from sparktrain.object_store import MAX_TRIES
from sparktrain.preparation import append
from sparktrain.testing import write_tiny_dataset
from tests.fixtures.object_store import ENVIRONMENT, SECRET, Fault, ObjectStore, object_store
from tests.fixtures.read_remote import read_rows

checksums = pytest.mark.skipif(not WRITE_CHECKSUMS, reason="this pyarrow has no page checksums")

NUM_PARTS, ROW_GROUPS = 3, 7  # of each part
ONE_PART = "part-00001"
STATISTICS = Statistics(columns=(), codes={}, targets=())


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    with pytest.MonkeyPatch.context() as patch, object_store() as server:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture
def store(server: ObjectStore) -> Iterator[ObjectStore]:
    server.forget()
    yield server
    server.forget()


@pytest.fixture(scope="module", params=["columns", "blocks"])
def any_layout(
    server: ObjectStore, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> tuple[Dataset, str]:
    return uploaded(server, tmp_path_factory.mktemp("data") / "tiny", request.param)


@pytest.fixture(scope="module")
def both(server: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, str]:
    """A dataset on disk, and the URI of its copy in the store."""
    return uploaded(server, tmp_path_factory.mktemp("data") / "tiny", "columns")


def uploaded(server: ObjectStore, directory: Path, layout: Any) -> tuple[Dataset, str]:
    dataset = write_tiny_dataset(
        directory,
        4000,
        validation_rows=50,
        num_parts=NUM_PARTS,
        rows_per_row_group=200,
        vector_shape=(64,),
        text=True,
        layout=layout,
    )
    (directory / STATISTICS_FILE).write_text(STATISTICS.model_dump_json())
    return dataset, server.upload(directory, f"data/{layout}-{directory.parent.name}")


def batches(dataset: Dataset) -> list[dict[str, torch.Tensor]]:
    return list(dataset.stream("train", 64, num_lanes=8, seed=3))


def assert_equal_batches(dataset: Dataset, expected: Dataset) -> None:
    found, wanted = batches(dataset), batches(expected)
    assert len(found) == len(wanted) > 50
    for one, other in zip(found, wanted, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def first_row_group(dataset: Dataset) -> pa.Table:
    stored = stored_columns(dataset.manifest.columns, dataset.manifest.layout)
    return RowGroupReader(dataset.path, dataset.manifest, "train", stored).read_table(ROW_GROUPS)


def part_bytes(dataset: Dataset, number: int = 1) -> int:
    return dataset.manifest.splits["train"].parts[number].size_bytes


# What is read


def test_batches_are_the_same_from_disk_from_the_store_and_from_the_cache(
    any_layout: tuple[Dataset, str], tmp_path: Path
) -> None:
    dataset, uri = any_layout
    assert_equal_batches(open_dataset(uri), dataset)
    for _ in ("cold", "warm"):
        assert_equal_batches(open_dataset(uri, cache=tmp_path / "cache"), dataset)
    assert open_dataset(uri).to_arrow("train") == dataset.to_arrow("train")
    assert open_dataset(uri, cache=tmp_path / "cache").to_arrow("train") == dataset.to_arrow("train")


def test_everything_beside_the_parts_is_read_too(both: tuple[Dataset, str], store: ObjectStore) -> None:
    dataset, uri = both
    remote = open_dataset(uri)
    assert remote.manifest == dataset.manifest and remote.features == dataset.features
    assert remote.examples() == dataset.examples()
    assert Statistics.load(remote.path) == STATISTICS
    remote.verify()
    assert check_dataset(uri, 64, 8).fingerprint == dataset.fingerprint
    name = uri.partition("?")[0].rpartition("/")[2]
    with store.filesystem().open_output_stream("bucket/data/latest.json") as file:
        file.write(json.dumps({"path": name}).encode())
    assert open_dataset(store.uri("data")).fingerprint == dataset.fingerprint


def test_a_local_dataset_knows_nothing_of_stores(both: tuple[Dataset, str], tmp_path: Path) -> None:
    directory = both[0].path
    for address in (str(directory), f"file://{directory}"):
        dataset = open_dataset(address, cache=tmp_path / "cache")
        assert dataset.path == directory and isinstance(dataset.path, Path)
        assert batches(dataset)
    assert not (tmp_path / "cache").exists()


def test_what_is_not_there_is_named(both: tuple[Dataset, str], store: ObjectStore) -> None:
    with pytest.raises(DatasetInvalid, match=r"s3://bucket/nowhere\?.*there is no such directory"):
        open_dataset(store.uri("nowhere"))
    with pytest.raises(DatasetInvalid, match="was never committed"):
        open_dataset(store.uri(both[1].partition("bucket/")[2].partition("?")[0] + "/train"))


def test_what_needs_a_directory_refuses_a_remote_dataset(both: tuple[Dataset, str]) -> None:
    remote = open_dataset(both[1])
    with pytest.raises(NotLocal, match=r"to_spark needs a directory.*copy_files"):
        remote.to_spark(None, "train")  # type: ignore[arg-type]
    with pytest.raises(NotLocal, match=r"append needs a directory"):
        append(remote, None)  # type: ignore[arg-type]
    with pytest.raises(NotLocal, match=r"Parquet files without a manifest needs a directory"):
        check_dataset(f"{both[1].partition('?')[0]}/train?{both[1].partition('?')[2]}", 64, 8)


# What it costs


def test_one_row_group_costs_its_own_bytes_and_the_footer(
    both: tuple[Dataset, str], store: ObjectStore
) -> None:
    dataset, uri = both
    remote = open_dataset(uri)
    store.forget()
    assert len(first_row_group(remote)) == 200
    assert len(store.heads) == 1 and store.num_gets() == 2
    footer, pages = store.gets
    assert footer.num_bytes <= 65_536 and footer.first + footer.num_bytes == part_bytes(dataset)
    assert pages.first == 4 and pages.num_bytes < part_bytes(dataset) / (ROW_GROUPS - 1)


def test_a_footer_is_read_once_and_a_row_group_is_one_get(
    both: tuple[Dataset, str], store: ObjectStore
) -> None:
    dataset, uri = both
    remote = open_dataset(uri)
    store.forget()
    assert remote.to_arrow("train") == dataset.to_arrow("train")
    assert len(store.heads) == NUM_PARTS
    assert store.num_gets() == NUM_PARTS * (1 + ROW_GROUPS)
    total = sum(part.size_bytes for part in dataset.manifest.splits["train"].parts)
    assert store.bytes_of() <= total + NUM_PARTS * 65_536


def test_epochs_share_the_footers(both: tuple[Dataset, str], store: ObjectStore) -> None:
    dataset, uri = both
    remote = open_dataset(uri)
    store.forget()
    stream = remote.stream("train", 64, num_lanes=8, num_threads=1)
    for _ in range(2):
        assert len(list(stream)) > 50
    sizes = [part_bytes(dataset, number) for number in range(NUM_PARTS)]
    assert sum(get.first + get.num_bytes in sizes for get in store.gets) == NUM_PARTS


def test_a_column_costs_less_than_all_of_them(both: tuple[Dataset, str], store: ObjectStore) -> None:
    remote = open_dataset(both[1])
    store.forget()
    remote.to_arrow("train", ["row_id"])
    pages = sum(get.num_bytes for get in store.gets if get.num_bytes != 65_536)
    assert pages < 0.1 * sum(part.size_bytes for part in remote.manifest.splits["train"].parts)


# What goes wrong


@pytest.mark.parametrize(
    ("fault", "options"),
    [
        (Fault("status", ONE_PART, 1, status=500), ""),
        (Fault("status", ONE_PART, 1, status=503), ""),
        (Fault("status", ONE_PART, 1, status=429), ""),
        (Fault("reset", ONE_PART, 1), ""),
        (Fault("truncate", ONE_PART, 1), ""),
        (Fault("truncate", ONE_PART, 2, before=100_000), ""),
        (Fault("slow", ONE_PART, 1, seconds=5), "&request_timeout=1"),
        (Fault("silent", ONE_PART, 1), "&request_timeout=1"),
        (Fault("stall", ONE_PART, 1), "&request_timeout=1"),
        (Fault("status", MANIFEST_FILE, 1), ""),
        (Fault("status", FEATURES_FILE, 1), ""),
    ],
    ids=lambda value: f"{value.kind}-{value.status}" if isinstance(value, Fault) else "",
)
@pytest.mark.timeout(60)
def test_a_passing_fault_is_tried_again(
    both: tuple[Dataset, str], store: ObjectStore, fault: Fault, options: str
) -> None:
    dataset, uri = both
    store.faults.append(fault)
    remote = open_dataset(uri + options)
    assert remote.features == dataset.features
    assert_equal_batches(remote, dataset)
    assert fault.fired == fault.times


def test_a_fault_that_stays_names_the_row_group_the_tries_and_what_the_store_said(
    both: tuple[Dataset, str], store: ObjectStore
) -> None:
    fault = Fault("status", ONE_PART, before=4 + 1)  # its first row group
    store.faults.append(fault)
    remote = open_dataset(both[1])
    with pytest.raises(StoreFailed) as caught:
        list(remote.stream("train", 64, num_threads=1))  # several would each try
    assert fault.fired == MAX_TRIES == caught.value.tries
    assert caught.value.exit_code == EXIT_INFRASTRUCTURE
    for said in (
        "row group 0 of s3://bucket/data/",
        ONE_PART,
        "AWS Error",
        f"tried {MAX_TRIES} times",
    ):
        assert said in str(caught.value)


@pytest.mark.timeout(90)
def test_a_store_that_never_answers_is_given_up(both: tuple[Dataset, str], store: ObjectStore) -> None:
    remote = open_dataset(both[1] + "&request_timeout=1")
    fault = Fault("silent", ONE_PART)
    store.faults.append(fault)
    began = time.monotonic()
    with pytest.raises(StoreFailed, match=r"(Operation too slow|Timeout was reached).*tried 5 times"):
        first_row_group(remote)
    assert fault.fired == MAX_TRIES
    assert MAX_TRIES <= time.monotonic() - began < 60


@pytest.mark.parametrize("status", [403, 404])
def test_a_fault_that_does_not_pass_is_not_tried_again(
    both: tuple[Dataset, str], store: ObjectStore, status: int
) -> None:
    fault = Fault("status", ONE_PART, status=status)
    store.faults.append(fault)
    with pytest.raises(StoreFailed, match=r"tried once: this does not pass.*AWS_ACCESS_KEY_ID") as caught:
        first_row_group(open_dataset(both[1]))
    assert fault.fired == 1
    assert SECRET not in str(caught.value)


def test_what_a_store_refuses_is_no_bad_data_to_be_masked(
    both: tuple[Dataset, str], store: ObjectStore
) -> None:
    fault = Fault("status", ONE_PART, status=403)
    store.faults.append(fault)
    with pytest.raises(StoreFailed):
        list(open_dataset(both[1]).stream("train", 64, on_bad_data="mask"))
    assert fault.fired >= 1


def test_credentials_in_the_uri_are_used_and_shown_nowhere(
    both: tuple[Dataset, str], store: ObjectStore, caplog: pytest.LogCaptureFixture
) -> None:
    uri = both[1].replace("s3://", f"s3://AKIAEXAMPLE:{SECRET}-2@")
    remote = open_dataset(uri)
    assert remote.to_arrow("train") == both[0].to_arrow("train")
    store.faults.append(Fault("status", ONE_PART, status=403))
    with caplog.at_level(logging.DEBUG), pytest.raises(StoreFailed) as caught:
        first_row_group(remote)
    for text in (str(caught.value), repr(caught.value), repr(remote), caplog.text):
        assert SECRET not in text and "AKIAEXAMPLE" not in text


def test_a_manifest_that_the_store_does_not_give_is_no_bad_dataset(
    both: tuple[Dataset, str], store: ObjectStore
) -> None:
    fault = Fault("status", MANIFEST_FILE, status=403)
    store.faults.append(fault)
    with pytest.raises(StoreFailed, match=r"manifest\.json.*ACCESS_DENIED"):
        open_dataset(both[1])
    assert fault.fired == 1


@pytest.fixture
def own(store: ObjectStore, tmp_path: Path) -> tuple[Dataset, str]:
    """One to damage."""
    return uploaded(store, tmp_path / "tiny", "columns")


def test_a_part_of_another_size_or_none_is_named(own: tuple[Dataset, str], store: ObjectStore) -> None:
    dataset, uri = own
    remote, files = open_dataset(uri), store.filesystem()
    first, second, _ = dataset.manifest.splits["train"].parts
    home = "bucket/" + uri.partition("bucket/")[2].partition("?")[0]
    with files.open_output_stream(f"{home}/{first.path}") as file:
        file.write(b"PAR1")
    files.delete_file(f"{home}/{second.path}")
    with pytest.raises(DatasetInvalid) as caught:
        remote.verify()
    assert f"{first.path} has 4 bytes, the manifest says" in str(caught.value)
    assert f"{second.path} is missing" in str(caught.value)
    with pytest.raises(DatasetInvalid, match=f"{first.path} has 4 bytes"):
        list(remote.stream("train", 64))


@checksums
@pytest.mark.parametrize("cached", [False, True])
def test_a_flipped_bit_is_never_read_as_data(
    both: tuple[Dataset, str], store: ObjectStore, cached: bool, tmp_path: Path
) -> None:
    remote = open_dataset(both[1], cache=tmp_path / "cache" if cached else None)
    fault = Fault("flip", ONE_PART, before=100_000)
    store.faults.append(fault)
    with pytest.raises(DatasetInvalid, match=rf"{ONE_PART}.*row group \d can't be read .*checksum"):
        remote.to_arrow("train")
    assert fault.fired >= 1


# Forks and pickles


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.timeout(60)
def test_a_path_is_read_in_other_processes(both: tuple[Dataset, str], method: str) -> None:
    remote = open_dataset(both[1])
    rows = remote.to_arrow("train")["row_id"].to_pylist()  # connected, before the fork
    assert pickle.loads(pickle.dumps(remote)) == remote
    arguments = (remote.path, None, rows)
    process = multiprocessing.get_context(method).Process(target=read_rows, args=arguments)
    process.start()
    process.join(40)
    assert process.exitcode == 0


# The cache


def kept(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.whole"))


def test_a_cold_cache_is_filled_and_a_warm_one_asks_nothing(
    both: tuple[Dataset, str], store: ObjectStore, tmp_path: Path
) -> None:
    dataset, uri = both
    remote = open_dataset(uri, cache=tmp_path / "cache")
    remote.verify()
    assert not kept(tmp_path / "cache")  # footers are no reason to fetch it all
    store.forget()
    remote.to_arrow("train")
    total = sum(part.size_bytes for part in dataset.manifest.splits["train"].parts)
    assert (store.num_gets(), store.bytes_of()) == (NUM_PARTS, total)
    assert sum(path.stat().st_size for path in kept(tmp_path / "cache")) == total
    store.forget()
    assert remote.to_arrow("train") == dataset.to_arrow("train")
    assert_equal_batches(remote, dataset)
    assert store.num_gets() == len(store.heads) == 0


def test_a_small_cache_stays_under_its_cap(
    both: tuple[Dataset, str], store: ObjectStore, tmp_path: Path
) -> None:
    dataset, uri = both
    cap = int(2.5 * max(part_bytes(dataset, number) for number in range(NUM_PARTS)))
    remote = open_dataset(uri, cache=tmp_path / "cache", cache_bytes=cap)
    for _ in range(2):
        assert_equal_batches(remote, dataset)  # the third part is open as well, and has no room
        assert len(kept(tmp_path / "cache")) == 2
    with_room = open_dataset(uri, cache=tmp_path / "none", cache_bytes=part_bytes(dataset) // 2)
    assert_equal_batches(with_room, dataset)
    assert not kept(tmp_path / "none")


@checksums
def test_a_damaged_copy_is_replaced(both: tuple[Dataset, str], store: ObjectStore, tmp_path: Path) -> None:
    dataset, uri = both
    remote = open_dataset(uri, cache=tmp_path / "cache")
    remote.to_arrow("train")
    sound = {path: path.read_bytes() for path in kept(tmp_path / "cache")}
    page, footer, length = sound
    page.write_bytes(sound[page][:5000] + bytes([sound[page][5000] ^ 1]) + sound[page][5001:])
    footer.write_bytes(sound[footer][:-4] + b"NOPE")
    length.write_bytes(sound[length][:-1])
    store.forget()
    remote = open_dataset(uri, cache=tmp_path / "cache")  # one that has verified nothing yet
    assert_equal_batches(remote, dataset)
    assert store.num_gets() > 0
    assert remote.to_arrow("train") == dataset.to_arrow("train")
    assert {path: path.read_bytes() for path in kept(tmp_path / "cache")} == sound
    store.forget()
    assert remote.to_arrow("train") == dataset.to_arrow("train")
    assert store.num_gets() == 0


@pytest.mark.parametrize("kind", ["flip", "short"])
def test_a_copy_that_was_damaged_on_its_way_is_not_kept(
    both: tuple[Dataset, str],
    store: ObjectStore,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    kind: Any,
) -> None:
    dataset, uri = both
    fault = Fault(kind, ONE_PART, 1)
    store.faults.append(fault)
    remote = open_dataset(uri, cache=tmp_path / "cache")
    assert remote.to_arrow("train") == dataset.to_arrow("train")
    assert fault.fired == 1
    assert len(kept(tmp_path / "cache")) == NUM_PARTS - 1
    assert f"train/{ONE_PART}" in caplog.text and "is passed by" in caplog.text
    assert remote.to_arrow("train") == dataset.to_arrow("train")
    assert len(kept(tmp_path / "cache")) == NUM_PARTS


@pytest.mark.timeout(90)
def test_processes_that_race_fetch_each_part_once(
    both: tuple[Dataset, str], store: ObjectStore, tmp_path: Path
) -> None:
    context = multiprocessing.get_context("spawn")
    arguments = (both[1], tmp_path / "cache", list(range(4000)))
    store.faults.append(Fault("slow", "part-0000", NUM_PARTS, seconds=0.5))
    processes = [context.Process(target=read_rows, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 3
    assert store.num_gets("part-0000") == NUM_PARTS


@pytest.mark.timeout(60)
def test_what_a_killed_process_left_is_no_hindrance(
    both: tuple[Dataset, str], store: ObjectStore, tmp_path: Path
) -> None:
    dataset, uri = both
    store.faults.append(Fault("stall", ONE_PART, 1))
    arguments = (uri, tmp_path / "cache", list(range(4000)))
    process = multiprocessing.get_context("spawn").Process(target=read_rows, args=arguments)
    process.start()
    while not store.num_gets(ONE_PART):
        time.sleep(0.01)
    process.kill()
    process.join(10)
    assert len(list((tmp_path / "cache").glob("*.partial"))) == 1
    assert open_dataset(uri, cache=tmp_path / "cache").to_arrow("train") == dataset.to_arrow("train")
    assert len(kept(tmp_path / "cache")) == NUM_PARTS
    assert not list((tmp_path / "cache").glob("*.partial"))


def limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # as a disk that has no more room


@pytest.mark.timeout(60)
def test_a_full_disk_is_passed_by_with_a_warning(
    both: tuple[Dataset, str], store: ObjectStore, tmp_path: Path
) -> None:
    dataset, uri = both
    program = (
        "import sys; from pathlib import Path; from sparktrain.dataset import open_dataset\n"
        "table = open_dataset(sys.argv[1], cache=sys.argv[2]).to_arrow('train')\n"
        "assert table == open_dataset(sys.argv[3]).to_arrow('train')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, uri, str(tmp_path / "cache"), str(dataset.path)],
        preexec_fn=limit_file_size,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    assert "is passed by, and files are read from their store: [Errno 27]" in done.stderr
    assert done.stderr.count("is passed by") == 1
    assert not kept(tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.partial"))
    assert len(store.gets) > NUM_PARTS  # row by row, from the store
