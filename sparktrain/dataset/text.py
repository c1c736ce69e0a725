"""Text as tensors: bytes and where each row begins, or rows of one width. No Python object for a row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch


def text_tensors(
    name: str, width: int | None, pieces: Sequence[tuple[int, pa.Array]]
) -> dict[str, torch.Tensor]:
    """Turn the strings of one batch into tensors.

    Args:
        name: of the column.
        width: bytes to pad each row to with zeros, or to cut it off at; None: neither.
        pieces: strings, each with the row that they begin at.

    Returns:
        `<name>`: uint8 [bytes of all rows] and `<name>_offsets`: int64 [rows + 1]; or, of one width,
        `<name>`: uint8 [rows, width] and `<name>_length`: int64 [rows].
    """
    strings = pa.concat_arrays([piece for _, piece in sorted(pieces, key=lambda piece: piece[0])])
    _, offsets_buffer, values_buffer = strings.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int32)[strings.offset :][: len(strings) + 1].astype(np.int64)
    values = np.frombuffer(values_buffer or b"", np.uint8)[offsets[0] : offsets[-1]]
    offsets -= offsets[0]
    if width is None:
        return {name: torch.from_numpy(values.copy()), f"{name}_offsets": torch.from_numpy(offsets)}
    lengths = np.minimum(np.diff(offsets), width)
    inside = np.arange(width) < lengths[:, None]
    padded = np.zeros(inside.shape, np.uint8)
    padded[inside] = values[(offsets[:-1, None] + np.arange(width))[inside]]
    return {name: torch.from_numpy(padded), f"{name}_length": torch.from_numpy(lengths)}
