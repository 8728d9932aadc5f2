"""Curves as an SVG without a library. Its colours are readable on white and on dark paper, which it leaves
transparent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from xml.sax.saxutils import escape

Curve = Sequence[tuple[float, float]]
WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 60, 24, 52, 44  # margins
INK = "#767676"  # contrast 4.5 with white, 4.2 with GitHub's dark paper
MIDDLE = 'text-anchor="middle"'
FEW = 16  # points that are worth a dot
COLOURS = ("#2f81f7", "#d2691e", "#2e9e4f", "#b05fd0", "#d1495b", "#8a8a2a")


def chart(title: str, across: str, up: str, curves: Mapping[str, Curve], log: bool = False) -> str:
    """The curves with axes and a legend, and points where they are few. The vertical axis begins at 0, or is
    logarithmic, for values above 0."""
    xs, ys = zip(*(point for curve in curves.values() for point in curve), strict=True)
    columns, rows = ticks(min(xs), max(xs)), decades(min(ys), max(ys)) if log else ticks(0, max(ys))
    scale = math.log if log else float

    def at(x: float, y: float) -> tuple[float, float]:
        right = (x - columns[0]) / (columns[-1] - columns[0])
        above = (scale(y) - scale(rows[0])) / (scale(rows[-1]) - scale(rows[0]))
        return LEFT + right * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - above * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="sans-serif" font-size="12" fill="{INK}">',
        f"<title>{escape(title)}</title>",
        _text(LEFT, 16, title, 'font-weight="bold"'),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, across, MIDDLE),
        _text(0, 0, up, f'{MIDDLE} transform="translate(14 {(TOP + HEIGHT - BOTTOM) / 2:g}) rotate(-90)"'),
    ]
    for tick in rows:
        x, y = at(columns[0], tick)
        parts += [_line([(x, y), (WIDTH - RIGHT, y)], INK, 0.3), _text(x - 6, y + 4, f"{tick:g}", 'text-anchor="end"')]
    for tick in columns:
        x, y = at(tick, rows[0])
        parts += [_line([(x, y), (x, y + 4)], INK, 1), _text(x, y + 18, f"{tick:g}", MIDDLE)]
    beside = LEFT
    for (name, curve), colour in zip(curves.items(), cycle(COLOURS), strict=False):
        points = [at(x, y) for x, y in curve]
        parts += [_line(points, colour, 2), _line([(beside, 34), (beside + 18, 34)], colour, 3)]
        parts.append(_text(beside + 23, 38, name))
        beside += 37 + round(6.2 * len(name))
        if len(points) <= FEW:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in points]
    return "\n".join([*parts, "</svg>", ""])


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
    return f'<text x="{x:.1f}" y="{y:.1f}" {more}>{escape(words)}</text>'


def _line(points: Sequence[tuple[float, float]], colour: str, width: float) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width:g}"/>'
