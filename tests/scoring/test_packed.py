from __future__ import annotations

import threading
from pathlib import Path

import pytest

from sparktrain.errors import ModelUnusable
from sparktrain.scoring import packed as packed_module
from sparktrain.scoring.lookup import fetch_model
from sparktrain.scoring.packed import PackedModel
from tests.fixtures.tiny_model import RAW
from tests.scoring.conftest import Registered


@pytest.fixture(scope="module")
def packed(registered: Registered, tmp_path_factory: pytest.TempPathFactory) -> PackedModel:
    directory = fetch_model(registered.uri, registered.tracker.uri, tmp_path_factory.mktemp("model"))
    return PackedModel.of(directory, registered.uri)


def test_a_model_survives_packing(packed: PackedModel, registered: Registered, tmp_path: Path) -> None:
    scores = packed.load(tmp_path / "cache").score_arrow(RAW)["probability"]
    assert scores.to_pylist() == pytest.approx(registered.model.expected, abs=1e-7)


def test_workers_that_unpack_at_once_get_one_whole_directory(packed: PackedModel, tmp_path: Path) -> None:
    together, loaded, errors = threading.Barrier(8), [], []

    def unpack() -> None:
        together.wait(20)
        try:
            loaded.append(packed._unpack(tmp_path / "cache"))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=unpack) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert set(loaded) == {tmp_path / "cache" / packed.digest}
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [packed.digest]


def test_the_digest_names_the_content_not_the_time(packed: PackedModel, tmp_path: Path) -> None:
    copy = packed._unpack(tmp_path / "cache")
    assert PackedModel.of(copy, "copy") == packed
    (copy / "artifacts" / "task.json").write_text("{}")
    assert PackedModel.of(copy, "copy").digest != packed.digest


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "MLmodel").touch()
    with pytest.raises(ModelUnusable, match=r"models:/other/1.*has no features\.json.*spark_udf"):
        PackedModel.of(tmp_path, "models:/other/1")


def test_a_model_too_large_for_a_closure_is_refused(
    packed: PackedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = packed._unpack(tmp_path / "cache")
    monkeypatch.setattr(packed_module, "_MAX_BYTES", 1000)
    with pytest.raises(ModelUnusable, match="more than the 1,000 that travel with a Spark job"):
        PackedModel.of(directory, "models:/large/1")
