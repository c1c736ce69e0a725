"""Images: pixels, or files of them."""

from __future__ import annotations

import io
import math
from collections import Counter
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sparktrain.errors import DataError, ValuesRefused
from sparktrain.features.fitted_columns.column import Arrays, FittedColumn, counted, refuse_nulls
from sparktrain.features.fitted_columns.vector import rows_of_bytes
from sparktrain.features.output import Output
from sparktrain.features.raw import read_as

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_FORMATS = ("PNG", "JPEG")  # Pillow's other decoders are not for bytes of strangers


class FittedImage(FittedColumn):
    """uint8 pixels [height, width, channels]. `fill`: "zeros", or None: nulls are refused."""

    kind: Literal["image"] = "image"
    input_type: Literal["binary"] = "binary"
    shape: tuple[int, int, int]
    dtype: Literal["uint8"] = "uint8"
    fill: Literal["zeros"] | None

    @property
    def outputs(self) -> tuple[Output, ...]:
        return (Output(name=self.name, dtype=self.dtype, shape=self.shape),)

    def transform(self, column: pa.Array) -> Arrays:
        column = read_as(column, "binary")
        if self.fill is None:
            refuse_nulls(self.column, column)
        num_bytes = math.prod(self.shape)
        if column.null_count == 0 and bool(np.all(pc.binary_length(column).to_numpy() == num_bytes)):
            return {self.name: rows_of_bytes(column, num_bytes).reshape(len(column), *self.shape)}
        return {self.name: self._row_by_row(column, num_bytes)}

    def _row_by_row(self, column: pa.Array, num_bytes: int) -> NDArray[np.uint8]:
        pixels = np.zeros((len(column), *self.shape), np.uint8)
        refused: Counter[str] = Counter()
        for row, value in enumerate(column):
            if not value.is_valid:
                continue
            content = value.as_buffer()
            if content.size == num_bytes:
                pixels[row] = np.frombuffer(content, np.uint8).reshape(self.shape)
                continue
            decoded = _decode(content, self.shape)
            if isinstance(decoded, str):
                refused[decoded] += 1
            else:
                pixels[row] = decoded
        if refused:
            whats = [counted(number, f"image {why}", f"images {why}") for why, number in refused.items()]
            raise ValuesRefused({self.column: ", ".join(whats)})
        return pixels


def _decode(content: pa.Buffer, shape: tuple[int, int, int]) -> NDArray[np.uint8] | str:
    """The pixels of a PNG or JPEG, or what is wrong with it."""
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("PNG and JPEG images are decoded by Pillow: pip install pillow.") from error
    height, width, channels = shape
    if channels not in _MODES:
        return f"other than {math.prod(shape)} bytes of pixels (PNG and JPEG have 1, 3 or 4 channels)"
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            if image.size != (width, height):  # known before anything is decoded
                return f"of another size than {height} x {width}"
            return np.asarray(image.convert(_MODES[channels])).reshape(shape)
    except Exception:  # a decoder may raise anything on bytes that are no image
        return f"that is neither {math.prod(shape)} bytes of pixels nor a whole PNG or JPEG"
