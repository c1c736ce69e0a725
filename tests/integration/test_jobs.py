"""The spark-submit jobs, on executors that are processes of their own, with folders of their own.

spark-submit puts a Python driver's stderr on its own stdout, so the JSON object is stdout's last line there.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.fixtures.command import CONF, ROOT, SMALL, Ended, Workplace

pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.timeout(300)]

CLUSTER = ("--master", "local-cluster[2,1,1024]", "--conf", "spark.ui.enabled=false")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("jobs") / "out"


def submit(workplace: Workplace, job: str, root: Path, flights: Path) -> Ended:
    settings = [f"storage.root={root}", f"prepare.source.directory={flights}", *SMALL]
    given = ["--config", CONF, "--json", *settings]
    # the executors' working directories; Spark's own place for them is beside its jars
    folders = str(root.parent / "executors")
    return workplace.run(
        *CLUSTER, ROOT / "jobs" / f"{job}.py", *given, program="spark-submit", SPARK_WORKER_DIR=folders
    )


def test_the_jobs_prepare_train_and_score_on_executors(
    workplace: Workplace, root: Path, flights: Path
) -> None:
    ended = {}
    for job in ("prepare", "train", "score"):
        ended[job] = submit(workplace, job, root, flights)
        assert ended[job].exit_code == 0, ended[job].stderr
        assert ended[job].last_json["status"] == "finished"
    trained = ended["train"].last_json
    assert trained["dataset"]["fingerprint"] == ended["prepare"].last_json["dataset"]["fingerprint"]
    assert ended["train"].stderr.count("Granted executor ID") == 2
    assert trained["world_size"] == 2 and trained["metrics"]["test/auroc"] > 0.6
    scored = pq.read_table(ended["score"].last_json["output"])
    assert scored.num_rows == ended["prepare"].last_json["dataset"]["rows_in"]


def test_a_job_ends_with_the_exit_code_of_its_error(workplace: Workplace, root: Path, flights: Path) -> None:
    ended = submit(workplace, "train", root / "nothing-here", flights)
    assert ended.exit_code == 3
    assert ended.last_json["exit_code"] == 3 and "sparktrain prepare" in ended.last_json["error"]
    assert "Traceback" not in ended.stderr
