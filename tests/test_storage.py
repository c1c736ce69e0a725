"""RemotePath: what a URI names, what its texts show, and what is refused before anything is asked."""

import pickle
from pathlib import Path

import pytest

from sparktrain.errors import EXIT_CONFIG, NotLocal, StoreUriInvalid
from sparktrain.file_cache import FileCache
from sparktrain.storage import RemotePath, local, path_of

OPTIONS = "endpoint_override=127.0.0.1:9000&scheme=http"
SECRET = "s3cr3t/of/nobody"
WITH_SECRET = f"s3://AKIAEXAMPLE:s3cr3t%2Fof%2Fnobody@bucket/flights?{OPTIONS}&session_token=token-of-nobody"


@pytest.mark.parametrize("address", ["data/flights", "/data/flights", "s3:/data", "./a?b", "C:x"])
def test_what_has_no_scheme_is_a_local_path(address: str) -> None:
    assert path_of(address) == Path(address)
    assert path_of(Path(address)) == Path(address)


def test_a_file_uri_is_a_local_path() -> None:
    assert path_of("file:///data/my%20flights") == Path("/data/my flights")


def test_a_remote_path_is_joined_before_the_options() -> None:
    path = path_of(f"s3://bucket/flights/?{OPTIONS}") / "train" / "part-0.parquet"
    assert str(path) == f"s3://bucket/flights/train/part-0.parquet?{OPTIONS}"
    assert path == RemotePath(f"s3://bucket/flights/?{OPTIONS}", "train/part-0.parquet")
    assert str(path_of("gs://bucket")) == "gs://bucket"


def test_a_remote_path_travels_with_its_cache() -> None:
    path = path_of(WITH_SECRET, FileCache(Path("/cache"), 100))
    assert isinstance(path, RemotePath)
    again = pickle.loads(pickle.dumps(path / "train"))
    assert again == path / "train" and again.cache == path.cache
    assert path_of(path) == path and path_of(path) is not None
    assert hash(again) == hash(path / "train")


def test_no_text_shows_what_may_be_a_secret() -> None:
    path = path_of(WITH_SECRET)
    for text in (str(path), repr(path), str(path / "x"), f"{path}"):
        for secret in (SECRET, "s3cr3t", "AKIAEXAMPLE", "token-of-nobody"):
            assert secret not in text
    assert str(path) == f"s3://***@bucket/flights?{OPTIONS}&session_token=***"


@pytest.mark.parametrize(
    "uri",
    [
        "nosuchscheme://AKIAEXAMPLE:s3cr3t@bucket/flights",
        "s3://AKIAEXAMPLE:s3cr3t/of@bucket/flights",
        "s3://AKIAEXAMPLE:s3cr3t@bucket/flights?nonsense=1&region=here",
        "gs://AKIAEXAMPLE:s3cr3t@bucket/flights?nonsense=1",
        "s3://[AKIAEXAMPLE:s3cr3t",
    ],
)
def test_a_uri_that_makes_no_sense_is_refused_without_its_secrets(uri: str) -> None:
    with pytest.raises(StoreUriInvalid) as caught:
        path_of(uri).read_bytes()
    assert caught.value.exit_code == EXIT_CONFIG
    assert "s3://bucket/folder" in str(caught.value)  # the way out
    for text in (str(caught.value), repr(caught.value.__cause__)):
        assert "s3cr3t" not in text and "AKIAEXAMPLE" not in text


def test_who_needs_a_plain_directory_says_so() -> None:
    assert local(Path("/data"), "append") == Path("/data")
    with pytest.raises(NotLocal, match=r"^append needs a directory .* s3://bucket/x lies in .*copy_files"):
        local(path_of("s3://bucket/x"), "append")
