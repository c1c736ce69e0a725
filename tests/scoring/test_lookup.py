from __future__ import annotations

import time
from pathlib import Path

import mlflow
import pytest

from sparktrain.errors import ModelNotFound, ModelUnusable, TrackingUnavailable
from sparktrain.scoring.lookup import fetch_model
from sparktrain.scoring.packed import PackedModel
from tests.fixtures.tiny_model import closed_port
from tests.scoring.conftest import Registered


@pytest.mark.parametrize("reference", ["/1", "@champion", "/latest"])
def test_each_way_to_name_a_model_brings_the_same_files(
    registered: Registered, tmp_path: Path, reference: str
) -> None:
    uri = registered.tracker.uri
    by_version = fetch_model("models:/tiny/1", uri, tmp_path / "a")
    other = fetch_model(f"models:/tiny{reference}", uri, tmp_path / "b")
    packed = [PackedModel.of(directory, "tiny") for directory in (by_version, other)]
    assert packed[0].digest == packed[1].digest


def test_a_logged_model_and_a_directory_can_be_named_too(registered: Registered, tmp_path: Path) -> None:
    client = registered.tracker.client
    outputs = client.get_run(registered.tracker.run_id).outputs.model_outputs
    directory = fetch_model(f"models:/{outputs[0].model_id}", registered.tracker.uri, tmp_path)
    assert (directory / "MLmodel").is_file()
    assert fetch_model(str(directory), None, tmp_path) == directory


@pytest.mark.parametrize(
    "given",
    ["models:/tinny@champion", "models:/tiny@challenger", "models:/tiny/99", "models:/x/Staging", "tiny"],
)
def test_an_unknown_model_is_refused_with_those_that_there_are(
    registered: Registered, tmp_path: Path, given: str
) -> None:
    with pytest.raises(ModelNotFound) as caught:
        fetch_model(given, registered.tracker.uri, tmp_path)
    text = str(caught.value)
    assert f"There is no model {given} in sqlite:///" in text
    assert "tiny: @champion (version 1), /1" in text
    assert "Give models:/<name>@<alias>" in text
    assert caught.value.exit_code == 2


def test_a_typing_error_gets_a_hint(registered: Registered, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="Did you mean `tiny`"):
        fetch_model("models:/tinny@champion", registered.tracker.uri, tmp_path)


def test_files_that_are_gone_are_an_error_in_words(registered: Registered, tmp_path: Path) -> None:
    client = registered.tracker.client
    client.create_registered_model("gone")
    client.create_model_version("gone", (tmp_path / "nowhere").as_uri(), registered.tracker.run_id)
    with pytest.raises(ModelUnusable, match="its files can't be fetched"):
        fetch_model("models:/gone/1", registered.tracker.uri, tmp_path / "target")


def test_a_server_that_is_down_is_an_error_within_ten_seconds(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(TrackingUnavailable, match="connection refused"):
        fetch_model("models:/tiny@champion", f"http://127.0.0.1:{closed_port()}", tmp_path)
    assert time.monotonic() - start < 10


def test_a_database_that_is_not_there_is_not_created(tmp_path: Path) -> None:
    with pytest.raises(TrackingUnavailable, match=r"there is no file .*tracking_uri"):
        fetch_model("models:/tiny@champion", f"sqlite:///{tmp_path}/mlflow.db", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_database_with_options_in_its_address_is_found(registered: Registered, tmp_path: Path) -> None:
    found = fetch_model("models:/tiny/1", f"{registered.tracker.uri}?timeout=5", tmp_path)
    assert (found / "MLmodel").is_file()


def test_without_a_tracking_uri_the_setting_of_mlflow_holds(
    registered: Registered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: registered.tracker.uri)
    assert (fetch_model("models:/tiny/1", None, tmp_path / "a") / "MLmodel").is_file()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    with pytest.raises(TrackingUnavailable, match=r"other\.db"):
        fetch_model("models:/tiny/1", None, tmp_path / "b")
