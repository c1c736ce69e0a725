"""Secrets stay where they belong, directories are their owner's, and nothing that is loaded runs code."""

from __future__ import annotations

import json
import logging
import os
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import pytest
import torch.distributed as dist
from mlflow.artifacts import download_artifacts

from sparktrain.config import Config, parse_config
from sparktrain.dataset import Dataset
from sparktrain.doctor import _ask, _tracking
from sparktrain.errors import RankFailed, ResumeRefused
from sparktrain.gang import Gang, train
from sparktrain.runs.directory import RunDirectory
from sparktrain.runs.registry import log_model
from sparktrain.runs.replay import config_of
from sparktrain.runs.tracking import Tracker
from sparktrain.testing import run_ranks, write_tiny_dataset
from tests.fixtures.command import ROOT
from tests.fixtures.saves import save
from tests.fixtures.tiny_model import new_run, tiny_config, write_tiny_model
from tests.gang.conftest import code_by_value

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["code_by_value"]

pytestmark = pytest.mark.timeout(240)

SECRETS = ("hunter2", "hunter3")

MODEL = """
    import torch
    from torch import nn

    from sparktrain.training.task import BinaryClassification


    class Task(BinaryClassification):
        def build_model(self, features):
            return Network(features)


    class Network(nn.Module):
        def __init__(self, features):
            super().__init__()
            self.layer = nn.Linear(len(features.numeric), 1)

        def forward(self, batch):
            columns = [batch["numeric_0"], batch["numeric_1"]]
            return self.layer(torch.stack(columns, dim=1)).squeeze(1)
"""


def files_with(secret: str, folder: Path) -> list[str]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert files, "nothing was looked at"
    return sorted(str(file.relative_to(folder)) for file in files if secret.encode() in file.read_bytes())


