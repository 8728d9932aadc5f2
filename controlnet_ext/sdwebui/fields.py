"""Values in a JSON object, however a client writes them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")
TRUE, FALSE = ("true", "1", "1.0", "on", "yes"), ("false", "0", "0.0", "off", "no")
NOTHING = ("", "none", "null")  # which text may say, in any case


def empty(value: Any) -> bool:
    """Whether a value says nothing: null, "", "None", an empty list."""
    if isinstance(value, str):
        return value.strip().casefold() in NOTHING
    return value is None or (isinstance(value, list) and not value)


def shown(value: Any) -> str:
    """A value for an error message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


@dataclass(frozen=True)
class Fields:
    """An object's fields by name; where a method takes several names, the later ones are aliases. `where` begins error
    messages, which are ValueErrors with the field's name and value."""

    values: Mapping[str, Any]
    where: str

    @classmethod
    def of(cls, value: Any, where: str) -> Fields:
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} is {shown(value)}, expected a JSON object")
        return cls(value, where)

    def get(self, *names: str) -> Any:
        """What the field says, None for nothing."""
        said = [name for name in names if not empty(self.values.get(name))]
        if len(said) > 1 and self.values[said[0]] != self.values[said[1]]:
            raise ValueError(f"{self.where}: {said[0]} and {said[1]} are one field and differ")
        return self.values[said[0]] if said else None

    def text(self, name: str, default: str = "") -> str:
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.wrong(name, value, "text")
        return value

    def flag(self, *names: str, default: bool = False) -> bool:
        value = self.get(*names)
        if value is None:
            return default
        key = str(value).strip().casefold()
        if isinstance(value, list | dict) or key not in (*TRUE, *FALSE):
            raise self.wrong(names[0], value, "true or false")
        return key in TRUE

    def number(self, *names: str, default: float, low: float, high: float) -> float:
        """A number low..high, written as such or as text."""
        value = self.get(*names)
        if value is None:
            return default
        expected = f"a number {low:g}..{high:g}"
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise self.wrong(names[0], value, expected)
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
        if not low <= number <= high:  # NaN neither
            raise self.wrong(names[0], value, expected)
        return number

    def whole(self, *names: str, default: int, low: int, high: int) -> int:
        """A whole number low..high; 20.0 is one."""
        value = self.get(*names)
        if type(value) is int and low <= value <= high:
            return value  # all digits of a seed
        number = self.number(*names, default=default, low=low, high=high)
        if number != int(number):
            raise self.wrong(names[0], value, f"a whole number {low}..{high}")
        return int(number)

    def choice(self, *names: str, among: Sequence[tuple[str, T]], default: T) -> T:
        """What a word stands for, in any case, or its place, from 0."""
        value = self.get(*names)
        if value is None:
            return default
        key = str(value).strip().casefold().removesuffix(".0")
        for i, (word, meaning) in enumerate(among):
            if not isinstance(value, bool | list | dict) and key in (word.casefold(), str(i)):
                return meaning
        raise self.wrong(names[0], value, "one of " + ", ".join(repr(word) for word, _ in among))

    def wrong(self, name: str, value: Any, expected: str) -> ValueError:
        return ValueError(f"{self.where}: {name} is {shown(value)}, expected {expected}")
