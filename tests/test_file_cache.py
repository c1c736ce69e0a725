"""FileCache: files under a cap, never a part of one, never one taken from under its reader."""

import fcntl
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

import pytest

from sparktrain.file_cache import CachedFile, FileCache, NotFetched

BYTES = 1000


@pytest.fixture
def cache(tmp_path: Path) -> FileCache:
    return FileCache(tmp_path / "cache", 3 * BYTES)


def writes(content: bytes, fetched: list[str] | None = None, name: str = "") -> Callable[[BinaryIO], None]:
    def fetch(target: BinaryIO) -> None:
        if fetched is not None:
            fetched.append(name)
        target.write(content)

    return fetch


def refuses(target: BinaryIO) -> None:
    raise AssertionError("it is there already")


def keep(cache: FileCache, key: str) -> CachedFile:
    found = cache.open(key, BYTES, writes(key[:1].encode() * BYTES))
    assert found is not None
    assert found.path.read_bytes() == key[:1].encode() * BYTES
    return found


def kept(cache: FileCache) -> set[str]:
    return {path.stem for path in cache.directory.glob("*.whole")}


def test_a_file_is_fetched_once(cache: FileCache) -> None:
    keep(cache, "aa").close()
    again = cache.open("aa", BYTES, refuses)
    assert again is not None and again.path.read_bytes() == b"a" * BYTES


