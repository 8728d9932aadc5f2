"""Parameters of a preprocessor, from its signature: the one source of flags, sliders and checks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from numbers import Integral, Real
from typing import Any, get_args, get_type_hints

import numpy as np

from ..errors import quote_value


@dataclass(frozen=True)
class Range:
    """The values of a number, both ends included: `Annotated[int, Range(0, 255)]`. Raises ValueError for an end that
    is not finite."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise ValueError(f"a range from {self.low} to {self.high}, expected two finite numbers, the lower first")

    def __str__(self) -> str:
        return f"{self.low:.10g}..{self.high:.10g}"


@dataclass(frozen=True)
class Parameter:
    """A parameter of type int, float or bool; numbers have a range. A default of None means that None is allowed."""

    name: str
    type: type
    default: Any
    range: Range | None = None

    @property
    def expected(self) -> str:
        """The legal values in words."""
        return {int: f"a whole number {self.range}", float: f"a number {self.range}", bool: "true or false"}[self.type]

    def check(self, value: object) -> Any:
        """Return the value as the declared type.

        Raises TypeError for another type (a bool is no number, 1.0 is no whole number), ValueError outside the range.
        """
        if value is None and self.default is None:
            return None
        types: Any = {int: Integral, float: Real, bool: (bool, np.bool_)}[self.type]
        if not isinstance(value, types) or (isinstance(value, bool) and self.type is not bool):
            raise TypeError(f"{self.name} {quote_value(value)} is {type(value).__name__}, expected {self.expected}")
        if self.range and not self.range.low <= value <= self.range.high:  # NaN is outside too
            raise ValueError(f"{self.name} {value!s:.40} is outside {self.range}")
        return self.type(value)

    def parse(self, text: str) -> Any:
        """Return the value of a text, as on a command line. Raises ValueError."""
        try:
            value = {"true": True, "false": False}[text.lower()] if self.type is bool else self.type(text)
        except (KeyError, ValueError):
            raise ValueError(f"{self.name} {text!r:.40}: expected {self.expected}") from None
        return self.check(value)


def read_parameters(function: Callable[..., Any], skip: int) -> tuple[Parameter, ...]:
    """Return the parameters of `function` after the first `skip`.

    Raises TypeError when one has no default or an unknown type, and what `Parameter.check` raises for its default.
    """
    hints = get_type_hints(function, include_extras=True)
    return tuple(
        _parse_parameter(p.name, p.default, hints.get(p.name))
        for p in list(signature(function).parameters.values())[skip:]
    )


def _parse_parameter(name: str, default: object, annotation: object) -> Parameter:
    if type(None) in get_args(annotation):
        annotation = get_args(annotation)[0]
    kind, *notes = get_args(annotation) or (annotation,)
    limits = notes[0] if notes and isinstance(notes[0], Range) else None
    if kind not in (int, float, bool) or (limits is None) is not (kind is bool):
        raise TypeError(
            f"{name}: {annotation} is none of bool, Annotated[int, Range(low, high)], Annotated[float, "
            "Range(low, high)]"
        )
    parameter = Parameter(name, kind, default, limits)
    parameter.check(default)
    return parameter
