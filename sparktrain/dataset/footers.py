"""What the footers of Parquet files say about their layout, without reading a page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from sparktrain.dataset.dataset import LATEST_FILE
from sparktrain.dataset.manifest import MANIFEST_FILE
from sparktrain.dataset.read import FileUnusable
from sparktrain.errors import DatasetInvalid

_NUM_THREADS = 8
# Column chunks that are looked at one by one, evenly over parts and row groups: all columns of a million
# row groups would take minutes, and a writer lays them all out alike.
_MAX_CHUNKS = 50_000
_MAX_SAMPLED_PARTS = 1_000

_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 8}
_OFFSET_BYTES = 4  # that Arrow spends on each row of a list


class Chunk(NamedTuple):
    """One column of one row group. Bytes are `stored` in the file, and `encoded` before compression."""

    column: str
    rows: int
    values: int
    stored_bytes: int
    encoded_bytes: int
    dictionary_bytes: int
    encodings: tuple[str, ...]
    codec: str


class Footer(NamedTuple):
    """What is kept of one file's footer: rows of each row group, and the chunks of some of them."""

    path: str
    row_groups: tuple[int, ...]
    schema: pa.Schema
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True)
class ColumnLayout:
    """How a leaf column is stored.

    Attributes:
        name: the column's name; of a nested one its path, such as `tokens.list.element`.
        type: Arrow's type of the whole column.
        is_float: whether its values are floating-point numbers, in lists too.
        nullable: whether a null could be stored.
        is_list: whether a row holds any number of values, all of them numbers.
        list_length: values in each row, when that is the same number in every row group; 0 else.
        dictionary: whether a dictionary is used.
        dictionary_saves: whether it makes the column at least a fifth smaller than plain values.
        encodings: in the footer's words.
        codecs: likewise.
        decoded_bytes_per_row: in memory; at the least, for strings with a dictionary.
        stored_bytes_per_row: in the file.
    """

    name: str
    type: str
    is_float: bool
    nullable: bool
    is_list: bool
    list_length: int
    dictionary: bool
    dictionary_saves: bool
    encodings: tuple[str, ...]
    codecs: tuple[str, ...]
    decoded_bytes_per_row: float
    stored_bytes_per_row: float


