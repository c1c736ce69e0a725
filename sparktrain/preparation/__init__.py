"""From a DataFrame to a dataset made for streaming: clean, fit, apply, write."""

from sparktrain.preparation.build import prepare
from sparktrain.preparation.cast import cast_columns
from sparktrain.preparation.growth import append
from sparktrain.preparation.guess import Guess, guess_features
from sparktrain.preparation.petastorm_source import read_petastorm
from sparktrain.preparation.rules import Rule
from sparktrain.preparation.source import read_csv, read_json, read_parquet

__all__ = [
    "Guess",
    "Rule",
    "append",
    "cast_columns",
    "guess_features",
    "prepare",
    "read_csv",
    "read_json",
    "read_parquet",
    "read_petastorm",
]
