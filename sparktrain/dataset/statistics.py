"""statistics.json: how the raw columns of a dataset are distributed, for its card and to notice drift."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, FiniteFloat, ValidationError

from sparktrain.dataset.manifest import Count, Record
from sparktrain.errors import DatasetInvalid, first_line
from sparktrain.features.sketch import COARSE_BITS
from sparktrain.storage import AnyPath

STATISTICS_FILE = "statistics.json"
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
NUM_TOP_VALUES = 50


class ColumnStatistics(Record):
    """A raw column, over the training rows that were kept.

    Attributes:
        column: its name.
        input_type: as in `features.json`.
        rows, nulls, nans, infinities: numbers of training rows; the last three are in none of the following.
        mean, deviation, smallest, largest: of a column of numbers.
        quantiles: values at `QUANTILES`, each to within 2**-8 of its size.
        histogram: (bucket of `features.sketch`, rows), sorted by bucket.
        histogram_bits: how fine its buckets are. A column whose values lie close together, such as air
            pressure, needs more of them than COARSE_BITS to show its shape at all.
        values: the most frequent values of a column that some feature takes as categorical, with their rows.
        distinct: number of different values, where they were counted.
    """

    column: str
    input_type: str
    rows: Count
    nulls: Count = 0
    nans: Count = 0
    infinities: Count = 0
    mean: FiniteFloat | None = None
    deviation: FiniteFloat | None = None
    smallest: FiniteFloat | None = None
    largest: FiniteFloat | None = None
    quantiles: tuple[FiniteFloat, ...] = ()
    histogram: tuple[tuple[int, int], ...] = ()
    histogram_bits: Annotated[int, Field(ge=0, le=52)] = COARSE_BITS
    values: tuple[tuple[str, int], ...] = ()
    distinct: Count | None = None


class CodeCounts(Record):
    """What the features made of the rows of one split, by feature.

    Attributes:
        rows: of the split.
        nulls: rows whose value was null, by feature. NaN and infinities are counted by column, see above.
        unknown: rows whose value the vocabulary lacks, by categorical feature.
    """

    rows: Count
    nulls: dict[str, Count]
    unknown: dict[str, Count]


class TargetStatistics(Record):
    """A target in one split: the number of rows by value (binary, multiclass), or mean and deviation."""

    name: str
    split: str
    values: dict[str, Count] = Field(default_factory=dict)
    mean: FiniteFloat | None = None
    deviation: FiniteFloat | None = None


class Statistics(Record):
    """Everything that was counted while a dataset was prepared."""

    columns: tuple[ColumnStatistics, ...]
    codes: dict[str, CodeCounts]
    targets: tuple[TargetStatistics, ...]

    @classmethod
    def load(cls, directory: AnyPath) -> Statistics:
        """Read the statistics of a dataset's directory.

        Raises:
            DatasetInvalid: when they are missing or of another version.
        """
        try:
            return cls.model_validate_json((directory / STATISTICS_FILE).read_bytes())
        except (OSError, ValidationError) as error:
            raise DatasetInvalid(
                str(directory), f"{STATISTICS_FILE} can't be read ({first_line(error)})"
            ) from error
