"""How rows are divided into training, validation and test: the options, and what is wrong with them together.

Imports neither Spark nor torch, as all of the configuration.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

_SPLIT_OPTIONS = {  # what each method uses
    "hash": ("validation", "test", "seed"),
    "random": ("validation", "test", "seed"),
    "stratified": ("validation", "test", "seed", "column", "fractions"),
    "time": ("column", "validation_from", "test_from"),
    "column": ("column",),
}


class _Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SplitFractions(_Options):
    """Fractions of the rows that have one value."""

    validation: float = Field(ge=0.0, lt=1.0)
    test: float = Field(ge=0.0, lt=1.0)


class SplitConfig(_Options):
    """Which rows are for training, validation and test. An option that the method does not use is None."""

    method: Literal["hash", "random", "time", "stratified", "column"] = Field(
        "hash",
        description="hash: of the row's key; random: of the whole row; time: by a column's boundaries; "
        "stratified: hash with fractions by a column's value; column: a column holds the split's name",
    )
    validation: float | None = Field(0.1, ge=0.0, lt=1.0, description="fraction of rows")
    test: float | None = Field(0.1, ge=0.0, lt=1.0, description="fraction of rows")
    seed: int | None = Field(0, description="of the hash: another one divides the rows anew")
    column: str | None = Field(None, min_length=1, description="raw column of time, stratified and column")
    validation_from: int | float | str | None = Field(
        None, description="time: rows before are for training; a number or an ISO timestamp (UTC)"
    )
    test_from: int | float | str | None = Field(None, description="time: rows from here on are for test")
    fractions: dict[str, SplitFractions] = Field(
        default_factory=dict, description="stratified: by the column's value, as text; all others: as above"
    )

    @field_validator("validation_from", "test_from", mode="before")
    @classmethod
    def _is_instant(cls, given: object) -> object:
        if given is None:
            return None
        given = given.isoformat() if isinstance(given, date) else given  # as YAML reads an unquoted one
        instant(given)
        return given

    @field_validator("fractions", mode="before")
    @classmethod
    def _by_text(cls, fractions: object) -> object:
        if not isinstance(fractions, Mapping):
            return {} if fractions is None else fractions
        return {str(v).lower() if isinstance(v, bool) else str(v): f for v, f in fractions.items()}

    @model_validator(mode="wrap")
    @classmethod
    def _fits_together(cls, given: Any, build: ModelWrapValidatorHandler[Self]) -> Self:
        """Tell all problems at once: those of single options and those of options beside each other."""
        if not isinstance(given, Mapping):
            return build(given)
        method = given.get("method", "hash")
        used = _SPLIT_OPTIONS.get(method) if isinstance(method, str) else None
        unused = {} if used is None else {o: None for o in ("validation", "test", "seed") if o not in used}
        found: list[InitErrorDetails] = []
        values: dict[str, Any] = {**unused, **given}
        try:
            config = build(values)
        except ValidationError as error:
            found += [
                _problem(p["loc"], p["msg"])
                if p["type"] == "value_error"
                else InitErrorDetails(type=p["type"], loc=p["loc"], input=p["input"], ctx=p.get("ctx", {}))
                for p in error.errors()
            ]
        else:
            values = dict(config)
        seen = {problem["loc"] for problem in found}
        if used is not None:
            found += [p for p in _split_problems(method, used, values) if p["loc"] not in seen]
        if found:
            raise ValidationError.from_exception_data(cls.__name__, found)
        return config

    @property
    def wanted(self) -> tuple[str, ...]:
        """The splits that are asked for, so that each must get a row: train, and by fraction or boundary."""
        by_value = self.fractions.values()
        validation = self.validation_from is not None or any(
            [self.validation, *(f.validation for f in by_value)]
        )
        test = self.test_from is not None or any([self.test, *(f.test for f in by_value)])
        return ("train", *(["validation"] if validation else []), *(["test"] if test else []))


def instant(given: object) -> int | float | datetime:
    """A boundary in time: a number as it is, ISO text as a datetime, in UTC where it names no zone.

    Raises:
        ValueError: anything else.
    """
    if isinstance(given, (int, float)) and not isinstance(given, bool) and math.isfinite(given):
        return given
    if isinstance(given, str):
        try:
            read = datetime.fromisoformat(given)
        except ValueError:
            pass
        else:
            return read if read.tzinfo else read.replace(tzinfo=UTC)
    raise ValueError(f"{given!r} is neither a number nor an ISO timestamp such as 2013-11-01T00:00:00")


def _split_problems(
    method: str, used: Sequence[str], values: Mapping[str, Any]
) -> Iterator[InitErrorDetails]:
    """What is wrong with options beside each other; values of another type than theirs are passed over."""

    options = [name for name in SplitConfig.model_fields if name != "method"]
    for option in options:
        if option not in used and values.get(option) not in (None, {}):
            users = [name for name, takes in _SPLIT_OPTIONS.items() if option in takes]
            way_out = f"leave it empty, or set prepare.split.method to {_listed(users)}"
            yield _problem((option,), f"method {method} does not use it; {way_out}")
    for option in ("validation", "test", "seed"):
        if option in used and option in values and values[option] is None:
            default = SplitConfig.model_fields[option].default
            yield _problem((option,), f"method {method} needs a number; leave it out for {default}")
    if "column" in used and values.get("column") is None:
        yield _problem(("column",), f"method {method} needs it; name a column of the raw rows")
    if method == "stratified" and not values.get("fractions"):
        way_out = "give {value: {validation: …, test: …}}, or set prepare.split.method to hash"
        yield _problem(("fractions",), f"method stratified needs them; {way_out}")
    if method == "time":
        text = _boundary_problem(values.get("validation_from"), values.get("test_from"))
        if text:
            yield _problem(("validation_from",), text)
    if "validation" in used:
        general = {
            name: values.get(name, SplitConfig.model_fields[name].default) for name in ("validation", "test")
        }
        if text := _sum_problem(general):
            yield _problem((), text)
        by_value = values.get("fractions") or {}
        for value, fractions in by_value.items() if isinstance(by_value, Mapping) else ():
            if text := _sum_problem(dict(fractions) if isinstance(fractions, (Mapping, BaseModel)) else {}):
                yield _problem(("fractions",), f"for {value!r}, {text}")


def _problem(location: tuple[int | str, ...], text: str) -> InitErrorDetails:
    return InitErrorDetails(
        type=PydanticCustomError("value_error", "{text}", {"text": text}), loc=location, input=None
    )


def _listed(names: Sequence[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _sum_problem(fractions: Mapping[str, Any]) -> str | None:
    parts = [fractions.get("validation"), fractions.get("test")]
    total = sum(part for part in parts if isinstance(part, (int, float)) and 0 <= part < 1)
    if total >= 1.0:
        return f"validation + test is {total:g}: nothing is left to train on; keep the sum below 1"
    return None


def _boundary_problem(validation_from: object, test_from: object) -> str | None:
    if validation_from is None and test_from is None:
        return "method time needs it, or test_from, or both: a number or an ISO timestamp"
    if validation_from is None or test_from is None:
        return None
    try:
        first, last = instant(validation_from), instant(test_from)
    except ValueError:
        return None  # told of the option itself
    if isinstance(first, datetime) != isinstance(last, datetime):
        return f"it is {validation_from!r}, test_from is {test_from!r}; give two numbers or two timestamps"
    if not first < last:  # type: ignore[operator]  # both are numbers, or both are datetimes
        return f"it is {validation_from}, test_from is {test_from}; test rows come after those of validation"
    return None
