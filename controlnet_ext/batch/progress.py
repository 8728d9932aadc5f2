"""How far a job is, on stderr: one line that is written over on a terminal, one a minute elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

TERMINAL, ELSEWHERE = 0.2, 60.0  # seconds between two
LINES = 20  # of errors; the others are only counted, and in the errors file


class Progress:
    """Counts pictures of a source, which has `total` if that is known. Those that are done already, or another shard's,
    come between: the time left is by how fast the place in the source grows, the rate by how many were done."""

    def __init__(self, total: int | None, say: Callable[[str], None]):
        self._total, self._say = total, say
        self._terminal = sys.stderr.isatty()
        self._begin = self._last = time.monotonic()
        self._first: int | None = None
        self._count = self._errors = 0

    def add(self, index: int) -> None:
        """The picture at this place in the source is done."""
        self._first = index if self._first is None else self._first
        self._count += 1
        now = time.monotonic()
        if now - self._last >= (TERMINAL if self._terminal else ELSEWHERE):
            self._last, seconds = now, now - self._begin
            rate = f"{self._count / seconds:.1f} a second"
            if self._total is None:
                self._show(f"{index + 1} pictures, {rate}")
            else:
                left = duration((self._total - index - 1) * seconds / (index + 1 - self._first))
                self._show(f"{index + 1} of {self._total} pictures, {rate}, {left} left")

    def error(self, words: str) -> None:
        """A line of its own for something that failed, for the first of them."""
        self._errors += 1
        if self._errors <= LINES:
            self._clear()
            self._say(f"controlnet-ext: {words}")

    def close(self) -> None:
        self._clear()

    def _show(self, words: str) -> None:
        if self._terminal:
            print(f"\r\x1b[K{words}", end="", file=sys.stderr, flush=True)
        else:
            self._say(words)

    def _clear(self) -> None:
        if self._terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: 1:02:03."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
