"""A sketch of few buckets is the same however the rows were cut into parts."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sparktrain.features.sketch import FINE_BITS, Sketch, at_most, coarser, sketch

values = st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=60)


@given(st.lists(values, min_size=1, max_size=4), st.integers(1, 30), st.integers(0, FINE_BITS))
def test_parts_that_were_cut_down_add_up_to_the_whole_cut_down(
    parts: list[list[float]], num_buckets: int, least: int
) -> None:
    whole = at_most(sketch(np.concatenate(parts)), FINE_BITS, num_buckets, least)
    pieces = [at_most(sketch(np.array(part)), FINE_BITS, num_buckets, least) for part in parts]
    bits = min(piece_bits for _, piece_bits in pieces)
    total: Sketch = {}
    for counts, piece_bits in pieces:
        for key, rows in coarser(counts, piece_bits, bits).items():
            total[key] = total.get(key, 0) + rows
    assert at_most(total, bits, num_buckets, least) == whole


def test_the_finest_sketch_that_fits_is_taken() -> None:
    close = np.random.default_rng(0).normal(1000, 5, 10_000)
    counts, bits = at_most(sketch(close), FINE_BITS, 100)
    assert bits == FINE_BITS and 20 < len(counts) <= 100
    spread = np.random.default_rng(0).lognormal(0, 5, 10_000)
    counts, bits = at_most(sketch(spread), FINE_BITS, 100)
    assert bits < FINE_BITS and 25 < len(counts) <= 100 and sum(counts.values()) == 10_000
