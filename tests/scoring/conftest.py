from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from sparktrain.runs.registry import log_model
from sparktrain.runs.tracking import Tracker
from sparktrain.testing import write_tiny_dataset
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