def read_footers(
    names: Sequence[str], open_file: Callable[[str], pq.ParquetFile]
) -> tuple[list[Footer], dict[str, str]]:
    """Read the footer of each file; returns the sound ones, and file -> problem for the others."""
    every = -(-len(names) // _MAX_SAMPLED_PARTS)
    num_chunks = _MAX_CHUNKS * max(every, 1) // max(len(names), 1)

    def read(number: int) -> Footer | str:
        try:
            with open_file(names[number]) as file:  # one of its own for each thread
                return _footer(names[number], file, 0 if number % every else num_chunks)
        except FileUnusable as error:
            return str(error)

    with ThreadPoolExecutor(_NUM_THREADS, "footers") as pool:
        answers = list(pool.map(read, range(len(names))))
    problems = {name: answer for name, answer in zip(names, answers, strict=True) if isinstance(answer, str)}
    return [answer for answer in answers if isinstance(answer, Footer)], problems


def plain_files(path: Path) -> tuple[Path, list[str]]:
    """The directory, and the Parquet files below it; as for Spark, what begins with `_` or `.` is not data.

    Raises:
        DatasetInvalid: when there is none.
    """
    way_out = "give a dataset's directory, the one above it, or one that holds Parquet files"
    if path.is_file():
        return path.parent, [path.name]
    if not path.is_dir():
        raise DatasetInvalid(str(path), "there is no such directory", way_out)
    if inner := sorted(
        str(file.parent) for name in (LATEST_FILE, MANIFEST_FILE) for file in path.glob(f"*/{name}")
    ):
        raise DatasetInvalid(str(path), f"it holds several datasets: {', '.join(inner)}", "give one of them")
    files = [file.relative_to(path) for file in path.rglob("*.parquet")]
    names = sorted(file.as_posix() for file in files if not any(p[0] in "_." for p in file.parts))
    if not names:
        raise DatasetInvalid(str(path), f"it holds neither {MANIFEST_FILE} nor a Parquet file", way_out)
    return path, names


def open_plain(root: Path, name: str) -> pq.ParquetFile:
    """Open a Parquet file that no manifest lists.

    Raises:
        FileUnusable: with the file's name and what is wrong.
    """
    path = root / name
    try:
        if path.stat().st_size == 0:
            raise FileUnusable(f"{name} is empty (0 bytes)")
        return pq.ParquetFile(path, memory_map=True, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise FileUnusable(f"{name} can't be opened ({str(error).partition(chr(10))[0]})") from error


def _footer(name: str, file: pq.ParquetFile, num_chunks: int) -> Footer:
    metadata = file.metadata
    row_groups = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
    filled = [i for i, rows in enumerate(row_groups) if rows]
    wanted = max(num_chunks // max(metadata.num_columns, 1), 1) if num_chunks else 0
    chosen = filled[:: -(-len(filled) // wanted)] if filled and wanted else []
    chunks = tuple(chunk for i in chosen for chunk in _chunks(metadata.row_group(i)))
    return Footer(name, row_groups, file.schema_arrow, chunks)


def _chunks(row_group: pq.RowGroupMetaData) -> Iterable[Chunk]:
    for number in range(row_group.num_columns):
        chunk = row_group.column(number)
        dictionary = chunk.dictionary_page_offset
        yield Chunk(
            chunk.path_in_schema,
            row_group.num_rows,
            chunk.num_values,
            chunk.total_compressed_size,
            chunk.total_uncompressed_size,
            chunk.data_page_offset - dictionary if dictionary else 0,
            tuple(chunk.encodings),
            chunk.compression,
        )


def describe_columns(
    footers: Sequence[Footer], open_file: Callable[[str], pq.ParquetFile]
) -> tuple[ColumnLayout, ...]:
    """Add up the chunks of each leaf column; types are those of the first file."""
    if not footers:
        return ()
    chunks: dict[str, list[Chunk]] = {}
    for footer in footers:
        for chunk in footer.chunks:
            chunks.setdefault(chunk.column, []).append(chunk)
    with open_file(footers[0].path) as file:
        leaves = [file.schema.column(number) for number in range(file.metadata.num_columns)]
        return tuple(_describe(leaf, file.schema_arrow, chunks.get(leaf.path, [])) for leaf in leaves)


def _describe(leaf: pq.ColumnSchema, schema: pa.Schema, chunks: Sequence[Chunk]) -> ColumnLayout:
    field = schema.field(_top_level(leaf, schema))
    encodings = {encoding for chunk in chunks for encoding in chunk.encodings}
    dictionary = any(encoding.endswith("DICTIONARY") for encoding in encodings)
    rows = max(sum(chunk.rows for chunk in chunks), 1)
    stored, encoded = (sum(c.stored_bytes for c in chunks), sum(c.encoded_bytes for c in chunks))
    width = leaf.length if leaf.physical_type == "FIXED_LEN_BYTE_ARRAY" else _WIDTHS.get(leaf.physical_type)
    repeated = leaf.max_repetition_level > 0
    if width is None:  # strings: what the dictionary holds is what differs
        decoded = encoded
        saves = sum(chunk.dictionary_bytes for chunk in chunks) < 0.5 * stored
    else:
        decoded = width * sum(chunk.values for chunk in chunks)
        saves = encoded < 0.8 * decoded
    lengths = {chunk.values / chunk.rows for chunk in chunks}
    length = lengths.pop() if repeated and len(lengths) == 1 else 0.0
    return ColumnLayout(
        name=leaf.path,
        type=str(field.type),
        is_float=leaf.physical_type in ("FLOAT", "DOUBLE"),
        nullable=field.nullable,
        is_list=repeated and _holds_numbers(field.type),
        list_length=int(length) if length.is_integer() else 0,
        dictionary=dictionary,
        dictionary_saves=dictionary and saves,
        encodings=tuple(sorted(encodings)),
        codecs=tuple(sorted({chunk.codec for chunk in chunks})),
        decoded_bytes_per_row=decoded / rows + (_OFFSET_BYTES if repeated else 0),
        stored_bytes_per_row=stored / rows,
    )


def _top_level(leaf: pq.ColumnSchema, schema: pa.Schema) -> str:
    """The column that a leaf belongs to; a flat column may have dots in its name."""
    if schema.get_field_index(leaf.path) >= 0:
        return str(leaf.path)
    above = [name for name in schema.names if leaf.path.startswith(f"{name}.")]
    return str(max(above, key=len))


def _holds_numbers(column: pa.DataType) -> bool:
    is_list = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    while any(is_one(column) for is_one in is_list):
        column = column.value_type
    return bool(pa.types.is_integer(column) or pa.types.is_floating(column) or pa.types.is_boolean(column))
