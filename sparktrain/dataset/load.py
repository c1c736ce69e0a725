"""From the number of a row group to its rows in the epoch's order, as arrays."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from sparktrain.dataset.buffers import Buffers
from sparktrain.dataset.delivery import Array, Delivery
from sparktrain.dataset.plan import EpochOrder, IntArray, row_order
from sparktrain.dataset.read import RowGroupReader
from sparktrain.errors import DatasetInvalid

if TYPE_CHECKING:
    from sparktrain.dataset.inputs import Input  # which knows of sources

logger = logging.getLogger(__name__)

OnBadData = Literal["fail", "mask"]


@dataclass(eq=False)
class Rows:
    """The rows of a row group, in the epoch's order.

    Attributes:
        arrays: one of shape [columns, rows, *shape] for each stack.
        memory: what `arrays` are views of, and must not outlive.
        texts: one array of strings for each column of text.
        is_bad: they could not be read, and are zeros.
    """

    arrays: Sequence[Array]
    memory: Sequence[Array]
    texts: Sequence[pa.Array] = ()
    is_bad: bool = False


@dataclass(frozen=True, eq=False)
class Source:
    """Rows that a plan counts.

    Attributes:
        row_group_rows: rows of each row group, only those that are wanted: shape [row groups].
        seed: of the order.
        shuffle: whether epochs have orders of their own.
        meaning: what these rows are, for a stream's state.
        selected: where only some rows are wanted, the positions of those, by row group.
    """

    row_group_rows: IntArray
    seed: int
    shuffle: bool
    meaning: Mapping[str, Any]
    selected: Sequence[IntArray] | None = None

    @property
    def num_selected(self) -> int:
        """How many positions of rows are kept because only these are wanted."""
        return 0 if self.selected is None else int(self.row_group_rows.sum())

    def order(self, epoch: int, num_lanes: int) -> EpochOrder:
        return EpochOrder.of(self.row_group_rows, num_lanes, self.seed, epoch, self.shuffle)

    def rows(self, row_group: int, epoch: int) -> IntArray | None:
        """Return the stored rows of a row group in the epoch's order; None: all, as they are stored."""
        selected = None if self.selected is None else self.selected[row_group]
        if not self.shuffle:
            return selected
        order = row_order(int(self.row_group_rows[row_group]), row_group, self.seed, epoch)
        return order if selected is None else selected[order]

    def locate(self, epoch: int, num_lanes: int, positions: IntArray) -> tuple[IntArray, IntArray]:
        """Return the row group of each position of an epoch's order, and its row there, as it is stored."""
        row_groups, rows = self.order(epoch, num_lanes).locate(positions)
        stored = rows.copy()
        for row_group in np.unique(row_groups):
            if (order := self.rows(int(row_group), epoch)) is not None:
                here = row_groups == row_group
                stored[here] = order[rows[here]]
        return row_groups, stored


class Loader:
    """Loads the row groups of one input. Each thread needs its own.

    Args:
        given: whose row groups.
        reader: of its parts.
        delivery: the arrays to load into.
        buffers: to take their memory from.
        most_rows: of any row group of the stream: memory of one size serves them all.
        on_bad_data: "fail" raises when a row group can't be read; "mask" makes it zeros and says so.
        masked: where that is said: "part, row group n" -> why.
    """

    def __init__(
        self,
        given: Input,
        reader: RowGroupReader,
        delivery: Delivery,
        buffers: Buffers,
        most_rows: int,
        on_bad_data: OnBadData,
        masked: dict[str, str],
    ) -> None:
        self._name, self._source, self._reader, self._delivery = given.name, given.source, reader, delivery
        self._buffers, self._on_bad_data, self._masked = buffers, on_bad_data, masked
        self._most_rows = most_rows

    def load(self, row_group: int, epoch: int) -> Rows:
        """Load a row group.

        Raises:
            DatasetInvalid: when it can't be read and bad data are not to be masked.
        """
        try:
            table = self._reader.read_table(row_group)
        except DatasetInvalid as error:
            if self._on_bad_data == "fail":
                raise
            self._mask(row_group, error)
            rows = self._rows(row_group)
            for array in rows.arrays:
                array[:] = 0
            rows.texts = [pa.array([""] * int(self._source.row_group_rows[row_group]))] * len(
                self._delivery.texts
            )
            rows.is_bad = True
            return rows
        rows = self._rows(row_group)
        order = self._source.rows(row_group, epoch)
        self._delivery.fill(rows.arrays, table, order)
        rows.texts = self._delivery.texts_of(table, order)
        return rows

    def _rows(self, row_group: int) -> Rows:
        num_rows = int(self._source.row_group_rows[row_group])
        arrays, memory = [], []
        for stack in self._delivery.stacks:
            count = stack.num_columns
            most = self._buffers.array((count * self._most_rows, *stack.shape), stack.dtype)
            memory.append(most)
            arrays.append(most[: count * num_rows].reshape(count, num_rows, *stack.shape))
        return Rows(arrays, memory)

    def _mask(self, row_group: int, error: DatasetInvalid) -> None:
        part, inside = self._reader.locate(row_group)
        where = f"{self._name}: " if self._name else ""
        where += f"{part.path}, row group {inside}"
        if where not in self._masked:
            self._masked[where] = str(error)
            logger.warning("%s is masked: its rows get weight 0. %s", where, error)
