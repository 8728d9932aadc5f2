"""The report as one image, drawn by matplotlib."""

from __future__ import annotations

import io
import textwrap
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from .charts import Chart, build_charts
from .contents import ReportContents

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, CHART_HEIGHT, STRIP_WIDTH, MAX_STRIP_HEIGHT = 12.0, 3.1, 9.6, 1.2  # inches
DOTS_PER_INCH = 100
INK, SOFT, BEST, BAD = "#1d2127", "#5c6470", "#0f8a6d", "#c4431a"


def render_figure(contents: ReportContents) -> bytes:
    """Return the image as PNG: the verdict, the charts, and the held-out images over time."""
    charts = build_charts(contents)
    chart_rows = -(-len(charts) // 2)
    aspect = max((strip.pixels.shape[1] / strip.pixels.shape[0] for strip in contents.strips), default=1.0)
    wide = min(STRIP_WIDTH, MAX_STRIP_HEIGHT * aspect)
    strips = [(strip, wide * strip.pixels.shape[0] / strip.pixels.shape[1]) for strip in contents.strips]
    text = "\n".join(textwrap.fill(sentence, 150) for sentence in contents.sentences)
    head = 0.75 + 0.21 * (text.count("\n") + 1)
    height = head + chart_rows * CHART_HEIGHT + sum(tall + 0.06 for _, tall in strips) + 0.2
    figure = Figure((WIDTH, height), dpi=DOTS_PER_INCH, facecolor="white")
    figure.text(0.035, 1 - 0.3 / height, contents.name, fontsize=15, weight="bold", color=INK, va="center")
    figure.text(0.035, 1 - 0.55 / height, text, fontsize=9.5, color=SOFT, va="top", linespacing=1.5)
    for i, chart in enumerate(charts):
        top = height - head - (i // 2) * CHART_HEIGHT
        left = 0.07 + 0.495 * (i % 2)
        axes = figure.add_axes((left, (top - CHART_HEIGHT + 0.45) / height, 0.405, (CHART_HEIGHT - 0.95) / height))
        _draw_chart(axes, chart, contents)
    top = height - head - chart_rows * CHART_HEIGHT
    for strip, tall in strips:
        axes = figure.add_axes((1.5 / WIDTH, (top - tall) / height, wide / WIDTH, tall / height))
        axes.imshow(strip.pixels, aspect="auto", interpolation="nearest")
        axes.set_axis_off()
        color = BEST if strip.is_best else INK
        label = f"{strip.label}\n{strip.note}" if strip.note else strip.label
        figure.text(1.42 / WIDTH, (top - tall / 2) / height, label, ha="right", va="center", fontsize=8, color=color)
        top -= tall + 0.06
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _draw_chart(axes: Axes, chart: Chart, contents: ReportContents) -> None:
    for line in chart.lines:
        steps, values = zip(*line.points, strict=True) if line.points else ((), ())
        style: dict[str, Any] = (
            {"linestyle": "--", "alpha": 0.55} if line.is_dashed else {"marker": "o", "markersize": 3}
        )
        axes.plot(steps, values, color=line.color, linewidth=1.6, label=line.name, **style)
    axes.set_ylim(*chart.value_range)
    axes.set_xlim(0, max(contents.last["step"], 1))
    if contents.is_overfit:
        axes.axvspan(contents.since, contents.last["step"], color=BAD, alpha=0.07, linewidth=0)
    axes.axvline(contents.best["step"], color=BEST, linestyle=":", linewidth=1.3)
    if chart.has_zero:
        axes.axhline(0, color="#8b929c", linewidth=0.8)
    axes.set_title(chart.title, fontsize=10.5, loc="left", color=INK, weight="bold", pad=20)
    axes.grid(axis="y", color="#e8eaee")
    axes.tick_params(labelsize=8, colors=SOFT, length=0)
    axes.yaxis.set_major_formatter(lambda value, _: chart.format_value(value))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    if len(chart.lines) > 1:
        axes.legend(fontsize=7, frameon=False, loc="lower left", bbox_to_anchor=(-0.01, 0.98), ncols=4)
