"""When a unit acts: the steps of a run as fractions, and the windows that select some of them."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import NamedTuple


class Span(NamedTuple):
    """The start and end of one step as fractions 0..1 of its run."""

    start: float
    end: float


@dataclass(frozen=True)
class Window:
    """The part of a run in which a unit acts, as fractions 0..1.

    Raises TypeError when an end is not a number, ValueError when it is outside 0..1 or `start` is greater than `end`.
    """

    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (("start", self.start), ("end", self.end)):
            if not isinstance(value, Real) or isinstance(value, bool):
                raise TypeError(f"window {name} {value!r} is {type(value).__name__}, expected a number 0..1")
            if not 0 <= value <= 1:  # also refuses NaN
                raise ValueError(f"window {name} {value} is outside 0..1")
        if self.start > self.end:
            raise ValueError(f"window start {self.start} lies behind its end {self.end}")

    def contains(self, span: Span) -> bool:
        """Return True if the whole step lies in the window.

        This is the rule of diffusers (0.42, pipeline_controlnet.py, `controlnet_keep`).
        """
        return span.start >= self.start and span.end <= self.end

    def __str__(self) -> str:
        return f"{self.start:g}..{self.end:g}"


class WebuiWindow(Window):
    """A window with the rule of sd-webui-controlnet: a step acts if it begins in the window, both ends included."""

    def contains(self, span: Span) -> bool:
        """Return True if the step begins in the window."""
        return self.start <= span.start <= self.end