def test_a_file_that_came_after_the_look_stays_its_readers(
    cache: FileCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers: list[CachedFile] = []
    alone = FileCache._alone

    def overtaken(self: FileCache) -> AbstractContextManager[None]:
        monkeypatch.undo()
        readers.append(keep(cache, "aa"))
        return alone(self)

    monkeypatch.setattr(FileCache, "_alone", overtaken)
    second = cache.open("aa", BYTES, refuses)
    assert second is not None and readers
    assert os.path.samestat(os.fstat(second.handle.fileno()), os.fstat(readers[0].handle.fileno()))
    second.close()
    for key in ("bb", "cc", "dd"):
        keep(cache, key).close()
    assert readers[0].path.read_bytes() == b"a" * BYTES


def test_the_least_recently_used_file_makes_room(cache: FileCache) -> None:
    for key in ("aa", "bb", "cc"):
        keep(cache, key).close()
        time.sleep(0.01)
    keep(cache, "aa").close()  # used again
    keep(cache, "dd").close()
    assert kept(cache) == {"aa", "cc", "dd"}


def test_a_file_that_is_open_is_not_evicted(cache: FileCache) -> None:
    files = [keep(cache, key) for key in ("aa", "bb", "cc")]
    assert cache.open("dd", BYTES, refuses) is None
    files[1].close()
    keep(cache, "dd")
    assert kept(cache) == {"aa", "cc", "dd"}


def test_a_file_that_is_larger_than_the_cap_is_not_fetched(cache: FileCache) -> None:
    assert cache.open("aa", 3 * BYTES + 1, refuses) is None


@pytest.mark.parametrize("content", [b"x" * (BYTES - 1), b"x" * (BYTES + 1), b""])
def test_a_file_of_another_size_is_not_kept(
    cache: FileCache, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    assert cache.open("aa", BYTES, writes(content)) is None
    assert [path.name for path in cache.directory.iterdir()] == [".lock"]
    assert f"{len(content):,} bytes came, 1,000 were asked for" in caplog.text


@pytest.mark.parametrize("error", [NotFetched("of another digest"), OSError(28, "No space left on device")])
def test_what_can_not_be_kept_is_passed_by_with_a_warning(
    cache: FileCache, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def fetch(target: BinaryIO) -> None:
        target.write(b"x")
        raise error

    assert cache.open("aa", BYTES, fetch) is None
    assert cache.open("aa", BYTES, fetch) is None
    assert caplog.text.count(str(error)) == 1  # not once a part
    keep(cache, "aa")


def test_an_error_of_the_store_is_raised_and_leaves_nothing(cache: FileCache) -> None:
    def fetch(target: BinaryIO) -> None:
        raise KeyError("store")

    with pytest.raises(KeyError, match="store"):
        cache.open("aa", BYTES, fetch)
    assert [path.name for path in cache.directory.iterdir()] == [".lock"]


def test_a_directory_that_can_not_be_made_is_passed_by(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    assert FileCache(tmp_path / "file" / "cache", BYTES).open("aa", BYTES, refuses) is None
    assert "is passed by" in caplog.text


def test_a_truncated_file_is_fetched_again(cache: FileCache) -> None:
    file = keep(cache, "aa")
    file.close()
    os.truncate(file.path, 10)
    keep(cache, "aa")


def test_a_file_that_is_discarded_is_fetched_again_and_its_readers_go_on(cache: FileCache) -> None:
    file = keep(cache, "aa")
    with file.path.open("rb") as reader:
        cache.discard(file)
        again = keep(cache, "aa")
        cache.discard(file)  # not the new one
        assert again.path.exists()
        assert reader.read() == b"a" * BYTES


def test_threads_that_want_one_file_wait_for_the_first(cache: FileCache) -> None:
    fetched: list[str] = []
    began = threading.Event()

    def slow(target: BinaryIO) -> None:
        began.set()
        time.sleep(0.2)
        writes(b"a" * BYTES, fetched, "aa")(target)

    found: list[CachedFile | None] = []
    threads = [threading.Thread(target=lambda: found.append(cache.open("aa", BYTES, slow))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert fetched == ["aa"]
    assert [file is not None and file.path.read_bytes() for file in found] == [b"a" * BYTES] * 8


def hang(cache: FileCache, began: Path) -> None:
    def fetch(target: BinaryIO) -> None:
        target.write(b"half")
        target.flush()
        began.touch()
        time.sleep(60)

    cache.open("aa", BYTES, fetch)


@pytest.fixture
def hanging(cache: FileCache, tmp_path: Path) -> Iterator[multiprocessing.Process]:
    """A process in the midst of fetching "aa"."""
    process = multiprocessing.get_context("spawn").Process(target=hang, args=(cache, tmp_path / "began"))
    process.start()
    deadline = time.monotonic() + 30
    while not (tmp_path / "began").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield process
    process.kill()
    process.join(10)


def kill(process: multiprocessing.Process) -> None:
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(10)


def test_room_that_another_process_fills_counts(cache: FileCache, hanging: multiprocessing.Process) -> None:
    opened = [keep(cache, key) for key in ("bb", "cc")]
    assert cache.open("dd", BYTES, refuses) is None
    kill(hanging)
    opened.append(keep(cache, "dd"))  # what it left behind is gone
    assert not list(cache.directory.glob("*.partial"))


def test_who_waits_for_a_process_that_is_killed_fetches_itself(
    cache: FileCache, hanging: multiprocessing.Process
) -> None:
    killer = threading.Timer(0.3, kill, [hanging])
    killer.start()
    began = time.monotonic()
    keep(cache, "aa")
    assert time.monotonic() - began >= 0.25
    killer.join()


def churn(cache: FileCache, seed: int) -> None:
    for number in range(60):
        key = f"{(number * 7 + seed) % 10:02d}"
        file = cache.open(key, BYTES, writes(key.encode() * (BYTES // 2)))
        if file is not None:
            assert file.path.read_bytes() == key.encode() * (BYTES // 2)
            file.close()
        with (cache.directory / ".lock").open("ab") as lock:
            # Else one file is counted before it makes room, and another one when it has grown into that.
            fcntl.flock(lock, fcntl.LOCK_EX)
            total = sum(_size(path) for path in cache.directory.iterdir() if path.name != ".lock")
        assert total <= cache.max_bytes


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def test_processes_that_race_see_whole_files_under_the_cap(cache: FileCache) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=churn, args=(cache, seed)) for seed in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4


def test_a_fork_while_a_file_is_fetched_holds_nobody_up(cache: FileCache) -> None:
    children: list[int] = []

    def fetch(target: BinaryIO) -> None:
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        children.append(child)
        target.write(b"a" * BYTES)

    found = cache.open("aa", BYTES, fetch)
    assert found is not None
    found.close()
    try:
        keep(cache, "aa").close()
        for key in ("bb", "cc", "dd"):
            keep(cache, key).close()
        assert kept(cache) == {"bb", "cc", "dd"}
    finally:
        os.kill(children[0], signal.SIGKILL)
        os.waitpid(children[0], 0)
