"""Rows by their values: which rows of each row group satisfy a condition."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sparktrain.dataset.layout import ColumnSpec, Layout, unpack
from sparktrain.dataset.plan import IntArray
from sparktrain.dataset.read import RowGroupReader
from sparktrain.errors import ConfigError, NameUnknown

Term = tuple[str, str, Any]
Where = Sequence[Term]

_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "in": lambda values, wanted: np.isin(values, list(wanted)),
    "not in": lambda values, wanted: ~np.isin(values, list(wanted)),
}


def check_where(where: Where, specs: Sequence[ColumnSpec], path: str) -> list[Term]:
    """Return the terms of a condition with values of the columns' types: 0.1 means the float32 next to it.

    Raises:
        NameUnknown: for a column that does not exist.
        ConfigError: for a term that can't be understood, or compares what can't be compared.
    """
    by_name = {spec.name: spec for spec in specs}
    problems = []
    terms: list[Term] = []
    for term in where:
        if not isinstance(term, tuple | list) or len(term) != 3 or str(term[1]) not in _COMPARE:
            operators = ", ".join(_COMPARE)
            problems.append(f"where has {term!r}; give [(column, operator, value)] with one of {operators}")
            continue
        name, operation, value = term
        if name not in by_name:
            raise NameUnknown("column", str(name), by_name, f"the dataset at {path}")
        is_several = operation.endswith("in")
        if is_several and (isinstance(value, str) or not isinstance(value, Sequence | set | frozenset)):
            problems.append(f"where has {term!r}; after `{operation}` comes a list of values")
            continue
        is_text = by_name[name].dtype == "string"
        given = list(value) if is_several else [value]
        if by_name[name].shape:
            problems.append(f"where has {term!r}; `{name}` holds vectors, give a column of single values")
        elif not all(isinstance(v, str if is_text else int | float | np.number) for v in given):
            kind = "text" if is_text else "numbers"
            problems.append(f"where has {term!r}; `{name}` is {by_name[name].dtype}: compare it with {kind}")
        else:
            values = sorted(_plain(v, by_name[name].dtype) for v in given)
            terms.append((name, operation, values if is_several else values[0]))
    if problems:
        raise ConfigError(problems, "the stream's arguments")
    return terms


def _plain(value: Any, dtype: str) -> Any:
    if dtype == "float32":
        return float(np.float32(value))
    return value.item() if isinstance(value, np.generic) else value


def select_rows(
    reader: RowGroupReader,
    num_row_groups: int,
    specs: Sequence[ColumnSpec],
    layout: Layout,
    where: Sequence[Term],
) -> list[IntArray]:
    """Return the positions of the rows that satisfy `where`, of `check_where`, for each row group.

    A row group that the footer's smallest and largest values decide is not read.

    Args:
        reader: of the columns in `where`.
        num_row_groups: of the split.
    """
    names = list(dict.fromkeys(name for name, _, _ in where))
    # Footers leave NaN out, which satisfies nothing that they could vouch for.
    floats = {spec.name for spec in specs if spec.dtype.startswith("float")}
    selected = []
    for row_group in range(num_row_groups):
        ranges = reader.value_ranges(row_group, names)
        known = [
            _decide(ranges.get(name), operation, value, name not in floats)
            for name, operation, value in where
        ]
        num_rows = reader.num_rows(row_group)
        if num_rows == 0 or False in known:
            selected.append(np.empty(0, np.int64))
        elif all(known):
            selected.append(np.arange(num_rows))
        else:
            table = unpack(reader.read_table(row_group), specs, layout, names)
            selected.append(np.flatnonzero(_mask(table, where)))
    return selected


def _mask(table: pa.Table, where: Sequence[Term]) -> NDArray[np.bool_]:
    mask = np.ones(len(table), np.bool_)
    for name, operation, value in where:
        mask &= _COMPARE[operation](table.column(name).to_numpy(), value)
    return mask


def _decide(limits: tuple[Any, Any] | None, operation: str, value: Any, can_vouch: bool) -> bool | None:
    """Say what all rows between two limits answer alike; None when they may differ."""
    if limits is None or operation in ("!=", "not in"):
        return None
    low, high = limits
    if operation in ("==", "in"):
        wanted = [value] if operation == "==" else value
        return None if any(low <= v <= high for v in wanted) else False
    answers = {bool(_COMPARE[operation](limit, value)) for limit in limits}
    answer = answers.pop() if len(answers) == 1 else None
    return answer if can_vouch or not answer else None
