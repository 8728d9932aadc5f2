"""Fields of JSON objects, each declared once: the declaration reads the value, and describes it in a JSON schema.

A class per kind of object, such as `UnitFields`, derives from `JsonObject` and declares its fields as attributes.
The reader takes values through these attributes only, so that schema, documentation and reader have the same fields.
Written without pydantic, because stable-diffusion-webui has version 1 of it and other environments version 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, Generic, TypeVar, overload

from ..errors import quote_value, suggest_names

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
D = TypeVar("D")  # type of a default
Schema = dict[str, Any]

TRUE_WORDS, FALSE_WORDS = ("true", "1", "1.0", "on", "yes"), ("false", "0", "0.0", "off", "no")
EMPTY_WORDS = ("", "none", "null")  # text that means no value, in any case
MAX_WARNINGS = 8  # of one object
IMAGE_REF: Schema = {"$ref": "#/components/schemas/Image"}


@dataclass(frozen=True)
class RequestLimits:
    """The most that one request may ask for: units, pixels on a side of an image, steps of a pass, images."""

    max_units: int = 3
    max_side: int = 2048
    max_steps: int = 150
    max_images: int = 16


Bound = float | Callable[[RequestLimits], float]


def is_empty_value(value: object) -> bool:
    """Return True for what means no value: null, "", "None", an empty list."""
    if isinstance(value, str):
        return value.strip().casefold() in EMPTY_WORDS
    return value is None or (isinstance(value, list) and not value)


def format_value(value: object) -> str:
    """Return the `repr` of a value for an error message, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class JsonObject:
    """A JSON object whose fields are the `Field` attributes of its class; reading one reads, checks and converts it.

    `owner` names the object in error messages. Members without a field are ignored, as sd-webui-controlnet does.
    Raises ValueError where `values` is no JSON object.
    """

    schema_name: ClassVar[str] = ""  # name of the schema in an OpenAPI document
    ignored_names: ClassVar[frozenset[str]] = frozenset()  # members that clients send and that mean nothing here

    def __init__(self, values: object, owner: str, limits: RequestLimits = RequestLimits()):
        if not isinstance(values, Mapping):
            raise ValueError(f"{owner} is {format_value(values)}, expected a JSON object")
        self.values: Mapping[str, Any] = values
        self.owner, self.limits = owner, limits

    @classmethod
    def list_fields(cls) -> dict[str, Field[Any]]:
        """Return the fields by name, those of base classes first, in the order of declaration."""
        return {
            name: field for each in cls.__mro__[::-1] for name, field in vars(each).items() if isinstance(field, Field)
        }

    @classmethod
    def make_schema(cls, limits: RequestLimits, model_names: Sequence[str] = ()) -> Schema:
        """Return the JSON schema of the object within `limits`; `model_names` are the listed control models."""
        fields = cls.list_fields()
        refusals = [f"`{name}`" for name, each in fields.items() if isinstance(each, UnsupportedField)]
        required_names = [name for name, each in fields.items() if each.is_required]
        properties = {
            name: each.make_schema(limits, model_names)
            for name, each in fields.items()
            if not isinstance(each, UnsupportedField)
        }
        return {
            "type": "object",
            "properties": properties,
            **({"required": required_names} if required_names else {}),
            **({"description": f"Refused where they have a value: {', '.join(refusals)}"} if refusals else {}),
        }

    def find_value(self, *names: str) -> Any:
        """Return the value under the first of `names` that has one, or None.

        Raises ValueError where two of the names have different values.
        """
        present = [name for name in names if not is_empty_value(self.values.get(name))]
        if len(present) > 1 and self.values[present[0]] != self.values[present[1]]:
            raise ValueError(f"{self.owner}: {present[0]} and {present[1]} are one field and differ")
        return self.values[present[0]] if present else None

    def make_error(self, name: str, value: object, expected: str) -> ValueError:
        """Return the error for a field's value, in one line."""
        return ValueError(f"{self.owner}: {name} is {format_value(value)}, expected {expected}")

    def describe_unknown_members(self, consequence: str = "was ignored") -> list[str]:
        """Return a sentence for each member that is no field and none of `ignored_names`, with the nearest fields; for
        the first `MAX_WARNINGS` of them."""
        names = [name for field in self.list_fields().values() for name in (field.name, *field.aliases)]
        unknown = (name for name in self.values if name not in names and name not in self.ignored_names)
        return [
            suggest_names(f"{self.owner}: {quote_value(name, 80)} is no field and {consequence}", name, names)
            for name in islice(unknown, MAX_WARNINGS)
        ]

    def check_unsupported(self, table: type[JsonObject]) -> None:
        """Raise ValueError where an unsupported field that `table` itself declares has a value."""
        for field in vars(table).values():
            if isinstance(field, UnsupportedField):
                field.read(self)


