"""Curves as an SVG without a library. Its colours are readable on white and on dark paper, which it leaves
transparent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from xml.sax.saxutils import escape

Curve = Sequence[tuple[float, float]]
WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 60, 16, 52, 44  # margins
INK = "#767676"  # contrast 4.5 with white, 4.2 with GitHub's dark paper
COLOURS = ("#2f81f7", "#d2691e", "#2e9e4f", "#b05fd0", "#d1495b", "#8a8a2a")


def chart(
    title: str, across: str, up: str, curves: Mapping[str, Curve], goal: float | None = None, log: bool = False
) -> str:
    """The curves with points, axes and a legend; `goal` is a dashed line. The vertical axis begins at 0, or is
    logarithmic, for values above 0."""
    xs = [x for curve in curves.values() for x, _ in curve]
    ys = [y for curve in curves.values() for _, y in curve] + ([] if goal is None else [goal])
    across_ticks, up_ticks = ticks(min(xs), max(xs)), decades(min(ys), max(ys)) if log else ticks(0, max(ys))
    scale = math.log if log else float
    place = _Place((across_ticks[0], across_ticks[-1]), (scale(up_ticks[0]), scale(up_ticks[-1])))

    def at(x: float, y: float) -> tuple[float, float]:
        return place(x, scale(y))

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="sans-serif" font-size="12" fill="{INK}">',
        f"<title>{escape(title)}</title>",
        _text(LEFT, 16, title, ' font-weight="bold"'),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, across, ' text-anchor="middle"'),
        f'<g transform="translate(14 {(TOP + HEIGHT - BOTTOM) / 2:g}) rotate(-90)">{_text(0, 0, up, _MIDDLE)}</g>',
    ]
    for tick in up_ticks:
        x, y = at(across_ticks[0], tick)
        parts += [_line([(x, y), (WIDTH - RIGHT, y)], INK, 0.3), _text(x - 6, y + 4, f"{tick:g}", ' text-anchor="end"')]
    for tick in across_ticks:
        x, y = at(tick, up_ticks[0])
        parts += [_line([(x, y), (x, y + 4)], INK), _text(x, y + 18, f"{tick:g}", _MIDDLE)]
    if goal is not None:
        parts.append(_line([at(across_ticks[0], goal), at(across_ticks[-1], goal)], INK, 1, ' stroke-dasharray="6 4"'))
    beside = LEFT
    for (name, curve), colour in zip(curves.items(), cycle(COLOURS), strict=False):
        points = [at(x, y) for x, y in curve]
        parts.append(_line(points, colour, 2))
        if len(points) <= 16:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in points]
        parts += [_line([(beside, 34), (beside + 18, 34)], colour, 3), _text(beside + 23, 38, name)]
        beside += 37 + round(6.2 * len(name))
    return "\n".join([*parts, "</svg>", ""])


_MIDDLE = ' text-anchor="middle"'


class _Place:
    """From values to pixels."""

    def __init__(self, across: tuple[float, float], up: tuple[float, float]):
        self._across, self._up = across, up

    def __call__(self, x: float, y: float) -> tuple[float, float]:
        (left, right), (low, high) = self._across, self._up
        return (
            LEFT + (x - left) / (right - left) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM),
        )


def ticks(low: float, high: float) -> list[float]:
    """At most eight round numbers, the first at or below `low`, the last at or above `high`."""
    rough = (high - low) / 6 or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(k * power for k in (1, 2, 5, 10) if k * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten, the first at or below `low`, the last at or above `high`."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    round_numbers = [k * 10.0**power for power in powers for k in (1, 2, 5)]
    first = max(i for i, number in enumerate(round_numbers) if number <= low * (1 + 1e-9))
    last = min(i for i, number in enumerate(round_numbers) if number >= high * (1 - 1e-9))
    return round_numbers[first : max(last, first + 1) + 1]


def _text(x: float, y: float, words: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}"{more}>{escape(words)}</text>'


def _line(points: Sequence[tuple[float, float]], colour: str, width: float = 1, more: str = "") -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width:g}"{more}/>'
