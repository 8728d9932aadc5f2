"""The report as a page: one HTML file without scripts, whose charts are SVG and whose images lie in the file itself."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from html import escape

import cv2
import numpy as np

from ...files.image_writer import encode_image
from ..stopping import Row
from ..verdict import DIVERGES, FITS, OVERFITS, UNDERFITS, compute_gap, has_losses
from ..work_folder import LOG_FILE
from .charts import Chart, Line, build_charts, compute_ticks
from .contents import ReportContents, Strip

CHART_WIDTH, CHART_HEIGHT = 560, 300  # of an SVG's view box
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 34, 34  # margins of the plot in it
MAX_IMAGE_HEIGHT = 256  # pixels of an image in the page
MAX_HASH_DIGITS = 16
MAX_TABLE_ROWS, MAX_DOTS = 300, 200  # measurements that have a row of their own, and a dot in each line
TITLES = {OVERFITS: "Overfits", DIVERGES: "Diverges", UNDERFITS: "Underfits", FITS: "Fits"}
REPORT_STYLE = """
:root { color-scheme: light; --ink: #1d2127; --soft: #5c6470; --line: #e3e6ea; --paper: #f5f6f8; --good: #0f8a6d;
  --bad: #c4431a; --middling: #9a6b00; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 26px; margin: 0 0 4px; overflow-wrap: anywhere; } h2 { font-size: 18px; margin: 36px 0 12px; }
p { margin: 0 0 8px; max-width: 95ch; } .soft { color: var(--soft); }
.card { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 16px 18px; }
.verdict { border-left: 6px solid var(--middling); margin: 20px 0; }
.verdict.fits { border-left-color: var(--good); }
.verdict.overfits, .verdict.diverges { border-left-color: var(--bad); }
.verdict b { font-size: 19px; } .verdict p:last-child { margin: 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); gap: 12px; }
.tile .value { font-size: 24px; font-weight: 650; font-variant-numeric: tabular-nums; }
.tile .note { color: var(--soft); font-size: 13px; line-height: 1.4; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); gap: 16px; }
figure { margin: 0; } figcaption b { font-size: 15px; } figcaption { margin-bottom: 6px; color: var(--soft);
  font-size: 13px; } figcaption b { color: var(--ink); display: block; }
