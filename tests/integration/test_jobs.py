"""The spark-submit jobs on a real standalone cluster, with its property file; each way that code gets there.

spark-submit puts a Python driver's stderr on its own stdout, so the JSON object is stdout's last line there.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from sparktrain.testing.daemons import StandaloneCluster
from tests.fixtures.command import CONF, ROOT, SMALL, Ended, Running, Workplace

pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.timeout(600)]

SITE_PACKAGES = Path(pytest.__file__).parents[1]
# What the property file gives as examples: this machine is smaller, and its Python lies elsewhere.
HERE = {
    "spark.executor.cores": "1",
    "spark.cores.max": "2",
    "spark.executor.memory": "1g",
    "spark.pyspark.python": sys.executable,
    "spark.pyspark.driver.python": sys.executable,
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.ui.enabled": "false",
}
KILL_A_RANK = '[{"rank": 1, "step": 13, "kind": "sigkill"}]'


@pytest.fixture(scope="module")
def cluster() -> Iterator[StandaloneCluster]:
    """Two Workers, who don't inherit where this test run finds its code."""
    with StandaloneCluster(2, 1, 1024, {0: {"PYTHONPATH": ""}, 1: {"PYTHONPATH": ""}}) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("jobs") / "out"


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with all that sparktrain needs, and without sparktrain."""
    environment = tmp_path_factory.mktemp("bare") / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True, timeout=60)
    # As a line of text: the .pth files there, such as that of an editable install, are not read.
    [site_packages] = environment.glob("lib/python*/site-packages")
    (site_packages / "libraries.pth").write_text(str(SITE_PACKAGES))
    python = environment / "bin" / "python"
    program = "import pyspark, pyarrow, torch, sparktrain"
    done = subprocess.run([python, "-I", "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'sparktrain'"
    return python


@pytest.fixture(scope="module")
def packed(bare_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That environment with sparktrain in it, as an archive. The libraries, two gigabytes, stay here."""
    environment = bare_python.parents[1]
    [site_packages] = environment.glob("lib/python*/site-packages")
    inside = site_packages.relative_to(environment) / "sparktrain"
    packed = tmp_path_factory.mktemp("packed") / "environment.tar.gz"
    with tarfile.open(packed, "w:gz", compresslevel=1) as archive:
        archive.add(environment, ".")
        archive.add(ROOT / "sparktrain", inside, filter=lambda f: None if "__pycache__" in f.name else f)
    return packed


@pytest.fixture
def apart(tmp_path: Path) -> Workplace:
    """conf/, pipelines/ and jobs/ without the library beside them."""
    place = Workplace.create(tmp_path / "apart")
    shutil.copytree(ROOT / "jobs", place.path / "jobs", ignore=shutil.ignore_patterns("__pycache__"))
    return place


def start(
    place: Workplace,
    cluster: StandaloneCluster,
    job: Path,
    root: Path,
    *settings: str,
    options: tuple[str | Path, ...] = (),
    properties: dict[str, str] | None = None,
    file: str = "standalone",
    **env: str,
) -> Running:
    given = [
        part for name, value in (HERE | (properties or {})).items() for part in ("--conf", f"{name}={value}")
    ]
    conf = ROOT / "conf" / "spark" / f"{file}.conf"
    where = ["--master", cluster.url, "--properties-file", conf, *given, *options]
    what = ["--config", CONF, "--json", f"storage.root={root}", *SMALL, *settings]
    return place.start(*where, job, *what, program="spark-submit", **env)


def run_dir_result(result: dict[str, Any]) -> dict[str, Any]:
    found = json.loads((Path(result["run_dir"]) / "result.json").read_bytes())
    assert isinstance(found, dict)
    return found


