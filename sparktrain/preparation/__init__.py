"""From a DataFrame to a dataset made for streaming: clean, fit, apply, write."""

from sparktrain.preparation.build import prepare
from sparktrain.preparation.clean import Rule
from sparktrain.preparation.source import read_csv

__all__ = ["Rule", "prepare", "read_csv"]
