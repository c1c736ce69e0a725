"""Reading what Petastorm's `materialize_dataset` wrote, without Petastorm and without its pickled schema."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.errors import AnalysisException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ArrayType,
    BinaryType,
    ByteType,
    DataType,
    DoubleType,
    FloatType,
    IntegerType,
    LongType,
    ShortType,
    StructField,
    StructType,
)

from sparktrain.errors import CellsUnreadable, NameUnknown, SourceMissing
from sparktrain.preparation.analysis import quoted

# numpy's dtype -> Spark's type, and the Arrow type that Spark takes for it: it has no unsigned numbers
_TYPES: Mapping[str, tuple[DataType, pa.DataType]] = {
    "bool": (ByteType(), pa.int8()),
    "int8": (ByteType(), pa.int8()),
    "uint8": (ShortType(), pa.int16()),
    "int16": (ShortType(), pa.int16()),
    "uint16": (IntegerType(), pa.int32()),
    "int32": (IntegerType(), pa.int32()),
    "uint32": (LongType(), pa.int64()),
    "int64": (LongType(), pa.int64()),
    "float16": (FloatType(), pa.float32()),
    "float32": (FloatType(), pa.float32()),
    "float64": (DoubleType(), pa.float64()),
}
_MAX_BATCH_BYTES = 16 << 20  # Spark's vectors end at 2 GiB, and a batch exists several times at once


class Cell(NamedTuple):
    """What the values of a column have in common, told from the first one: dtype and shape.

    Values of one dimension may differ in length, all others must have this shape.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def spark_type(self) -> DataType:
        number = _TYPES[self.dtype][0]
        return ArrayType(number) if self.shape else number

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * np.dtype(self.dtype).itemsize


def read_petastorm(spark: SparkSession, path: str, columns: Sequence[str] | None = None) -> DataFrame:
    """Read a directory that `materialize_dataset` wrote, as columns that `prepare` takes.

    Scalars are as Parquet has them. Values of NdarrayCodec and CompressedNdarrayCodec become arrays,
    row-major (declare `Vector` with their shape; booleans are 0 and 1), or numbers where their shape is ().
    Values of CompressedImageCodec stay the PNG or JPEG files they are (declare `Image`). How a binary column
    is encoded is told by its first value, never by the schema in `_common_metadata`: that is a pickle, and to
    read one is to run what its writer wants.

    Args:
        path: as Petastorm's URL: "file:///…", "hdfs://…", or a plain path.
        columns: only these, in this order; None is all.

    Raises:
        SourceMissing: there is no Parquet file.
        NameUnknown: for a column that does not exist.
        CellsUnreadable: arrays of text, objects or complex numbers; while rows are read, a value that is
            damaged or of another dtype or shape than the first.
    """
    try:
        frame = spark.read.parquet(str(path))
        known = frame.columns
    except AnalysisException as error:
        raise SourceMissing(str(path), "Parquet") from error
    for name in columns or ():
        if name not in known:
            raise NameUnknown("column", name, known, str(path))
    if columns is not None:
        frame = frame.select([_column(name) for name in columns])
    cells = {
        field.name: cell
        for field in frame.schema.fields
        if isinstance(field.dataType, BinaryType) and (cell := _first_cell(frame, field.name)) is not None
    }
    if not cells:
        return frame
    fields = [
        StructField(field.name, cells[field.name].spark_type if field.name in cells else field.dataType)
        for field in frame.schema.fields
    ]
    return frame.mapInArrow(partial(_decode_batches, cells=cells), StructType(fields))


def _column(name: str) -> Column:
    return F.col(quoted(name))


def _first_cell(frame: DataFrame, name: str) -> Cell | None:
    """How a binary column's arrays look; None when they are no arrays, or there is no value."""
    column = _column(name)
    row = frame.where(column.isNotNull()).select(column).head()
    if row is None or (reader := _reader_of(row[0])) is None:
        return None
    first = _read(name, reader, row[0])
    if str(first.dtype) not in _TYPES:
        raise CellsUnreadable(name, f"its arrays are of {first.dtype}, allowed are {', '.join(_TYPES)}")
    return Cell(str(first.dtype), first.shape)


def _decode_batches(batches: Iterable[pa.RecordBatch], cells: Mapping[str, Cell]) -> Iterator[pa.RecordBatch]:
    """Runs in a Python worker: encoded rows come in, decoded ones go out."""
    most_rows = max(1, _MAX_BATCH_BYTES // max(1, sum(cell.num_bytes for cell in cells.values())))
    for whole in batches:
        for first in range(0, len(whole), most_rows):
            batch = whole.slice(first, most_rows)
            arrays = [
                _decode(name, column, cells[name]) if name in cells else column
                for name, column in zip(batch.schema.names, batch.columns, strict=True)
            ]
            yield pa.RecordBatch.from_arrays(arrays, names=batch.schema.names)


def _decode(name: str, column: pa.Array, cell: Cell) -> pa.Array:
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    values = [_checked(name, content, cell) for content in column.drop_null().to_pylist()]
    kind = _TYPES[cell.dtype][1]
    flat = np.concatenate([value.reshape(-1) for value in values]) if values else np.empty(0, cell.dtype)
    numbers = pa.array(flat.astype(kind.to_pandas_dtype(), copy=False))
    if not cell.shape:
        return numbers.take(pa.array(np.cumsum(valid) - 1, mask=~valid))
    lengths = np.zeros(len(column), np.int64)
    lengths[valid] = [value.size for value in values]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    # A null is told by its offset: older Arrow takes no mask of lists.
    return pa.ListArray.from_arrays(pa.array(offsets, mask=np.append(~valid, False)), numbers)


def _checked(name: str, content: bytes, cell: Cell) -> NDArray[Any]:
    reader = _reader_of(content)
    if reader is None:
        raise CellsUnreadable(name, "a value is no array, unlike the first")
    value = _read(name, reader, content)
    fits = value.ndim == 1 if len(cell.shape) == 1 else value.shape == cell.shape
    if str(value.dtype) != cell.dtype or not fits:
        given, first = f"{value.dtype}{list(value.shape)}", f"{cell.dtype}{list(cell.shape)}"
        raise CellsUnreadable(name, f"a value is {given}, the first one is {first}")
    return value


def _reader_of(content: bytes) -> Callable[[io.BytesIO], Any] | None:
    """How to read an array by the bytes that it begins with; None for what is no array."""
    if content[:6] == b"\x93NUMPY":
        return _read_npy
    if content[:4] == b"PK\x03\x04":
        return _read_npz
    return None


def _read_npy(file: io.BytesIO) -> Any:
    return np.load(file, allow_pickle=False)


def _read_npz(file: io.BytesIO) -> Any:
    return np.load(file, allow_pickle=False)["arr"]


def _read(name: str, reader: Callable[[io.BytesIO], Any], content: bytes) -> NDArray[Any]:
    try:
        value: NDArray[Any] = reader(io.BytesIO(content))
    except Exception as error:  # damaged bytes make zip, zlib and numpy raise anything
        raise CellsUnreadable(name, f"a value can't be read as an array ({error})") from error
    return np.asarray(value, value.dtype.newbyteorder("="))
