"""What is sent to the ranks: a function with its arguments, pickled with a word about what can't be."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import cloudpickle

from sparktrain.errors import NotPicklable


def pickle_call(function: Callable[..., Any], args: Sequence[Any]) -> bytes:
    """Pickle a call.

    Raises:
        NotPicklable: naming the function or the arguments that are the reason.
    """
    try:
        pickled: bytes = cloudpickle.dumps((function, tuple(args)))
        return pickled
    except Exception as error:
        names = [_name(value) for value in (function, *args) if not _can_pickle(value)]
        raise NotPicklable(names, f"{type(error).__name__}: {error}") from error


@contextmanager
def code_by_value(values: Sequence[Any], is_own_file: Callable[[str], bool]) -> Iterator[None]:
    """Within: functions and classes from the modules of `values` are pickled with their code.

    For modules that other processes can't import by name, such as a test that pytest loaded from its file.
    """
    added = [module for module in _modules(values) if module.__file__ and is_own_file(module.__file__)]
    added = [module for module in added if module.__name__ not in cloudpickle.list_registry_pickle_by_value()]
    for module in added:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in added:
            cloudpickle.unregister_pickle_by_value(module)


def _modules(values: Sequence[Any]) -> list[ModuleType]:
    names = {getattr(value, "__module__", None) or type(value).__module__ for value in values}
    # cloudpickle treats __main__ so by itself
    found = [sys.modules.get(name) for name in sorted(names - {"__main__"})]
    return [module for module in found if module is not None and hasattr(module, "__file__")]


def _name(value: Any) -> str:
    return f"{type(value).__name__} {getattr(value, '__qualname__', '')}".strip()


def _can_pickle(value: Any) -> bool:
    try:
        cloudpickle.dumps(value)
    except Exception:
        return False
    return True
