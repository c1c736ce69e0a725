"""Other versions on an executor (R47): a table of what differs, before anything is computed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.fixtures.scripts import run_script

pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.timeout(250)]

SCRIPT = """
    import json, os, sys
    from pathlib import Path

    from sparktrain.config import Config
    from sparktrain.doctor import examine_executors
    from sparktrain.errors import SparktrainError
    from sparktrain.gang import Gang
    from sparktrain.testing import StandaloneCluster, spark_session

    def ask(batches):
        import importlib.metadata
        import pyarrow
        for _ in batches:
            pass
        yield pyarrow.RecordBatch.from_pydict({"version": [importlib.metadata.version("torch")]})

    def leave_a_trace(path):
        path.touch()

    trace = Path("trace").resolve()
    others = os.pathsep.join(["other", *filter(None, [os.environ.get("PYTHONPATH")])])
    others = os.pathsep.join(str(Path(folder).resolve()) for folder in others.split(os.pathsep))
    with StandaloneCluster(2, environments={1: {"PYTHONPATH": others}}) as cluster:
        with spark_session(cluster.url, **cluster.settings) as spark:
            rows = spark.range(0, 2, 1, 2).mapInArrow(ask, "version string", barrier=True).collect()
            config = Config(pipeline="any", storage={"root": Path("out")})
            [finding] = [f for f in examine_executors(config, spark) if f["what"] == "executors"]
            try:
                Gang(spark, ranks=2, directory="gang").run(leave_a_trace, trace)
                error = {"type": "none", "text": ""}
            except SparktrainError as raised:
                error = {"type": type(raised).__name__, "text": str(raised), "exit_code": raised.exit_code}
    found = {"torch": sorted(row["version"] for row in rows), "finding": finding, "error": error}
    print(json.dumps(found | {"ran": trace.exists()}))
"""


def test_r47_an_executor_with_another_torch_is_shown_in_a_table(tmp_path: Path) -> None:
    """Its Python finds the metadata of another torch first, as it would in another environment."""
    metadata = tmp_path / "other" / "torch-2.0.1.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.0.1\n")
    found = run_script(SCRIPT, tmp_path, timeout_seconds=240)
    assert found["torch"] == sorted(["2.0.1", str(torch.__version__)]), "the fault"
    assert found["finding"]["level"] == "error"
    for text in (found["finding"]["found"], found["error"]["text"]):
        [row] = [line for line in text.splitlines() if line.split()[:1] == ["torch"]]
        assert row.split()[1:] == [str(torch.__version__), "2.0.1"]
        assert "numpy" not in text, "which is the same everywhere"
        assert "driver" in text
    assert found["error"]["exit_code"] == 2
    assert not found["ran"], "the function was called although the versions differ"


MINOR = """
    import json, os, sys
    from pathlib import Path

    os.environ["PYSPARK_PYTHON"] = sys.argv[1]
    from sparktrain.config import Config
    from sparktrain.doctor import examine_executors
    from sparktrain.testing import spark_session

    with spark_session("local[2]") as spark:
        config = Config(pipeline="any", storage={"root": Path("out")})
        print(json.dumps(list(examine_executors(config, spark))))
"""


def other_python() -> str | None:
    """A Python of another minor version that Spark's own files still run on, if this machine has one."""
    home = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for minor in set(range(10, 16)) - {sys.version_info.minor}:
        for program in (shutil.which(f"python3.{minor}"), *home.glob(f"3.{minor}.*/bin/python")):
            if program and subprocess.run([program, "-c", ""], capture_output=True).returncode == 0:
                return str(program)
    return None


@pytest.mark.skipif(other_python() is None, reason="this machine has one minor version of Python")
def test_r47_another_minor_version_of_python_is_told(tmp_path: Path) -> None:
    [finding] = run_script(MINOR, tmp_path, other_python(), timeout_seconds=240)
    assert finding["level"] == "error"
    assert "another minor version of Python" in finding["found"]
    assert "PYSPARK_PYTHON" in finding["way_out"]
