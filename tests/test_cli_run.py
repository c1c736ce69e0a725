"""What `sparktrain run` shows; the stages themselves have tests of their own."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console

from sparktrain import cli
from sparktrain.errors import SparkFailed
from sparktrain.gang.supervise import TrainResult
from tests.fixtures.tiny_model import tiny_config


def test_a_training_is_shown_though_its_rows_could_not_be_scored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trained = TrainResult(
        "finished",
        "0af3",
        "/runs/x",
        {},
        world_size=2,
        attempts=1,
        metrics={"test/auroc": 0.7412},
        model_uri="models:/flights/3",
    )

    def fail(*_: object) -> dict[str, Any]:
        raise SparkFailed("Scoring failed", "no space left", None)

    monkeypatch.setattr(cli, "_prepare", lambda *_: None)
    monkeypatch.setattr(cli, "_train", lambda *_: trained.to_dict())
    monkeypatch.setattr(cli, "_score", fail)
    shown = StringIO()
    with pytest.raises(SparkFailed, match="no space left") as caught:
        cli._run_work(tiny_config(tmp_path), cast(Any, None), Console(file=shown, width=200))
    assert "0.7412" in shown.getvalue() and "models:/flights/3" in shown.getvalue()
    assert caught.value.result["status"] == "failed" and caught.value.result["run_dir"] == "/runs/x"