def test_the_jobs_prepare_train_and_score_on_executors(
    workplace: Workplace, cluster: StandaloneCluster, root: Path, flights: Path
) -> None:
    ended: dict[str, Ended] = {}
    for job in ("prepare", "train", "score"):
        source = f"prepare.source.directory={flights}"
        ended[job] = start(workplace, cluster, ROOT / "jobs" / f"{job}.py", root, source).wait()
        assert ended[job].exit_code == 0, ended[job].stderr
        assert ended[job].last_json["status"] == "finished"
    trained = ended["train"].last_json
    assert trained["dataset"]["fingerprint"] == ended["prepare"].last_json["dataset"]["fingerprint"]
    assert ended["train"].stderr.count("Granted executor ID") == 2
    assert trained["world_size"] == 2 and trained["metrics"]["test/auroc"] > 0.6
    assert run_dir_result(trained) == trained
    scored = pq.read_table(ended["score"].last_json["output"])
    assert scored.num_rows == ended["prepare"].last_json["dataset"]["rows_in"]


def check_recovered_run(ended: Ended) -> None:
    """All of a job went well, and one of its ranks was killed and started again."""
    assert ended.exit_code == 0, ended.stderr + ended.stdout
    result = ended.last_json
    assert (result["status"], result["world_size"], result["attempts"]) == ("finished", 2, 2)
    assert result["model_uri"] == "models:/flight_delays/1"
    assert run_dir_result(result) == result
    assert pq.read_table(result["score"]["output"]).num_rows == result["score"]["rows"] > 8000


def test_executors_with_the_libraries_alone_get_sparktrain_by_py_files(
    apart: Workplace, cluster: StandaloneCluster, bare_python: Path, flights: Path, tmp_path: Path
) -> None:
    """The driver has it from there, too: the model that it logs holds the code all the same."""
    bundle = tmp_path / "sparktrain.zip"
    with zipfile.ZipFile(bundle, "w") as files:
        for file in (ROOT / "sparktrain").rglob("*.py"):
            files.write(file, file.relative_to(ROOT))
    properties = {"spark.pyspark.python": str(bare_python), "spark.pyspark.driver.python": str(bare_python)}
    properties["spark.python.daemon.module"] = "pyspark.daemon"  # sparktrain's comes later than the daemon
    running = start(
        apart,
        cluster,
        apart.path / "jobs" / "run.py",
        tmp_path / "out",
        f"prepare.source.directory={flights}",
        options=("--py-files", bundle),
        properties=properties,
        SPARKTRAIN_FAULTS=KILL_A_RANK,
    )
    check_recovered_run(running.wait(400))


def test_executors_get_python_itself_by_a_packed_environment(
    workplace: Workplace, cluster: StandaloneCluster, packed: Path, flights: Path, tmp_path: Path
) -> None:
    running = start(
        workplace,
        cluster,
        ROOT / "jobs" / "run.py",
        tmp_path / "out",
        f"prepare.source.directory={flights}",
        options=("--archives", f"{packed}#environment"),
        properties={"spark.pyspark.python": "./environment/bin/python"},
        SPARKTRAIN_FAULTS=KILL_A_RANK,
    )
    check_recovered_run(running.wait(400))


