"""How much memory a stream needs on a rank, and how far ahead a budget lets it read."""

from __future__ import annotations

from typing import NamedTuple

from sparktrain.errors import ConfigError

_MAX_STEPS_PER_CHUNK = 32
_GOOD_CHUNK_BYTES = 32 << 20  # larger ones save no more of Python's share
_CHUNKS_AHEAD = 4
_CHUNKS_IN_USE = 2  # the one whose batches are being taken, and the one before: somebody holds its last batch
_DEFAULT_BYTES = 1 << 30
_SLACK_BYTES = 16 << 20  # what allocators of several threads keep back, as measured
_CHUNK_FOOTER_BYTES = 640  # of a column of a row group, once its footer was read, as measured

WEIGHT_BYTES = 4  # of a row, that a batch has beside its columns


class Budget(NamedTuple):
    """What a stream may hold.

    Attributes:
        steps_per_chunk: steps that are assembled at once.
        chunks_ahead: chunks that may wait, or be in the making.
        memory_bytes: the most that all of it takes.
    """

    steps_per_chunk: int
    chunks_ahead: int
    memory_bytes: int

    @classmethod
    def of(
        cls,
        *,
        row_group_bytes: int,
        step_bytes: int,
        num_lanes: int,
        num_threads: int,
        num_footer_chunks: int,
        selected_bytes: int = 0,
        memory_bytes: int | None,
    ) -> Budget:
        """Choose how far ahead to read.

        Args:
            row_group_bytes: of the largest row group, as batches have its rows.
            step_bytes: of this rank's batch.
            num_lanes: that the rank takes rows from.
            num_threads: that read.
            num_footer_chunks: columns times row groups of the parts that are open at once.
            selected_bytes: of the positions of wanted rows, where only some are.
            memory_bytes: what may be used; None: 1 GiB, or more where the least possible is more.

        Raises:
            ConfigError: when `memory_bytes` is less than is needed to get on at all.
        """
        # A thread has a row group as it was decoded and as it will be held, and what it was stored as.
        fixed = row_group_bytes * (num_lanes + 3 * num_threads)
        fixed += num_footer_chunks * _CHUNK_FOOTER_BYTES + selected_bytes + _SLACK_BYTES
        least = fixed + step_bytes * (1 + _CHUNKS_IN_USE)
        if memory_bytes is not None and memory_bytes < least:
            needs = (
                f"{num_lanes} lanes and {num_threads} threads with row groups of {row_group_bytes:,} bytes, "
                f"batches of {step_bytes:,}, footers of {num_footer_chunks * _CHUNK_FOOTER_BYTES:,}"
            )
            way_out = "allow that much, or take fewer lanes, smaller batches, or the layout `blocks`"
            problem = f"memory_bytes is {memory_bytes:,}; {needs} need {least:,} at least: {way_out}"
            raise ConfigError([problem], "the stream's arguments")
        steps = ((memory_bytes or max(_DEFAULT_BYTES, least)) - fixed) // step_bytes
        most = min(_MAX_STEPS_PER_CHUNK, _GOOD_CHUNK_BYTES // step_bytes)
        per_chunk = max(min(steps // (_CHUNKS_AHEAD + _CHUNKS_IN_USE), most), 1)
        ahead = max(min(steps // per_chunk - _CHUNKS_IN_USE, _CHUNKS_AHEAD), 1)
        return cls(per_chunk, ahead, fixed + step_bytes * per_chunk * (ahead + _CHUNKS_IN_USE))
