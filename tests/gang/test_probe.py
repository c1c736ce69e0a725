"""What doctor finds out about executors by asking them: that one sees other files than the driver."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.fixtures.scripts import run_script

pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.timeout(250)]

OTHER_DISK = ("unshare", "--mount", "--", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"')

SCRIPT = """
    import json, sys
    from pathlib import Path

    from sparktrain.config import Config
    from sparktrain.doctor import examine_executors
    from sparktrain.testing import StandaloneCluster, spark_session

    root, inside = Path(sys.argv[1]), sys.argv[2:]
    config = Config(pipeline="any", storage={"root": root, "checkpoints": str(root)})
    with StandaloneCluster(workers=1) as cluster:
        cluster.add_worker(inside=(*inside, str(root)))
        with spark_session(cluster.url, **cluster.settings) as spark:
            findings = list(examine_executors(config, spark))
    print(json.dumps({"findings": findings, "left": [str(path) for path in root.iterdir()]}))
"""


def can_mount() -> bool:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    command = [*OTHER_DISK, "/mnt", "true"]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="needs a mount namespace")
def test_a_host_with_a_disk_of_its_own_is_found(tmp_path: Path) -> None:
    root = tmp_path / "out"
    root.mkdir()
    found = run_script(SCRIPT, tmp_path, root, *OTHER_DISK, timeout_seconds=240)
    of = {finding["what"]: finding for finding in found["findings"]}
    assert of["executors"]["level"] == of["network"]["level"] == "ok"
    assert of["run directory"]["level"] == "error"
    assert "does not hold the file that the driver wrote" in of["run directory"]["found"]
    assert of["run directory"]["found"].count("for rank") == 1, "the other executor sees it"
    assert "storage.root" in of["run directory"]["way_out"]
    assert of["checkpoints"]["level"] == "error" and of["checkpoints"]["found"].count("for rank") == 1
    assert "storage.checkpoints" in of["checkpoints"]["way_out"]
    assert found["left"] == [], "the probe leaves nothing behind"