class Field(Generic[T_co]):
    """A field of a `JsonObject`: any JSON value, read as it is; subclasses check and convert.

    `aliases` are further names of the field, `description` is what the schema and the documentation say about it,
    `schema` its JSON schema or a function of the limits that returns it.
    """

    name = ""  # the attribute's

    def __init__(
        self,
        description: str,
        schema: Schema | Callable[[RequestLimits], Schema],
        *,
        aliases: Sequence[str] = (),
        default: Any = None,
        is_required: bool = False,
    ):
        self.description, self.aliases, self.default = description, tuple(aliases), default
        self.is_required, self._schema = is_required, schema

    def __set_name__(self, owner: type[JsonObject], name: str) -> None:
        self.name = name

    @overload
    def __get__(self, record: None, owner: type[JsonObject]) -> Field[T_co]: ...
    @overload
    def __get__(self, record: JsonObject, owner: type[JsonObject]) -> T_co: ...
    def __get__(self, record: JsonObject | None, owner: type[JsonObject]) -> Field[T_co] | T_co:
        return self if record is None else self.read(record)

    def read(self, record: JsonObject) -> T_co:
        """Return the checked value of the field in `record`, or its default. Raises ValueError with its name."""
        value = record.find_value(self.name, *self.aliases)
        default: T_co = self.get_default(record.limits)
        return default if value is None else self.parse(value, record)

    def parse(self, value: Any, record: JsonObject) -> T_co:
        """Return the value in the field's type. Raises ValueError where it has none."""
        result: T_co = value
        return result

    def get_default(self, limits: RequestLimits) -> Any:
        """Return the value that the field has where none is given."""
        return self.default

    def make_schema(self, limits: RequestLimits, model_names: Sequence[str]) -> Schema:
        """Return the JSON schema of the field's canonical spellings; `parse` takes more."""
        schema = dict(self.make_value_schema(limits, model_names))
        words = [self.description, *(f"Also read as {name}" for name in self.aliases)]
        if "$ref" in schema:  # beside which OpenAPI 3.0 ignores what it does not replace
            schema = {"allOf": [schema]}
        return {**schema, "description": ". ".join(word.rstrip(".") for word in words if word)}

    def make_value_schema(self, limits: RequestLimits, model_names: Sequence[str]) -> Schema:
        """Return the JSON schema without the description."""
        return self._schema(limits) if callable(self._schema) else self._schema


class ImageField(Field[Any]):
    """Images in base64, read as they are: they are decoded where their number and sizes are checked."""

    def __init__(self, description: str, schema: Schema = IMAGE_REF, **options: Any):
        super().__init__(description, schema, **options)


class ObjectField(Field[T_co]):
    """An object within the object, with fields of its own; empty where there is none."""

    def __init__(self, description: str, table: Callable[[object, str, RequestLimits], T_co]):
        self._table: Any = table
        super().__init__(description, {})

    def read(self, record: JsonObject) -> T_co:
        """Return the object, named by the field alone in error messages."""
        inner: T_co = self._table(record.find_value(self.name) or {}, self.name, record.limits)
        return inner

    def make_value_schema(self, limits: RequestLimits, model_names: Sequence[str]) -> Schema:
        """Return the JSON schema without the description."""
        schema: Schema = self._table.make_schema(limits, model_names)
        return schema


