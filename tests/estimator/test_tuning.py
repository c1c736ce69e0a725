"""A Pipeline with our classifier in a CrossValidator: gangs take turns, what is saved predicts the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyspark
import pytest

from tests.fixtures.command import write_flights
from tests.fixtures.scripts import run_script

pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.timeout(1200)]

NEEDS_CONNECT = pytest.mark.skipif(
    pyspark.__version__ < "4", reason="Spark 3.5 brings no Connect server in its package"
)


def run(mode: str, flights: Path, folder: Path, what: str) -> Any:
    program = "import sys; from tests.fixtures.tune_flights import main; main(*sys.argv[1:])"
    return run_script(program, folder, mode, flights, folder, what, timeout_seconds=590)


@pytest.mark.parametrize("mode", ["local[2]", pytest.param("connect[2]", marks=NEEDS_CONNECT)])
def test_a_tuned_pipeline_predicts_the_same_in_a_new_process(mode: str, tmp_path: Path) -> None:
    flights = write_flights(tmp_path / "flights", every=200)
    tuned = run(mode, flights, tmp_path, "tune")
    # 2 folds x 2 maps, two at a time, 2 workers each, on 2 slots
    assert len(tuned["areas"]) == 2 and all(0.5 < area < 0.9 for area in tuned["areas"])
    assert tuned["area"] > 0.6 and tuned["rows"] > 1500
    loaded = run(mode, flights, tmp_path, "load")
    assert loaded["predictions"] == tuned["predictions"]
