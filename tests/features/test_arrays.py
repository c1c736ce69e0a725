"""Vectors and images: an array of a fixed shape in each row, or a word about why not."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sparktrain.errors import ValuesRefused
from sparktrain.features import FittedImage, FittedVector

NAN = float("nan")


def vector(**changes: Any) -> FittedVector:
    sound: dict[str, Any] = {
        "input_type": "doubles", "shape": (2,), "dtype": "float32", "fill": "zeros"
    }  # fmt: skip
    return FittedVector(name="v", column="v", **(sound | changes))


def image(**changes: Any) -> FittedImage:
    return FittedImage(name="i", column="i", **({"shape": (4, 6, 3), "fill": "zeros"} | changes))


def encoded(pixels: np.ndarray, kind: str = "PNG", mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels, mode).save(buffer, kind)
    return buffer.getvalue()


def test_lists_become_rows() -> None:
    column = pa.array([[9.0, 9.0], [1.0, 2.0], None, [3.0, 4.0]]).slice(1)
    out = vector().transform(column)["v"]
    assert out.dtype == np.float32
    assert out.tolist() == [[1.0, 2.0], [0.0, 0.0], [3.0, 4.0]]


@given(
    rows=st.lists(st.none() | st.lists(st.integers(-(2**31), 2**31 - 1), min_size=6, max_size=6), max_size=8),
    start=st.integers(0, 3),
    dtype=st.sampled_from(["int32", "int64", "float64"]),
)
def test_bytes_and_lists_give_the_same_rows(rows: list[Any], start: int, dtype: Any) -> None:
    lists = pa.array(rows, pa.list_(pa.int64())).slice(start)
    data = [None if r is None else np.array(r, np.dtype(dtype).newbyteorder("<")).tobytes() for r in rows]
    expected = np.array([r or [0] * 6 for r in rows[start:]], dtype).reshape(-1, 2, 3)
    for input_type, column in (("longs", lists), ("binary", pa.array(data, pa.binary()).slice(start))):
        out = vector(input_type=input_type, shape=(2, 3), dtype=dtype).transform(column)["v"]
        assert out.dtype == dtype
        np.testing.assert_array_equal(out, expected)


def test_what_is_no_number_within_a_row_becomes_zero() -> None:
    column = pa.array([[1.0, None], [NAN, 2.0], [float("inf"), 3.0]])
    assert vector().transform(column)["v"].tolist() == [[1.0, 0.0], [0.0, 2.0], [0.0, 3.0]]
    data = pa.array([np.array([NAN, 5.0], "<f4").tobytes()])
    assert vector(input_type="binary").transform(data)["v"].tolist() == [[0.0, 5.0]]


@pytest.mark.parametrize(
    ("changes", "column", "what"),
    [
        ({"fill": None}, pa.array([[1.0, 2.0], None]), "1 null"),
        ({"fill": None}, pa.array([[1.0, None]]), "1 null within the arrays"),
        ({"fill": None}, pa.array([[NAN, NAN]]), "2 NaNs or infinities"),
        ({}, pa.array([[1.0, 2.0], [1.0], [], [1.0, 2.0, 3.0]]), "3 rows that have not 2 values"),
        ({"input_type": "binary"}, pa.array([b"12345678", b"1234567"]), "1 row that has not 8 bytes"),
        ({"dtype": "uint8"}, pa.array([[255.0, 256.0]]), "1 number that uint8 can't hold"),
        ({"dtype": "uint8", "input_type": "longs"}, pa.array([[-1, 256]]), "2 numbers that uint8 can't hold"),
        ({"dtype": "int64"}, pa.array([[1.5, 2.0]]), "1 number that int64 can't hold"),
        ({}, pa.array([[1e300, 1.0]]), "1 number that float32 can't hold"),
    ],
    ids=str,
)
def test_a_row_that_is_no_such_array_is_refused(changes: dict[str, Any], column: pa.Array, what: str) -> None:
    with pytest.raises(ValuesRefused) as caught:
        vector(**changes).transform(column)
    assert caught.value.columns == {"v": what}


def test_arrays_of_no_rows_have_their_shape() -> None:
    assert vector(shape=(2, 3)).transform(pa.array([], pa.list_(pa.float64())))["v"].shape == (0, 2, 3)
    assert vector(input_type="binary").transform(pa.array([], pa.binary()))["v"].shape == (0, 2)
    assert image().transform(pa.array([], pa.binary()))["i"].shape == (0, 4, 6, 3)
    assert vector().transform(pa.nulls(2))["v"].tolist() == [[0, 0], [0, 0]]


PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)


def test_pixels_and_png_files_give_the_same_image() -> None:
    column = pa.array([b"", PIXELS.tobytes(), encoded(PIXELS), None]).slice(1)
    out = image().transform(column)["i"]
    assert out.dtype == np.uint8
    np.testing.assert_array_equal(out, [PIXELS, PIXELS, np.zeros_like(PIXELS)])
    np.testing.assert_array_equal(image().transform(column.slice(0, 1))["i"], [PIXELS])


def test_an_image_is_converted_to_the_declared_channels() -> None:
    grey = np.full((4, 6), 77, np.uint8)
    assert (image().transform(pa.array([encoded(grey, "JPEG")]))["i"] == 77).all()
    assert image(shape=(4, 6, 1)).transform(pa.array([encoded(grey)]))["i"].tolist() == [
        grey[..., None].tolist()
    ]
    opaque = image(shape=(4, 6, 4)).transform(pa.array([encoded(PIXELS)]))["i"][0]
    np.testing.assert_array_equal(opaque, np.dstack([PIXELS, np.full((4, 6), 255)]))


@pytest.mark.parametrize(
    ("changes", "content", "what"),
    [
        ({"fill": None}, None, "1 null"),
        ({}, b"nothing like an image", "1 image that is neither 72 bytes of pixels nor a whole PNG or JPEG"),
        ({}, encoded(PIXELS)[:-30], "1 image that is neither 72 bytes of pixels nor a whole PNG or JPEG"),
        ({}, encoded(PIXELS, "GIF"), "1 image that is neither 72 bytes of pixels nor a whole PNG or JPEG"),
        ({}, encoded(PIXELS.transpose(1, 0, 2)), "1 image of another size than 4 x 6"),
        ({"shape": (4, 6, 2)}, encoded(PIXELS), "1 image other than 48 bytes of pixels"),
    ],
)
def test_what_is_no_such_image_is_refused(changes: dict[str, Any], content: bytes | None, what: str) -> None:
    with pytest.raises(ValuesRefused) as caught:
        image(**changes).transform(pa.array([content], pa.binary()))
    assert caught.value.columns["i"].startswith(what)
