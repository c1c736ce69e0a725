from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import save_file

from sparktrain.runs.registry import log_model
from sparktrain.runs.tracking import Tracker
from sparktrain.scoring.lookup import fetch_model
from sparktrain.testing import write_tiny_dataset
from tests.fixtures.rich_model import PACKAGE, RAW, arguments, features, rich_model
from tests.fixtures.tiny_model import TinyModel, new_run, tiny_config, write_tiny_model


@dataclass(frozen=True)
class Registered:
    """A model in a registry of its own."""

    model: TinyModel
    tracker: Tracker
    uri: str
    alias_uri: str


@pytest.fixture(scope="package")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="package")
def registered(root: Path) -> Registered:
    """Version 1 of `tiny`, the champion."""
    model = write_tiny_model(root / "tiny")
    tracker = Tracker.start(new_run(root), tiny_config(root), write_tiny_dataset(root / "dataset"))
    uri = log_model(tracker, **model.arguments(), registered_name="tiny", alias="champion", step=3)
    return Registered(model, tracker, uri, "models:/tiny@champion")


@pytest.fixture(scope="package")
def rich(registered: Registered, root: Path) -> Path:
    """The files of version 1 of `rich`, whose features are of every kind and whose target has classes."""
    weights = root / "rich.safetensors"
    save_file(rich_model("digit").module.state_dict(), weights)
    uri = log_model(
        registered.tracker,
        weights=weights,
        features=features("digit"),
        pipeline=PACKAGE,
        arguments=arguments("digit"),
        sample=RAW,
        registered_name="rich",
        alias="champion",
    )
    return fetch_model(uri, registered.tracker.uri, root / "files")
