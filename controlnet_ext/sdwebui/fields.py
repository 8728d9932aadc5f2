"""Values in a JSON object, however a client writes them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")
TRUE_WORDS, FALSE_WORDS = ("true", "1", "1.0", "on", "yes"), ("false", "0", "0.0", "off", "no")
EMPTY_WORDS = ("", "none", "null")  # which text may say, in any case


def is_empty_value(value: Any) -> bool:
    """Whether a value says nothing: null, "", "None", an empty list."""
    if isinstance(value, str):
        return value.strip().casefold() in EMPTY_WORDS
    return value is None or (isinstance(value, list) and not value)


def format_value(value: Any) -> str:
    """A value for an error message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


@dataclass(frozen=True)
class JsonFields:
    """An object's fields by name; where a method takes several names, the later ones are aliases. `where` begins error
    messages, which are ValueErrors with the field's name and value."""

    values: Mapping[str, Any]
    owner: str

    @classmethod
    def from_json(cls, value: Any, owner: str) -> JsonFields:
        if not isinstance(value, Mapping):
            raise ValueError(f"{owner} is {format_value(value)}, expected a JSON object")
        return cls(value, owner)

    def get(self, *names: str) -> Any:
        """What the field says, None for nothing."""
        said = [name for name in names if not is_empty_value(self.values.get(name))]
        if len(said) > 1 and self.values[said[0]] != self.values[said[1]]:
            raise ValueError(f"{self.owner}: {said[0]} and {said[1]} are one field and differ")
        return self.values[said[0]] if said else None

    def get_text(self, name: str, default: str = "") -> str:
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.make_error(name, value, "text")
        return value

    def get_bool(self, *names: str, default: bool = False) -> bool:
        value = self.get(*names)
        if value is None:
            return default
        key = str(value).strip().casefold()
        if isinstance(value, list | dict) or key not in (*TRUE_WORDS, *FALSE_WORDS):
            raise self.make_error(names[0], value, "true or false")
        return key in TRUE_WORDS

    def get_number(self, *names: str, default: float, low: float, high: float) -> float:
        """A number low..high, written as such or as text."""
        value = self.get(*names)
        if value is None:
            return default
        expected = f"a number {low:g}..{high:g}"
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise self.make_error(names[0], value, expected)
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
        if not low <= number <= high:  # NaN neither
            raise self.make_error(names[0], value, expected)
        return number

    def get_int(self, *names: str, default: int, low: int, high: int) -> int:
        """A whole number low..high; 20.0 is one."""
        value = self.get(*names)
        if type(value) is int and low <= value <= high:
            return value  # all digits of a seed
        number = self.get_number(*names, default=default, low=low, high=high)
        if number != int(number):
            raise self.make_error(names[0], value, f"a whole number {low}..{high}")
        return int(number)

    def get_choice(self, *names: str, choices: Sequence[tuple[str, T]], default: T) -> T:
        """What a word stands for, in any case, or its place, from 0."""
        value = self.get(*names)
        if value is None:
            return default
        key = str(value).strip().casefold().removesuffix(".0")
        for i, (word, meaning) in enumerate(choices):
            if not isinstance(value, bool | list | dict) and key in (word.casefold(), str(i)):
                return meaning
        raise self.make_error(names[0], value, "one of " + ", ".join(repr(word) for word, _ in choices))

    def make_error(self, name: str, value: Any, expected: str) -> ValueError:
        return ValueError(f"{self.owner}: {name} is {format_value(value)}, expected {expected}")