svg { display: block; width: 100%; height: auto; }
svg text { font-size: 12px; fill: var(--soft); font-variant-numeric: tabular-nums; }
.strip { display: grid; grid-template-columns: 130px 1fr; gap: 12px; align-items: center; margin-bottom: 6px; }
.strip img { display: block; width: 100%; border-radius: 4px; } .strip b { display: block; line-height: 1.3; }
.strip span { color: var(--soft); font-size: 13px; } .strip.best img { outline: 3px solid var(--good); }
.strip.best b { color: var(--good); } .strip.map { margin-bottom: 14px; }
table { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 4px 10px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } tr.best td { background: #eaf6f2; }
.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.facts td:first-child { color: var(--soft); width: 180px; vertical-align: top; }
.key { white-space: nowrap; margin-right: 12px; } .key svg { display: inline-block; width: 22px; }
.scroll { overflow-x: auto; } summary { cursor: pointer; color: var(--soft); }
pre { background: #20252c; color: #eef1f4; border-radius: 8px; padding: 14px 16px; white-space: pre-wrap;
  overflow-wrap: anywhere; font-size: 13px; margin: 0 0 12px; }
"""


def render_page(contents: ReportContents) -> str:
    """Return the page as HTML."""
    charts = "".join(_render_chart(chart, contents) for chart in build_charts(contents))
    strips = "".join(_render_strip(strip) for strip in contents.strips)
    images = (
        f'<h2>Held-out images over time</h2><div class="card" style="max-width:{_images_width(contents.strips)}px">'
        f"{strips}</div>"
        if strips
        else ""
    )
    return (
        "<!doctype html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(contents.name)}: report of the training</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{REPORT_STYLE}</style></head><body><main>"
        f"<h1>{escape(contents.name)}</h1><p class='soft'>{escape(_describe_data(contents))}</p>"
        f"{_render_verdict(contents)}{_render_tiles(contents)}"
        f'<h2>Curves</h2><div class="charts">{charts}</div>{images}'
        f"<h2>Measurements</h2>{_render_table(contents)}<h2>How it was made</h2>{_render_facts(contents)}"
        "</main></body></html>\n"
    )


def _describe_data(contents: ReportContents) -> str:
    arguments = contents.arguments
    lines = [f"{contents.last['step']:,.0f} of {arguments.get('steps', contents.last['step']):,} steps"]
    if contents.image_counts:
        lines.append(contents.image_counts)
    if "map" in arguments:
        lines.append(f"maps: {arguments['map']}")
    return " · ".join(lines)


def _render_verdict(contents: ReportContents) -> str:
    title = TITLES.get(contents.fit.status, "Too early to tell")
    since = f" since step {contents.since:,.0f}" if contents.fit.status in TITLES else ""
    sentences = "".join(f"<p>{escape(sentence)}</p>" for sentence in contents.sentences)
    return f'<div class="card verdict {escape(contents.fit.status)}"><p><b>{title}{since}</b></p>{sentences}</div>'


def _render_tiles(contents: ReportContents) -> str:
    best, last = contents.best, contents.last
    which = "last" if contents.facts.get("publishes_last") else "best"
    tiles = [(f"step {contents.published['step']:,.0f}", f"written to {contents.name}: the {which} weights")]
    if has_losses(best) and has_losses(last):
        gain = best["held_out_unguided"] - best["held_out"]
        note = f"held-out loss at the best step; {best['held_out_unguided']:.4g} without control"
        tiles.append((f"{best['held_out']:.4g}", note))
        tiles.append((f"{100 * gain / best['held_out_unguided']:.1f} %", "of the held-out loss taken off by control"))
        tiles.append((f"{compute_gap(last):.4g}", f"the gap at the last step; {compute_gap(best):.4g} at the best"))
    if "fidelity_share" in best:
        then = f"; {100 * last['fidelity_share']:.0f} % at the last" if "fidelity_share" in last else ""
        tiles.append((f"{100 * best['fidelity_share']:.0f} %", f"fidelity at the best step{then}"))
    cells = (
        f'<div class="card tile"><div class="value">{escape(value)}</div><div class="note">{escape(note)}</div></div>'
        for value, note in tiles
    )
    return f'<div class="tiles">{"".join(cells)}</div>'


def _render_chart(chart: Chart, contents: ReportContents) -> str:
    low, high = chart.value_range
    last = max(contents.last["step"], 1)

    def place(step: float, value: float) -> tuple[float, float]:
        x = LEFT + (CHART_WIDTH - LEFT - RIGHT) * step / last
        return x, CHART_HEIGHT - BOTTOM - (CHART_HEIGHT - TOP - BOTTOM) * (value - low) / (high - low)

    parts = []
    if contents.is_overfit:
        left = place(contents.since, low)[0]
        parts.append(
            f'<rect x="{left:.1f}" y="{TOP}" width="{CHART_WIDTH - RIGHT - left:.1f}" '
            f'height="{CHART_HEIGHT - TOP - BOTTOM}" fill="#c4431a" opacity="0.07"/>'
        )
    for value in compute_ticks(low, high):
        _, y = place(0, value)
        color = "#8b929c" if chart.has_zero and abs(value) < 1e-12 else "#e8eaee"
        parts.append(f'<line x1="{LEFT}" x2="{CHART_WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{color}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{chart.format_value(value)}</text>')
    for step in compute_ticks(0, last):
        x, _ = place(step, low)
        anchor = "end" if x > CHART_WIDTH - 40 else "middle"
        parts.append(f'<text x="{x:.1f}" y="{CHART_HEIGHT - BOTTOM + 18}" text-anchor="{anchor}">{step:,.0f}</text>')
    best, _ = place(contents.best["step"], low)
    parts.append(
        f'<line x1="{best:.1f}" x2="{best:.1f}" y1="{TOP}" y2="{CHART_HEIGHT - BOTTOM}" stroke="#0f8a6d" '
        f'stroke-dasharray="2 3"/>'
        f'<text x="{best:.1f}" y="{TOP - 4}" text-anchor="middle" style="fill:#0f8a6d">best</text>'
    )
    parts += [_render_line(line, chart, [place(*point) for point in line.points]) for line in chart.lines]
    legend = " ".join(_render_key(line) for line in chart.lines) if len(chart.lines) > 1 else ""
    return (
        f'<figure class="card"><figcaption><b>{escape(chart.title)}</b>{escape(chart.subtitle)}<br>{legend}'
        f'</figcaption><svg viewBox="0 0 {CHART_WIDTH} {CHART_HEIGHT}" role="img" '
        f'aria-label="{escape(chart.title)}">{"".join(parts)}</svg></figure>'
    )


def _render_line(line: Line, chart: Chart, places: Sequence[tuple[float, float]]) -> str:
    dash = ' stroke-dasharray="5 4" opacity="0.55"' if line.is_dashed else ""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    svg = f'<polyline points="{path}" fill="none" stroke="{line.color}" stroke-width="2"{dash}/>'
    if line.is_dashed or len(places) > MAX_DOTS:
        return svg
    dots = (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{line.color}"><title>{escape(line.name)}, step {step:,.0f}: '
        f"{chart.format_value(value)}</title></circle>"
        for (x, y), (step, value) in zip(places, line.points, strict=True)
    )
    return svg + "".join(dots)


def _render_key(line: Line) -> str:
    dash = ' stroke-dasharray="4 3" opacity="0.6"' if line.is_dashed else ""
    return (
        '<span class="key"><svg viewBox="0 0 22 8">'
        f'<line x1="0" x2="22" y1="4" y2="4" stroke="{line.color}" stroke-width="3"{dash}/></svg> {escape(line.name)}'
        "</span>"
    )


def _images_width(strips: Sequence[Strip]) -> int:
    """Return the width in pixels of a card whose strips are about 120 high."""
    return 190 + max(120 * strip.pixels.shape[1] // strip.pixels.shape[0] for strip in strips)


def _render_strip(strip: Strip) -> str:
    name = "strip best" if strip.is_best else "strip map" if strip.is_map else "strip"
    return (
        f'<div class="{name}"><div><b>{escape(strip.label)}</b><span>{escape(strip.note)}</span></div>'
        f'<img alt="{escape(strip.label)}" src="{encode_data_uri(strip.pixels)}"></div>'
    )


def encode_data_uri(pixels: np.ndarray) -> str:
    """Return an image (H, W, 3) RGB uint8 as a data URI: a PNG up to 256 pixels of height, a smaller JPEG above."""
    height, width = pixels.shape[:2]
    suffix, mime = ".png", "png"
    if height > MAX_IMAGE_HEIGHT:
        size = round(width * MAX_IMAGE_HEIGHT / height), MAX_IMAGE_HEIGHT
        pixels, suffix, mime = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), ".jpg", "jpeg"
    content = encode_image(f"strip{suffix}", np.ascontiguousarray(pixels))
    return f"data:image/{mime};base64,{base64.b64encode(content).decode()}"


def _render_table(contents: ReportContents) -> str:
    keys = list(dict.fromkeys(key for row in contents.rows for key in row))
    head = "".join(f"<th>{escape(key.replace('_', ' '))}</th>" for key in keys)

    def render_row(row: Row) -> str:
        cells = "".join(f"<td>{_format_figure(key, row)}</td>" for key in keys)
        return f'<tr class="best">{cells}</tr>' if row["step"] == contents.best["step"] else f"<tr>{cells}</tr>"

    stride = -(-len(contents.rows) // MAX_TABLE_ROWS)
    selection = [row for i, row in enumerate(contents.rows) if i % stride == 0 or row in (contents.best, contents.last)]
    rows = "".join(render_row(row) for row in selection)
    table = f'<div class="scroll"><table><tr>{head}</tr>{rows}</table></div>'
    title = f"All figures of {len(selection)} of {len(contents.rows)} measurements; all of them are in {LOG_FILE}"
    return f'<details class="card"><summary>{title}</summary>{table}</details>'


def _format_figure(key: str, row: Row) -> str:
    if key not in row:
        return ""
    return f"{row[key]:,.0f}" if key == "step" else f"{row[key]:.4g}"


def _render_facts(contents: ReportContents) -> str:
    command = contents.facts.get("command")
    facts = {
        "controlnet-ext": contents.facts.get("version"),
        "best by": contents.best_title,
        **{name: _shorten_hash(name, value) for name, value in contents.arguments.items()},
        "fidelity": json.dumps(contents.bounds) if contents.bounds else None,
    }
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(str(value))}</td></tr>"
        for name, value in facts.items()
        if value is not None
    )
    code = f"<pre>{escape(command)}</pre>" if command else ""
    return f'<div class="card">{code}<table class="facts">{rows}</table></div>'


def _shorten_hash(name: str, value: object) -> object:
    """Return a hash by its first digits, with its kind; other values as they are."""
    is_hash = isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")
    return f"SHA-256 {str(value)[:MAX_HASH_DIGITS]}…" if is_hash else value
