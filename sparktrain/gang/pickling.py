"""What is sent to the ranks: a function with its arguments, pickled with a word about what can't be."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FunctionType, ModuleType
from typing import Any

import cloudpickle

from sparktrain.errors import NotPicklable
from sparktrain.runs.package import IMPORTING


def pickle_call(function: Callable[..., Any], args: Sequence[Any]) -> bytes:
    """Pickle a call.

    Raises:
        NotPicklable: naming the function or the arguments that are the reason.
    """
    try:
        return _pickled((function, tuple(args)))
    except Exception as error:
        names = [_name(value) for value in (function, *args) if not _can_pickle(value)]
        raise NotPicklable(names, f"{type(error).__name__}: {error}") from error


def check_picklable(value: Any) -> None:
    """Raise `NotPicklable` if a value can't be sent to the ranks."""
    if not _can_pickle(value):
        pickle_call(type, [value])


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
    """Name a value that can't be pickled, and down to what in it: "Task, in its .model.lock (a lock)"."""
    name = f"{type(value).__name__} {getattr(value, '__qualname__', '')}".strip()
    path, inner = _reason_in(value, depth=6)
    return f"{name}, in its {path} (a {type(inner).__name__})" if path else name


def _reason_in(value: Any, depth: int) -> tuple[str, Any]:
    """The way to the innermost part that can't be pickled, "" if it is `value` itself."""
    for step, part in _parts(value) if depth else ():
        if not _can_pickle(part):
            path, inner = _reason_in(part, depth - 1)
            return step + path, inner
    return "", value


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, list | tuple):
        yield from ((f"[{number}]", part) for number, part in enumerate(value))
    elif isinstance(value, FunctionType):
        names = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        with suppress(ValueError):  # a variable that has no value yet
            yield from ((f".{name}", cell.cell_contents) for name, cell in names)
    elif hasattr(value, "__dict__") and not isinstance(value, type | ModuleType):
        yield from ((f".{name}", part) for name, part in vars(value).items())


def _can_pickle(value: Any) -> bool:
    try:
        _pickled(value)
    except Exception:
        return False
    return True


def _pickled(value: Any) -> bytes:
    with IMPORTING:  # a class whose module is not there for now would be pickled with its code
        pickled: bytes = cloudpickle.dumps(value)
    return pickled