class TextField(Field[str]):
    """Text. `list_names` returns the known values for a list of control models; the schema names them, and takes
    other text beside them, as readers take other spellings."""

    def __init__(
        self,
        description: str,
        default: str = "",
        *,
        max_length: int = 300,
        list_names: Callable[[Sequence[str]], Sequence[str]] | None = None,
        **options: Any,
    ):
        self.max_length, self.list_names = max_length, list_names
        super().__init__(description, {}, default=default, **options)

    def parse(self, value: object, record: JsonObject) -> str:
        """Return the text. Raises ValueError for all else."""
        if not isinstance(value, str):
            raise record.make_error(self.name, value, "text")
        return value

    def make_value_schema(self, limits: RequestLimits, model_names: Sequence[str]) -> Schema:
        """Return the JSON schema without the description."""
        text = {"type": "string", "maxLength": self.max_length}
        if self.list_names is None:
            return {**text, "default": self.default}
        return {"anyOf": [{"enum": list(self.list_names(model_names))}, text], "default": self.default}


class BoolField(Field[bool | D], Generic[D]):
    """True or false, also as 0 or 1 and as a word; `as_int` has the schema say 0 or 1, as the webui's own does."""

    def __init__(self, description: str, default: D, *, as_int: bool = False, **options: Any):
        schema: Schema = {"type": "integer", "minimum": 0, "maximum": 1} if as_int else {"type": "boolean"}
        if default is not None:
            schema["default"] = int(bool(default)) if as_int else default
        super().__init__(description, schema, default=default, **options)

    def parse(self, value: object, record: JsonObject) -> bool | D:
        """Return the boolean. Raises ValueError for other values."""
        key = str(value).strip().casefold()
        if isinstance(value, list | dict) or key not in (*TRUE_WORDS, *FALSE_WORDS):
            raise record.make_error(self.name, value, "true or false")
        return key in TRUE_WORDS


class NumberField(Field[float | D], Generic[D]):
    """A number from `low` to `high`, both included, also written as text. A bound may depend on the limits; a default
    outside the bounds becomes the nearest of them."""

    def __init__(self, description: str, default: D, low: Bound, high: Bound, **options: Any):
        self.low, self.high = low, high
        super().__init__(description, {}, default=default, **options)

    def get_bounds(self, limits: RequestLimits) -> tuple[float, float]:
        """Return the least and the greatest value."""
        low, high = (each(limits) if callable(each) else each for each in (self.low, self.high))
        return low, high

    def get_default(self, limits: RequestLimits) -> Any:
        """Return the default within the bounds, or None."""
        low, high = self.get_bounds(limits)
        return None if self.default is None else min(max(self.default, low), high)

    def parse(self, value: object, record: JsonObject) -> float | D:
        """Return the number. Raises ValueError for what is none, and outside the bounds."""
        low, high = self.get_bounds(record.limits)
        return _parse_number(self.name, value, record, low, high)

    def make_value_schema(self, limits: RequestLimits, model_names: Sequence[str]) -> Schema:
        """Return the JSON schema without the description."""
        low, high = self.get_bounds(limits)
        default = self.get_default(limits)
        schema = {"type": "number", "minimum": low, "maximum": high}
        return schema if default is None else {**schema, "default": default}


class IntField(Field[int | D], Generic[D]):
    """A whole number from `low` to `high`, also as 20.0 or as text."""

    def __init__(self, description: str, default: D, low: Bound, high: Bound, **options: Any):
        self._number = NumberField(description, default, low, high)
        super().__init__(description, {}, default=default, **options)

    def get_default(self, limits: RequestLimits) -> Any:
        """Return the default within the bounds, or None."""
        return self._number.get_default(limits)

    def parse(self, value: object, record: JsonObject) -> int | D:
        """Return the integer. Raises ValueError for other numbers, and outside the bounds."""
        low, high = self._number.get_bounds(record.limits)
        if type(value) is int and low <= value <= high:
            return value  # with all digits of a seed
        number = _parse_number(self.name, value, record, low, high)
        if number != int(number):
            raise record.make_error(self.name, value, f"a whole number {low}..{high}")
        return int(number)

    def make_value_schema(self, limits: RequestLimits, model_names: Sequence[str]) -> Schema:
        """Return the JSON schema without the description."""
        return {**self._number.make_value_schema(limits, model_names), "type": "integer"}


