"""A gang is the same wherever Spark runs: in the driver, on executors, on a cluster, by Spark Connect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyspark
import pytest

from tests.fixtures.scripts import run_script

pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.timeout(300)]

MODES = ["local[2]", "local-cluster[2,1,1024]", "standalone[2,1,1024]"]
# Spark 3.5 does not bring its Connect server in the pip package.
MODES += ["connect[2]"] if int(pyspark.__version__.partition(".")[0]) >= 4 else []


@pytest.mark.parametrize("mode", MODES)
def test_gangs_answer_fail_and_start_again(mode: str, tmp_path: Path) -> None:
    program = "import runpy; runpy.run_module('tests.fixtures.gangs', run_name='__main__', alter_sys=True)"
    found: dict[str, Any] = run_script(program, tmp_path, mode, tmp_path / "gangs")
    assert [value[:2] for value in found["values"]["values"]] == [[0, 21.0], [1, 21.0]]
    assert found["broken"]["error"] == "RankFailed"
    first, line = found["broken"]["text"].splitlines()[:2]
    assert first.startswith("rank 1 on ") and first.endswith("failed: KeyError: 'no such thing'")
    assert "gangs.py" in line and "break_one" in line
    assert found["killed"]["error"] == "RankLost"
    assert "rank 1 ended without an error of its own" in found["killed"]["text"]
    assert "last words" in (tmp_path / "gangs" / "killed" / "logs" / "rank-001.log").read_text()
    assert [value[1] for value in found["again"]["values"]] == [41.0, 41.0], "a gang after two failures"
    assert max(gang["seconds"] for gang in found.values()) < 60
