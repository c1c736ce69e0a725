"""The configuration: every file in conf/ is complete, every mistake is told, all at once and early."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from sparktrain.config import Config, all_keys, load_config, parse_config
from sparktrain.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "conf").glob("*.yaml"))
MINIMAL = {"pipeline": "flight_delays"}


def problems_of(tree: dict[str, object]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config({**MINIMAL, **tree})
    return caught.value.problems


def keys_in(tree: dict[str, object], prefix: str = "") -> set[str]:
    found = set()
    for key, value in tree.items():
        found.add(prefix + key)
        if isinstance(value, dict):
            found |= keys_in(value, f"{prefix}{key}.")
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)
def test_a_conf_file_is_valid_and_names_every_key(file: Path) -> None:
    config = load_config(file)
    assert (ROOT / "pipelines" / config.pipeline / "data.py").exists()
    written = keys_in(yaml.safe_load(file.read_text(encoding="utf-8")))
    assert set(all_keys()) <= written


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)
def test_a_conf_file_comments_on_its_sections(file: Path) -> None:
    commented = sum("#" in line for line in file.read_text(encoding="utf-8").splitlines())
    assert commented > len(all_keys()) / 2


def test_all_errors_are_told_at_once_with_the_nearest_key(tmp_path: Path) -> None:
    file = tmp_path / "five.yaml"
    file.write_text(
        "pipeline: flight_delay\n"
        "storge: {root: x}\n"
        "train: {rank: 3, epochs: 0, learning_rate: fast}\n"
        "prepare: {split: {validation: 0.6, test: 0.5}}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_config(file, ["epochs=3"])
    text = "\n".join(caught.value.problems)
    assert "storge: unknown key; did you mean storage?" in text
    assert "train.rank: unknown key; did you mean train.ranks?" in text
    assert "train.epochs: 0 given" in text
    assert "train.learning_rate: 'fast' given" in text
    assert "prepare.split: validation + test is 1.1" in text
    assert "epochs: unknown key; did you mean train.epochs?" in text
    assert "; did you mean flight_delays?" in text
    assert len(caught.value.problems) == 7


def test_a_wrong_configuration_ends_the_command_early_with_exit_code_2(tmp_path: Path) -> None:
    started = time.monotonic()
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "sparktrain.cli",
            "run",
            "conf/flight_delays.yaml",
            "train.rank=3",
            "train.epochs=0",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert "train.ranks" in done.stderr and "train.epochs" in done.stderr
    assert "Traceback" not in done.stderr
    assert (
        time.monotonic() - started < 20
    )  # the goal is one second; this only says that neither Spark nor torch came up


def test_overrides_are_read_as_yaml(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("pipeline: flight_delays\n")
    config = load_config(
        file,
        ["train.epochs=2", "resume=true", "train.model.dropout=0.5", "spark.conf={spark.ui.enabled: false}"],
    )
    assert config.train.epochs == 2 and config.resume is True
    assert config.train.model == {"dropout": 0.5}
    assert config.spark.conf == {"spark.ui.enabled": "false"}


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.epochs", "expected section.key=value"),
        ("train.epochs.deep=1", "is a value, not a section"),
        ("train.model={", "not valid YAML"),
    ],
)
def test_an_override_that_makes_no_sense_is_told(tmp_path: Path, override: str, told: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("pipeline: flight_delays\ntrain: {epochs: 3}\n")
    with pytest.raises(ConfigError, match=told):
        load_config(file, [override])


def test_more_ranks_than_a_local_master_has_slots_is_told_before_spark_starts() -> None:
    [problem] = problems_of({"train": {"ranks": 4}, "spark": {"master": "local[2]"}})
    assert "needs 4 slots, local[2] has 2" in problem and "spark.master=local[4]" in problem


@pytest.mark.parametrize("variable", ["PYSPARK_GATEWAY_PORT", "DATABRICKS_RUNTIME_VERSION"])
def test_the_master_of_a_session_that_is_there_already_is_not_the_file_s(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "17")
    tree = {"pipeline": "flight_delays", "spark": {"master": "local[2]"}, "train": {"ranks": 4}}
    assert parse_config(tree).train.ranks == 4


def test_models_have_three_names_in_unity_catalog_and_one_elsewhere() -> None:
    for uri in ("databricks", "databricks://profile"):
        tree = {**MINIMAL, "tracking": {"uri": uri, "registered_model": "main.default.flights"}}
        assert parse_config(tree).model_uri == "models:/main.default.flights@champion"
    for uri, name in [
        (None, "main.default.flights"),
        ("databricks", "default.flights"),
        ("databricks", "main..flights"),
        ("databricks", "main.default.a/b"),
    ]:
        [problem] = problems_of({"tracking": {"uri": uri, "registered_model": name}})
        assert "can't name a model" in problem


@pytest.mark.parametrize(
    ("master", "slots"),
    [
        ("local", 1),
        ("local[3]", 3),
        ("local[2,4]", 2),
        ("local[*]", None),
        ("local-cluster[2,3,1024]", 6),
        ("spark://host:7077", None),
    ],
)
def test_slots_are_read_from_local_masters_only(master: str, slots: int | None) -> None:
    config = Config.model_validate({**MINIMAL, "spark": {"master": master}, "train": {"ranks": 1}})
    assert config.spark.local_slots == slots


def test_lanes_that_do_not_divide_the_batch_are_refused_with_a_number_that_does() -> None:
    [problem] = problems_of({"train": {"global_batch_size": 100, "num_lanes": 8}})
    assert "does not divide" in problem and "is 5" in problem


def test_an_object_store_is_refused_in_words() -> None:
    [problem] = problems_of({"storage": {"root": "s3://bucket/out"}})
    assert "object stores are not supported yet" in problem


@pytest.mark.parametrize("text", ["a: [1", "- a list", "", "\x00"])
def test_a_file_that_is_no_configuration_is_told(tmp_path: Path, text: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError):
        load_config(file)


def test_a_missing_file_is_told_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "no.yaml")


def test_secrets_in_the_place_of_checkpoints_are_refused_without_being_shown() -> None:
    for place in ("s3://KEY:s3cr3t@bucket/saves", "s3://bucket/saves?session_token=s3cr3t"):
        (problem,) = problems_of({"storage": {"checkpoints": place}})
        assert "storage.checkpoints" in problem and "***" in problem and "s3cr3t" not in problem
        assert "AWS_SECRET_ACCESS_KEY" in problem
    place = "s3://bucket/saves?region=eu-west-1"
    assert parse_config({**MINIMAL, "storage": {"checkpoints": place}}).storage.checkpoints == place