@pytest.mark.spark
def test_the_token_is_in_one_file_and_in_no_error_log_or_command_line(
    spark: SparkSession, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    folder = tmp_path / "runs" / "attempt-001"
    seen = tmp_path / "seen"
    with pytest.raises(RankFailed, match="on purpose") as failed:
        Gang(spark, ranks=2, directory=folder).run(look_around_and_fail, seen)
    token = json.loads((folder / "rendezvous.json").read_bytes())["token"]
    assert len(token) == 32
    assert files_with(token, folder) == ["rendezvous.json"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700, "which is why it may be there"
    assert str(os.getpid()).encode() in seen.read_bytes(), "the driver was to be looked at"
    assert files_with(token, tmp_path) == ["runs/attempt-001/rendezvous.json"]
    assert token not in str(failed.value) + repr(failed.value) + caplog.text


def look_around_and_fail(seen: Path) -> None:
    """Leave what everybody can see of all processes, and what their owner can."""
    if dist.get_rank() == 0:
        texts = []
        for process in Path("/proc").glob("[0-9]*"):
            for name in ("cmdline", "environ"):
                try:
                    texts.append(process.name.encode() + b" " + (process / name).read_bytes())
                except OSError:
                    continue
        seen.write_bytes(b"\n".join(texts))
    dist.barrier()
    raise ValueError("on purpose")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("security") / "tiny"
    return write_tiny_dataset(path, 400, validation_rows=100, test_rows=100, num_categorical=0)


def config_with(secret: str, root: Path, **train_section: Any) -> Config:
    return parse_config(
        {
            "pipeline": "flight_delays",
            "storage": {"root": root},
            "spark": {"conf": {"spark.hadoop.fs.s3a.secret.key": secret, "spark.my.api.token": secret}},
            "prepare": {"source": {"url": f"jdbc:postgresql://me:{secret}@host/db", "password": secret}},
            "train": {"epochs": 1, "global_batch_size": 64, "reference": "none", **train_section},
        }
    )


@pytest.mark.spark
@pytest.mark.slow
def test_secrets_of_the_configuration_are_in_nothing_that_a_training_leaves(
    spark: SparkSession,
    dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    package = tmp_path / "code" / "secretive"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "model.py").write_text(dedent(MODEL))
    monkeypatch.syspath_prepend(str(package.parent))
    from secretive.model import Task  # type: ignore[import-not-found]

    caplog.set_level(logging.INFO)
    root = tmp_path / "out"
    result = train(dataset, Task(), config_with("hunter2", root), spark=spark)
    assert result.status == "finished"
    run = RunDirectory(Path(result.run_dir))
    assert stat.S_IMODE(run.path.stat().st_mode) == 0o700
    assert stat.S_IMODE((run.path / "attempt-001").stat().st_mode) == 0o700
    token = json.loads((run.path / "attempt-001" / "rendezvous.json").read_bytes())["token"]
    assert files_with(token, root) == [
        str((run.path / "attempt-001" / "rendezvous.json").relative_to(root.resolve()))
    ]

    run.result_file.unlink()  # as if it had not come to its end
    other = config_with("hunter3", root, seed=1).model_copy(update={"resume": True})
    with pytest.raises(ResumeRefused, match=r"train\.seed") as refused:
        train(dataset, Task(), other, spark=spark)
    told = caplog.text + str(refused.value)
    assert "jdbc:postgresql" in run.spec_file.read_text(), "what is no secret is kept"
    for secret in SECRETS:
        assert files_with(secret, root) == []
        assert secret not in told


def test_a_password_of_the_tracking_server_is_neither_kept_nor_taken_for_one(tmp_path: Path) -> None:
    """What a run's spec.json holds is masked, so a later replay asks the environment."""
    run = new_run(tmp_path)
    spec = {"pipeline": "flight_delays", "dataset": "abc", "tracking": {"uri": "http://***@host:1"}}
    run.spec_file.write_text(json.dumps(spec))
    assert config_of(run).tracking.uri is None


def test_the_doctor_names_a_server_without_its_password(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, tracking={"uri": "http://me:hunter2@127.0.0.1:1"})
    finding = _ask("MLflow", partial(_tracking, config))
    assert finding["level"] == "error" and "127.0.0.1:1" in str(finding)
    assert "hunter2" not in str(finding)


@pytest.mark.spark
@pytest.mark.slow
def test_ranks_and_what_they_start_have_no_access_to_mlflow_while_the_driver_has(tmp_path: Path) -> None:
    script = """
        import os, subprocess
        from sparktrain.gang import Gang
        from sparktrain.testing import spark_session

        def names():
            child = subprocess.run(["env"], capture_output=True, text=True, check=True).stdout
            return sorted(os.environ), [line.partition("=")[0] for line in child.splitlines()], child

        with spark_session() as spark:
            found = Gang(spark, ranks=2).run(names)
        for ours, childs, text in found:
            assert "RANK" in ours and "RANK" in childs
            wrong = [name for name in (*ours, *childs) if name.startswith(("MLFLOW", "DATABRICKS_"))]
            assert not wrong, wrong
            assert "hunter2" not in text
        assert os.environ["MLFLOW_TRACKING_PASSWORD"] == os.environ["DATABRICKS_TOKEN"] == "hunter2"
        print("well")
    """
    given = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD", "DATABRICKS_TOKEN", "DATABRICKS_PASSWORD")
    environment = {**os.environ, **dict.fromkeys(given, "hunter2"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", dedent(script)],
        cwd=tmp_path,
        env={**environment, "MLFLOW_TRACKING_URI": "http://me:hunter2@127.0.0.1:1"},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.stdout.endswith("well\n"), done.stderr


@pytest.mark.ranks
def test_a_gang_of_local_processes_hands_its_values_over_where_nobody_else_can_look() -> None:
    # Values are pickles there: who could write one would have its code run.
    modes = run_ranks(2, mode_of_own_folder)
    assert modes == ["0o700", "0o700"]


def mode_of_own_folder() -> str:
    log = Path(os.readlink("/proc/self/fd/1"))
    return oct(stat.S_IMODE(log.parents[1].stat().st_mode))


LOAD = """
    import pickle, sys
    from pathlib import Path

    found = []
    sys.addaudithook(lambda event, args: found.append(args) if event == "pickle.find_class" else None)
    pickle.loads(pickle.dumps(Path))
    assert found, "the hook does not see pickles"

    import torch
    import mlflow.pyfunc
    from sparktrain.dataset import open_dataset
    from sparktrain.training.checkpoint import newest_valid
    from tests.fixtures.saves import weights_of
    from tests.fixtures.tiny_model import RAW

    dataset, checkpoints, model = map(Path, sys.argv[1:])
    frame = RAW.to_pandas()
    del found[:]
    rows = sum(len(batch["row_id"]) for batch in open_dataset(dataset).stream("train", 32, num_lanes=4))
    saved = newest_valid(checkpoints)
    weights = weights_of(saved)
    scores = mlflow.pyfunc.load_model(str(model)).predict(frame)
    print(rows, weights, len(scores), found)
"""


@pytest.mark.slow
def test_no_pickle_is_loaded_from_a_dataset_a_checkpoint_or_a_model(dataset: Dataset, tmp_path: Path) -> None:
    save(tmp_path / "checkpoints", 3)
    tracker = Tracker.start(new_run(tmp_path), tiny_config(tmp_path), dataset)
    model = write_tiny_model(tmp_path / "tiny")
    log_model(tracker, **model.arguments(), registered_name="tiny", alias="champion", step=3)
    location = tracker.client.get_model_version_download_uri("tiny", "1")
    files = download_artifacts(artifact_uri=location, dst_path=str(tmp_path / "files"))
    done = subprocess.run(
        [sys.executable, "-c", dedent(LOAD), str(dataset.path), str(tmp_path / "checkpoints"), files],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "384 {3.0} 6 []"
