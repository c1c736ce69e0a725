"""What a user gets wrong: told in a few lines, with the exit code of its kind, before time is spent on it."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fixtures.command import CONF, SMALL, Ended, Workplace, write_flights
from tests.integration.conftest import Job

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

Rows = list[dict[str, str]]


def check_refused(ended: Ended, exit_code: int, *words: str, within_seconds: float = 30.0) -> None:
    """A short message on stderr, the same in the JSON object, and the promised exit code."""
    assert ended.exit_code == exit_code, ended.stderr
    answer = ended.json
    assert (answer["status"], answer["exit_code"]) == ("failed", exit_code)
    told = " ".join(ended.stderr.split())
    for word in words:
        assert word in told and word in " ".join(answer["error"].split()), f"{word!r} is not in: {told}"
    for wall in ("Traceback", "\tat ", "Caused by", "py4j", "org.apache.spark", "NOTE"):
        assert wall not in ended.stderr.replace("NOTE: Picked up JDK_JAVA_OPTIONS", ""), ended.stderr
    message = ended.stderr.partition("error: ")[2]
    assert len(message.splitlines()) < 15, message
    assert ended.seconds < within_seconds


# --- told before Spark starts -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["train.epoch=3"], ["train.epoch: unknown key", "did you mean train.epochs?"]),
        (["train.epochs=-1", "train.learning_rate=fast"], ["2 errors", "-1 given", "'fast' given"]),
        (
            ["pipeline=flight_delay"],
            ["no flight_delay/data.py in /", "/pipelines; did you mean flight_delays?"],
        ),
        (["prepare.compression=zip"], ["'zip' given", "'lz4', 'zstd', 'snappy' or 'none'"]),
        (["storage.root=s3://bucket/out"], ["object stores are not supported yet", "a mount will do"]),
        (["train.ranks=4"], ["needs 4 slots, local[2] has 2", "train.ranks=2", "spark.master=local[4]"]),
    ],
)
def test_a_wrong_setting_is_told_at_once(workplace: Workplace, settings: list[str], words: list[str]) -> None:
    check_refused(workplace.run("run", CONF, *settings, "--json"), 2, *words, within_seconds=15)


def test_a_missing_configuration_is_told(workplace: Workplace) -> None:
    ended = workplace.run("run", "conf/flights.yaml", "--json")
    check_refused(ended, 2, "conf/flights.yaml", "No such file", "conf/flight_delays.yaml", within_seconds=15)


def test_a_root_that_can_not_be_written_is_told(workplace: Workplace, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("I am no directory")
    ended = workplace.run("run", CONF, f"storage.root={tmp_path}/file/out", "--json")
    check_refused(ended, 2, f"Can't write to {tmp_path}/file/out", "Not a directory", "storage.root=/tmp/")


def test_an_unknown_argument_of_the_task_is_told_before_the_data_is_prepared(
    workplace: Workplace, tmp_path: Path
) -> None:
    ended = workplace.run("run", CONF, f"storage.root={tmp_path}/out", "train.model.depth=3", "--json")
    check_refused(ended, 2, "train.model", "'depth'", "hidden_sizes, embedding_size, dropout")
    assert not (tmp_path / "out" / "datasets").exists()


def test_an_unknown_argument_of_the_source_is_told_before_spark_starts(
    workplace: Workplace, tmp_path: Path
) -> None:
    settings = [f"storage.root={tmp_path}/out", "prepare.source.folder=x"]
    ended = workplace.run("prepare", CONF, *settings, "--json")
    check_refused(ended, 2, "prepare.source", "'folder'", "directory, fraction")
    assert not (tmp_path / "out" / "logs").exists()


def test_a_model_py_that_can_not_be_imported_is_told_with_its_line(tmp_path: Path) -> None:
    workplace = Workplace.create(tmp_path)
    model = workplace.path / "pipelines" / "flight_delays" / "model.py"
    model.write_text("import torch\n\nlayers = torch.nn.Liner\n")
    ended = workplace.run("run", CONF, f"storage.root={tmp_path}/out", "--json")
    check_refused(ended, 2, "pipelines/flight_delays/model.py", "Liner", "line 3", "layers = torch.nn.Liner")


def test_training_without_a_dataset_is_told(workplace: Workplace, tmp_path: Path) -> None:
    ended = workplace.run("train", CONF, f"storage.root={tmp_path}/out", "--json")
    check_refused(
        ended, 3, f"{tmp_path}/out/datasets/flight_delays", "nothing was prepared", "sparktrain prepare"
    )


def test_scoring_without_a_model_is_told(workplace: Workplace, tmp_path: Path) -> None:
    ended = workplace.run("score", CONF, f"storage.root={tmp_path}/out", "--json")
    check_refused(ended, 2, "no model models:/flight_delays@champion", "No model is registered", "training")


def test_scoring_with_an_unknown_alias_names_those_there_are(workplace: Workplace, finished: Job) -> None:
    settings = [f"storage.root={finished.root}", "score.model=models:/flight_delays@best"]
    ended = workplace.run("score", CONF, *settings, "--json")
    check_refused(ended, 2, "models:/flight_delays@best", "@champion (version 1)")


def test_scores_are_never_written_over(workplace: Workplace, finished: Job, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "precious").write_text("?")
    settings = [f"storage.root={finished.root}", f"score.output={tmp_path}/kept"]
    check_refused(
        workplace.run("score", CONF, *settings, "--json"), 2, f"{tmp_path}/kept exists", "score.output"
    )
    assert [file.name for file in (tmp_path / "kept").iterdir()] == ["precious"]


def test_an_mlflow_server_that_is_down_is_told_before_the_data_is_prepared(
    workplace: Workplace, tmp_path: Path
) -> None:
    uri = f"http://127.0.0.1:{closed_port()}"
    ended = workplace.run("run", CONF, f"storage.root={tmp_path}/out", f"tracking.uri={uri}", "--json")
    check_refused(ended, 5, uri, "connection refused", "Start the server", "tracking.uri")
    assert not (tmp_path / "out" / "datasets").exists()


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_a_truncated_part_is_told_by_name_before_spark_starts(
    workplace: Workplace, prepared_root: Callable[[str], Path]
) -> None:
    root = prepared_root("truncated")
    part = sorted(root.glob("datasets/*/*/train/*.parquet"))[1]
    with part.open("r+b") as file:
        file.truncate(part.stat().st_size // 2)
    ended = workplace.run("train", CONF, f"storage.root={root}", *SMALL, "--json")
    check_refused(ended, 3, part.name, "prepare it again")
    assert not (root / "logs").exists()


def test_a_model_that_can_not_be_built_is_told_before_spark_starts(
    workplace: Workplace, prepared_root: Callable[[str], Path]
) -> None:
    root = prepared_root("unbuildable")
    settings = [f"storage.root={root}", "train.model.dropout=2"]
    ended = workplace.run("train", CONF, *settings, "--json")
    check_refused(ended, 2, "build_model()", "between 0 and 1, but got 2", "nn.Dropout")
    assert not (root / "logs").exists()


# --- told by Spark's session, or by what it reads -----------------------------------------------------------


@dataclass(frozen=True)
class Started:
    """Commands that start Spark, two at a time, and what they were given."""

    parent: Path
    too_many_ranks: Future[Ended]
    broken_lines: Future[Ended]
    missing_column: Future[Ended]
    nothing_to_keep: Future[Ended]

    def root(self, name: str) -> Path:
        return self.parent / name / "out"


RANKS = (os.cpu_count() or 1) + 2


@pytest.fixture(scope="module")
def started(workplace: Workplace, tmp_path_factory: pytest.TempPathFactory) -> Started:
    parent = tmp_path_factory.mktemp("bad-input")

    def prepare(name: str, change: Callable[[Rows], Rows], broken_lines: str = "") -> Future[Ended]:
        source = write_flights(parent / name / "source", every=200, change=change)
        with (source / "flights.csv").open("a", encoding="utf-8") as file:
            file.write(broken_lines)
        settings = [f"storage.root={parent / name / 'out'}", f"prepare.source.directory={source}"]
        return workplace.later("prepare", CONF, *settings, "--json")

    ranks = [f"storage.root={parent}/ranks/out", "spark.master=local[*]", f"train.ranks={RANKS}"]
    return Started(
        parent,
        too_many_ranks=workplace.later("run", CONF, *ranks, "--json"),
        broken_lines=prepare("lines", lambda rows: rows, BROKEN_LINES),
        missing_column=prepare("column", without_distance),
        nothing_to_keep=prepare("nothing", all_cancelled),
    )


BROKEN_LINES = (
    "2013,1,1,five,515,2,830,819,11,UA,1545,N14228,EWR,IAH,227,1400,5,15,2013-01-01T10:00:00Z\n"  # no number
    "2013,1,1\n"
)


def without_distance(rows: Rows) -> Rows:
    return [{("dist" if name == "distance" else name): v for name, v in row.items()} for row in rows]


def all_cancelled(rows: Rows) -> Rows:
    return [{**row, "arr_delay": "NA"} for row in rows]


@pytest.mark.spark
def test_more_ranks_than_cores_are_told_before_the_data_is_prepared(started: Started) -> None:
    words = [f"needs {RANKS} slots, the cluster has", "train.ranks"]
    check_refused(started.too_many_ranks.result(), 2, *words, within_seconds=60)
    assert not (started.root("ranks") / "datasets").exists()


@pytest.mark.spark
def test_a_broken_line_is_quarantined_and_the_others_are_kept(started: Started) -> None:
    ended = started.broken_lines.result()
    assert ended.exit_code == 0, ended.stderr
    dataset = ended.json["dataset"]
    assert dataset["quarantined"]["malformed"] == 2
    assert dataset["rows_in"] == dataset["rows_kept"] + sum(dataset["quarantined"].values())
    assert "quarantined by `malformed`" in ended.stderr


@pytest.mark.spark
def test_a_missing_column_is_told_by_name_and_file(started: Started) -> None:
    words = [f"{started.parent}/column/source/flights.csv", "missing column `distance`", "`dist`", "Way out"]
    check_refused(started.missing_column.result(), 3, *words, within_seconds=60)


@pytest.mark.spark
def test_a_source_without_a_row_to_keep_is_told_with_the_rule(started: Started) -> None:
    root = started.root("nothing")
    words = ["No row is left", "`arrived`: 1,684", f"{root}/datasets"]
    check_refused(started.nothing_to_keep.result(), 3, *words, within_seconds=90)
    assert not list(root.glob("datasets/*/*/manifest.json"))


@pytest.mark.spark
def test_a_task_that_raises_is_told_by_rank_step_and_its_own_line(
    faulty_workplace: Workplace, prepared_root: Callable[[str], Path]
) -> None:
    root = prepared_root("raises")
    faults = ["train.model.fail_rank=1", "train.model.fail_step=7"]
    ended = faulty_workplace.run("train", CONF, f"storage.root={root}", *SMALL, *faults, "--json")
    words = [
        "rank 1 on",
        "at step 7 failed",
        "ZeroDivisionError: ordered by the test",
        "model.py",
        "raise Zero",
    ]
    check_refused(ended, 4, *words, within_seconds=90)
    answer = ended.json
    assert answer["world_size"] == 2 and (Path(answer["run_dir"]) / "result.json").exists()
    logs = re.findall(r"^ +- (/.*)$", answer["error"], re.MULTILINE)
    assert logs and all(Path(log).exists() for log in logs), "the message points to files that are there"