class NumberListField(Field[tuple[float, ...] | None]):
    """Up to `max_items` numbers from `low` to `high`; null is 0."""

    def __init__(self, description: str, low: float, high: float, max_items: int):
        self._low, self._high, self._max_items = low, high, max_items
        items = {"type": "number", "minimum": low, "maximum": high}
        super().__init__(description, {"type": "array", "items": items, "maxItems": max_items})

    def parse(self, value: object, record: JsonObject) -> tuple[float, ...]:
        """Return the numbers. Raises ValueError for what is no list of them, with the place in the list, from 0."""
        if not isinstance(value, list) or len(value) > self._max_items:
            raise record.make_error(self.name, value, "a list of numbers")
        inner = JsonObject({str(i): each for i, each in enumerate(value)}, f"{record.owner}: {self.name}")
        return tuple(
            0.0 if is_empty_value(each) else _parse_number(key, each, inner, self._low, self._high)
            for key, each in inner.values.items()
        )


class ChoiceField(Field[T | D], Generic[T, D]):
    """One of several words, in any case, or its place among them, from 0; `choices` are words with their meanings.
    `default` is a meaning. With `literal_none` "None" is a word like others, and places are not read."""

    def __init__(
        self,
        description: str,
        choices: Sequence[tuple[str, T]],
        default: D,
        *,
        literal_none: bool = False,
        **options: Any,
    ):
        self.choices, self._literal_none = tuple(choices), literal_none
        super().__init__(description, {}, default=default, **options)

    def read(self, record: JsonObject) -> T | D:
        """Return the meaning of the word, or the default. Raises ValueError with the field's name."""
        value = record.values.get(self.name)
        return self.parse(value, record) if self._literal_none and value else super().read(record)

    def parse(self, value: object, record: JsonObject) -> T | D:
        """Return the meaning of the word. Raises ValueError with the words that there are."""
        key = str(value).strip().casefold().removesuffix(".0")
        for i, (word, meaning) in enumerate(self.choices):
            keys = (word.casefold(),) if self._literal_none else (word.casefold(), str(i))
            if not isinstance(value, bool | list | dict) and key in keys:
                return meaning
        raise record.make_error(self.name, value, "one of " + ", ".join(repr(word) for word, _ in self.choices))

    def make_value_schema(self, limits: RequestLimits, model_names: Sequence[str]) -> Schema:
        """Return the JSON schema without the description."""
        words: Schema = {"enum": [word for word, _ in self.choices]}
        places = {"type": "integer", "minimum": 0, "maximum": len(self.choices) - 1}
        schema = words if self._literal_none else {"anyOf": [words, places]}
        default = next((word for word, meaning in self.choices if meaning == self.default), None)
        return schema if default is None else {**schema, "default": default}


class UnsupportedField(Field[None]):
    """A field that clients know and that is refused when it has a value. It is no property in the schema.

    `message` follows the field's name in the error. With `same_as` the value of that field is accepted too.
    """

    def __init__(self, message: str = "is not offered by this server", same_as: str | None = None):
        self._same_as = same_as
        super().__init__(message, {})

    def parse(self, value: object, record: JsonObject) -> None:
        """Raise ValueError unless the value is false, 0, or that of the field `same_as`."""
        is_zero = isinstance(value, bool | int | float) and value == 0
        if not is_zero and (self._same_as is None or value != record.find_value(self._same_as)):
            raise ValueError(f"{record.owner}: {self.name} {self.description}")


def _parse_number(name: str, value: object, record: JsonObject, low: float, high: float) -> float:
    expected = f"a number {low:g}..{high:g}"
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise record.make_error(name, value, expected)
    try:
        number = float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if not low <= number <= high:  # also NaN
        raise record.make_error(name, value, expected)
    return number