def test_a_job_ends_with_the_exit_code_of_its_error(
    workplace: Workplace,
    faulty_workplace: Workplace,
    cluster: StandaloneCluster,
    root: Path,
    prepared_root: Callable[[str], Path],
) -> None:
    job, prepared = ROOT / "jobs" / "train.py", prepared_root("out")
    with socket.create_server(("127.0.0.1", 0)) as server:
        nobody = f"http://127.0.0.1:{server.getsockname()[1]}"  # closed from here on
    cases = [
        (2, workplace, root, ["train.ranks=none"], "train.ranks"),
        (3, workplace, root / "nothing-here", [], "sparktrain prepare"),
        (4, faulty_workplace, prepared, ["train.model.fail_rank=1", "train.model.fail_step=3"], "ordered by"),
        (
            2,
            workplace,
            prepared,
            ["train.ranks=3"],
            "3 slots",
        ),  # the cluster's, not those of the file's master
        (5, workplace, prepared, [f"tracking.uri={nobody}"], "MLflow"),
    ]
    for exit_code, place, storage, settings, said in cases:
        ended = start(place, cluster, job, storage, *settings).wait()
        assert ended.exit_code == exit_code, ended.stderr
        assert ended.last_json["exit_code"] == exit_code and said in ended.last_json["error"]
        assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("number", "is_for_all", "exit_code"),
    [(signal.SIGINT, True, 130), (signal.SIGTERM, False, 143)],
    ids=["Ctrl-C", "SIGTERM"],
)
def test_an_interrupted_job_leaves_no_process_and_says_so_in_its_result(
    number: int,
    is_for_all: bool,
    exit_code: int,
    faulty_workplace: Workplace,
    cluster: StandaloneCluster,
    prepared_root: Callable[[str], Path],
) -> None:
    """spark-submit itself ends at once, and nobody passes on what the driver still prints."""
    root = prepared_root("interrupted")
    endless = ["train.epochs=1000", "train.model.pause_seconds=0.1"]
    running = start(faulty_workplace, cluster, ROOT / "jobs" / "train.py", root, *endless)
    deadline = time.monotonic() + 200
    while not (found := list(root.glob("runs/*/checkpoints/step-*/manifest.json"))):
        assert running.process.poll() is None and time.monotonic() < deadline, running.wait(1)
        time.sleep(0.1)
    assert len(cluster.executors()) == 2
    (running.signal_group if is_for_all else running.signal)(number)
    assert running.wait(60).exit_code == exit_code
    running.seconds_until_gone(60)
    result = json.loads((found[0].parents[2] / "result.json").read_bytes())
    assert result["status"] == "killed"
    deadline = time.monotonic() + 60
    while cluster.executors() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not cluster.executors()


def test_ranks_get_the_gpus_that_the_discovery_script_finds(
    workplace: Workplace, packed: Path, prepared_root: Callable[[str], Path], tmp_path: Path
) -> None:
    """Two that are not there: the ranks start on them, and torch says the rest."""
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nprintf '0\\n1\\n'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    finder = ROOT / "conf" / "spark" / "find-gpus.sh"
    options = {"amount": "2", "discoveryScript": str(finder)}
    worker = {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "SPARK_WORKER_OPTS": " ".join(f"-Dspark.worker.resource.gpu.{k}={v}" for k, v in options.items()),
        "PYTHONPATH": "",
    }
    root = prepared_root("out")
    # Four cores and two GPUs: what a rank takes of both decides.
    properties = {"spark.executor.cores": "4", "spark.cores.max": "4"}
    properties["spark.pyspark.python"] = "./environment/bin/python"
    with StandaloneCluster(1, 4, 1024, {0: worker}) as cluster:
        ended = {}
        for ranks in (2, 3):
            ended[ranks] = start(
                workplace,
                cluster,
                ROOT / "jobs" / "train.py",
                root,
                f"train.ranks={ranks}",
                "train.gpus_per_rank=1",
                options=("--archives", f"{packed}#environment"),
                properties=properties,
                file="standalone-gpu",
            ).wait()
    assert (ended[3].exit_code, ended[2].exit_code) == (2, 4), ended[2].stderr
    assert "needs 3 slots" in ended[3].last_json["error"] and "2" in ended[3].last_json["error"]
    failed = ended[2].last_json
    assert "(cuda:" in failed["error"] and "CUDA" in failed["error"]
    errors = [json.loads(file.read_bytes()) for file in Path(failed["run_dir"]).rglob("errors/rank-*.json")]
    assert {error["device"] for error in errors} == {"cuda:0", "cuda:1"}


def test_the_local_property_file_needs_no_cluster(
    workplace: Workplace, flights: Path, tmp_path: Path
) -> None:
    where = ["--properties-file", ROOT / "conf" / "spark" / "local.conf", "--conf", "spark.ui.enabled=false"]
    what = [
        "--config",
        CONF,
        "--json",
        f"storage.root={tmp_path / 'out'}",
        f"prepare.source.directory={flights}",
    ]
    job = ROOT / "jobs" / "prepare.py"
    ended = workplace.run(*where, job, *what, program="spark-submit", PYSPARK_PYTHON=sys.executable)
    assert ended.exit_code == 0, ended.stderr
    assert ended.last_json["status"] == "finished" and "Granted executor ID" not in ended.stderr
