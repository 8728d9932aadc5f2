"""Wording of refusals: every error message is one line that names what was given and what was expected.

Functions here build text or re-raise; the checks themselves stand where the values are known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager


def one_line(error: BaseException | str, limit: int | None = None) -> str:
    """Return the text of `error` on one line, cut after `limit` characters; of an error without text, its type."""
    text = " ".join(str(error).split())
    if not text and isinstance(error, BaseException):
        text = type(error).__name__
    return text[:limit]


def quote_value(value: object, limit: int = 40) -> str:
    """Return the `repr` of a foreign value on one line, with an ellipsis where it is longer than `limit` characters."""
    text = " ".join(repr(value).split())  # the repr of an array has several lines
    return text if len(text) <= limit else text[: limit - 1] + "…"


@contextmanager
def error_prefix(name: str) -> Iterator[None]:
    """Prefix errors about input with `name`: `ValueError("x")` inside becomes `ValueError("name: x")`.

    FileNotFoundError, TypeError and ValueError keep their type; other errors pass unchanged.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{name}: {error}") from error
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Raise ValueError unless `value` is one of `choices`, such as `mode 'x' is none of: balanced, prompt, control`."""
    choices = tuple(choices)
    if value not in choices:
        raise ValueError(f"{name} {quote_value(value, 80)} is none of: {', '.join(choices)}")


def suggest_names(message: str, name: str, known_names: Iterable[str]) -> str:
    """Append the known names most like `name` to `message`: `unknown command 'x', the nearest are: a, b, c`."""
    return f"{message}, the nearest are: {closest_names(name, known_names)}"


def closest_names(name: str, known_names: Iterable[str]) -> str:
    """Return the three known names most like `name`, comma-separated: those that contain it, then by common letters."""
    from difflib import SequenceMatcher  # only where something is wrong already

    name = name.casefold()[:80]
    alike = {other: SequenceMatcher(None, name, other.casefold()).ratio() for other in known_names}
    return ", ".join(sorted(alike, key=lambda other: (name not in other.casefold(), -alike[other]))[:3])
