"""The charts of a report, as values that the page and the image draw each in its own way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..stopping import Row
from ..verdict import compute_gap, has_losses
from .contents import ReportContents

TRAINING_COLOR, HELD_OUT_COLOR, UNGUIDED_COLOR, FIDELITY_COLOR = "#2f6fde", "#e0631c", "#9aa0a8", "#0f8a6d"
QUARTILE_COLORS = ("#a9c9f5", "#6ea3ea", "#3a74cc", "#173f86")  # the least noise first
MAX_STRETCH = 3.0  # times that losses without control may stretch the range of the others
QUARTILE_NAMES = ("least noise", "second quarter", "third quarter", "most noise")


@dataclass(frozen=True)
class Line:
    """A line of a chart: (step, value) of each measurement."""

    name: str
    color: str
    points: Sequence[tuple[float, float]]
    is_dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """Lines over the steps.

    has_zero: True if the value 0 is a level of its own, which is drawn. is_percent: values are shares.
    """

    title: str
    subtitle: str
    lines: Sequence[Line]
    has_zero: bool = False
    is_percent: bool = False

    @property
    def value_range(self) -> tuple[float, float]:
        """The lowest and the highest value to show."""
        values = [value for line in self.lines for _, value in line.points]
        low, high = min(values, default=0.0), max(values, default=1.0)
        if self.has_zero:
            low, high = min(low, 0.0), max(high, 0.0)
        room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
        return low - room, high + room

    def format_value(self, value: float) -> str:
        """Return a value as text."""
        return f"{100 * value:.3g} %" if self.is_percent else f"{value:.3g}"


def build_charts(contents: ReportContents) -> list[Chart]:
    """Return the charts of what was measured: losses, gain by noise level, the gap, fidelity."""
    rows = contents.rows
    charts = [_build_loss_chart(rows)]
    quartiles = [_read_points(rows, f"gain_q{i}") for i in range(1, 5)]
    if any(quartiles):
        lines = [
            Line(*each)
            for each in zip(reversed(QUARTILE_NAMES), reversed(QUARTILE_COLORS), reversed(quartiles), strict=True)
        ]
        charts.append(Chart("Gain by noise level", "held-out loss without control minus with it", lines, True))
    gaps = [(row["step"], compute_gap(row)) for row in rows if has_losses(row)]
    charts.append(
        Chart(
            "The gap",
            "what control gains on training images and not on held-out ones",
            [Line("gap", HELD_OUT_COLOR, gaps)],
            True,
        )
    )
    shares = _read_points(rows, "fidelity_share")
    if shares:
        lines = [
            Line("generated images", FIDELITY_COLOR, shares),
            Line("source images (100 %)", UNGUIDED_COLOR, [(step, 1.0) for step, _ in shares], True),
        ]
        note = f"{_name_score(contents)}; 0 %: without control"
        charts.append(Chart("Fidelity of generated held-out images", note, lines, True, is_percent=True))
    return charts


def _build_loss_chart(rows: Sequence[Row]) -> Chart:
    """Return the chart of the losses; those without control are words where as lines they would flatten the rest."""
    lines = [
        Line("training", TRAINING_COLOR, _read_points(rows, "training")),
        Line("held-out", HELD_OUT_COLOR, _read_points(rows, "held_out")),
    ]
    baselines = [
        Line("training, no control", TRAINING_COLOR, _read_points(rows, "training_unguided"), True),
        Line("held-out, no control", HELD_OUT_COLOR, _read_points(rows, "held_out_unguided"), True),
    ]
    with_baselines = Chart("Losses", "fixed noise; dashed: the model without control", [*lines, *baselines])
    alone = Chart("Losses", "fixed noise", lines)
    (low, high), (lowest, highest) = alone.value_range, with_baselines.value_range
    if highest - lowest <= MAX_STRETCH * (high - low) or not all(line.points for line in baselines):
        return with_baselines
    levels = " and ".join(f"{line.points[-1][1]:.4g}" for line in baselines)
    return replace(alone, subtitle=f"fixed noise; without control they are {levels}")


def compute_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round numbers from `low` to `high`, about `count` of them."""
    raw = (high - low) / count
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(scale * factor for factor in (1, 2, 2.5, 5, 10) if 1.3 * scale * factor >= raw)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _read_points(rows: Sequence[Row], key: str) -> list[tuple[float, float]]:
    return [(row["step"], row[key]) for row in rows if key in row and math.isfinite(row[key])]


def _name_score(contents: ReportContents) -> str:
    bounds = contents.bounds
    return f"{bounds['measure']}, {bounds['score']}" if "measure" in bounds else "score"
