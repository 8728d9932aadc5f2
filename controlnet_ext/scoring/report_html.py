"""A report of scores as one HTML file, which needs nothing else: the means, and the worst images beside their maps."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Sequence
from html import escape

import numpy as np

from ..errors import escape_unprintable
from ..files.image_writer import encode_image
from .results import (
    LEVEL,
    GroupSummary,
    ScorePanel,
    ScorePanels,
    ScoreResult,
    format_count,
    format_interval,
    get_group,
    summarize_clip,
    summarize_scores,
)
from .scores import UnitScore, format_figure

MAX_TABLE_ROWS = 5000
BINS = 24  # of a histogram
LABEL_WIDTH = 84  # of a mark on it, in its 600 units
STYLE = """
:root { color-scheme: light dark; --paper: #faf9f6; --card: #fff; --ink: #26262a; --pale: #696970; --line: #e4e2dc;
  --score: #2f6fdd; --floor: #8d8879; --ceiling: #2a9d68; --bad: #c9432f; }
@media (prefers-color-scheme: dark) { :root { --paper: #17181b; --card: #202226; --ink: #e9e7e2; --pale: #9c9ca4;
  --line: #33353b; --score: #6ea0ff; --floor: #8f8d86; --ceiling: #52c491; --bad: #ff7a66; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 36px 24px 64px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 20px; margin: 40px 0 8px; }
h2 small, .pale { color: var(--pale); font-weight: normal; }
p { margin: 4px 0 12px; max-width: 80ch; }
.summary { display: flex; flex-wrap: wrap; gap: 28px; align-items: center; background: var(--card); padding: 18px 22px;
  border: 1px solid var(--line); border-radius: 10px; }
.mean { font-size: 38px; font-weight: 650; line-height: 1.1; font-variant-numeric: tabular-nums; }
.scale, .histogram { display: block; width: 100%; } .grow { flex: 1 1 300px; }
.cards { display: grid; gap: 14px; margin-top: 14px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px; margin: 0;
  display: grid; grid-template-columns: minmax(190px, 1fr) minmax(0, 4fr); gap: 18px; }
.card b { font-size: 24px; font-variant-numeric: tabular-nums; } .name { overflow-wrap: anywhere; }
.panels { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 10px; }
.panels figure { margin: 0; } figcaption { color: var(--pale); font-size: 12px; margin-top: 3px; }
.panels img { width: 100%; display: block; border-radius: 5px; background: #000; image-rendering: pixelated; }
.panels img.photo { image-rendering: auto; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 10px; margin: 8px 0 0; font-size: 13px; }
dt { color: var(--pale); } dd { margin: 0; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 4px 12px 4px 0; border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
th { color: var(--pale); font-weight: normal; } td.number, th.number { text-align: right; }
details { margin-top: 32px; } summary { cursor: pointer; } .failed td:last-child { color: var(--bad); }
@media (max-width: 760px) { .card { grid-template-columns: 1fr; } .panels { grid-template-columns: 1fr 1fr; } }
@media print { .card { break-inside: avoid; } }
"""


def render_report(results: Sequence[ScoreResult], panels: ScorePanels) -> str:
    """Return the report of results, with the panels of the worst scores of each preprocessor, as HTML."""
    scores = [score for result in results for score in result.scores]
    groups = [
        part
        for summary in summarize_scores(scores)
        for part in _render_group(summary, [s for s in scores if get_group(s) == summary.group], panels)
    ]
    failures = [result for result in results if result.error is not None]
    count = format_count(len(results), "image")
    if failures:
        count = f"{len(results) - len(failures)} of {len(results)} images"
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>Score of {count}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>",
            f"<h1>How well {count} {'obey their maps' if len(results) > 1 else 'obeys its map'}</h1>",
            '<p class="pale">The preprocessor that made the map which guided an image finds the map of that image too; '
            "the two are compared.</p>",
            *groups,
            *_render_clip(results),
            *_render_failures(failures),
            *_render_table(results),
            "</main>\n</body>\n</html>\n",
        ]
    )


def _text(value: object) -> str:
    """Return foreign text as HTML."""
    return escape(escape_unprintable(value))


def _render_group(summary: GroupSummary, scores: Sequence[UnitScore], panels: ScorePanels) -> Iterator[str]:
    better = "higher" if summary.is_better_higher else "lower"
    yield f"<section>\n<h2>{_text(summary.title)} <small>{_text(summary.kind)}, {_text(summary.figure)}: "
    yield f"{better} is better</small></h2>"
    yield f'<div class="summary"><div><div class="mean">{format_figure(summary.score.mean)}</div>'
    yield f'<div class="pale">{_describe_interval(summary)}</div></div>'
    yield f'<div class="grow">{_render_scale(summary, scores)}</div></div>'
    yield f"<p>{_describe_group(summary)}</p>"
    worst = panels.list_worst(summary.group)
    if len(worst) < len(scores):
        yield f'<p class="pale">The {len(worst)} worst of {len(scores)}:</p>'
    yield '<div class="cards">'
    for rank, (path, score, panel) in enumerate(worst, 1):
        yield _render_card(rank, path, score, panel)
    yield "</div>\n</section>"


def _describe_interval(summary: GroupSummary) -> str:
    if summary.score.used < 2:
        return "one image"
    return f"{LEVEL:.0%}: {format_figure(summary.score.low)}..{format_figure(summary.score.high)}"


def _describe_group(summary: GroupSummary) -> str:
    words = [
        f"Mean {_text(summary.figure)} {format_interval(summary.score)} of {format_count(summary.score.used, 'image')}"
    ]
    if summary.floor is not None and summary.floor.used:
        words.append(f"unguided images have {format_figure(summary.floor.mean)}")
    if summary.ceiling is not None and summary.ceiling.used:
        words.append(f"the images of which the maps were made {format_figure(summary.ceiling.mean)}")
    if summary.share is not None and math.isfinite(summary.share.mean):
        bounds = "" if summary.share.used < 2 else f" ({summary.share.low:.0%}..{summary.share.high:.0%})"
        words.append(f"which is {summary.share.mean:.0%}{bounds} of the way from the one to the other")
    if summary.score.left_out:
        words.append(f"{format_count(summary.score.left_out, 'image')} left out, whose maps ask for nothing")
    return "; ".join(words) + "."


def _render_scale(summary: GroupSummary, scores: Sequence[UnitScore]) -> str:
    """Return a drawing of the scores as a histogram, with the mean, its interval, floor and ceiling."""
    values = [score.score for score in scores if math.isfinite(score.score)]
    marks = [(summary.floor, "floor"), (summary.ceiling, "ceiling"), (summary.score, "score")]
    intervals = [(interval, name) for interval, name in marks if interval is not None and math.isfinite(interval.mean)]
    if not values:
        return ""
    ends = [*values, *(interval.mean for interval, _ in intervals)]
    low, high = (0.0, 1.0) if min(ends) >= 0 and max(ends) <= 1 else (min(ends), max(ends))
    span = (high - low) or 1.0
    counts, _ = np.histogram(values, BINS, (low, low + span))
    width = 600 / BINS
    tallest = counts.max()
    bars = "".join(
        f'<rect x="{i * width + 1:.1f}" y="{58 - 50 * count / tallest:.1f}" width="{width - 2:.1f}" '
        f'height="{50 * count / tallest:.1f}" rx="2" fill="var(--score)" opacity=".35">'
        f"<title>{format_count(count, 'image')}</title></rect>"
        for i, count in enumerate(counts.tolist())
        if count
    )
    lines, ends_of_labels, rows = "", [-math.inf] * len(intervals), 1
    for interval, name in sorted(intervals, key=lambda mark: mark[0].mean):
        x = 600 * (interval.mean - low) / span
        anchor = "start" if x < 40 else "end" if x > 560 else "middle"
        label = f"{'mean' if name == 'score' else name} {format_figure(interval.mean)}"
        left = x - {"start": 0, "middle": 0.5, "end": 1}[anchor] * LABEL_WIDTH
        row = next(i for i, end in enumerate(ends_of_labels) if end <= left)
        ends_of_labels[row], rows = left + LABEL_WIDTH, max(rows, row + 1)
        lines += (
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="64" stroke="var(--{name})" stroke-width="2"/>'
            f'<text x="{x:.1f}" y="{76 + 12 * row}" text-anchor="{anchor}" fill="var(--{name})">{label}</text>'
        )
        if name == "score" and interval.used > 1:
            begin, end = (600 * (value - low) / span for value in (interval.low, interval.high))
            lines += f'<rect x="{begin:.1f}" y="59" width="{end - begin:.1f}" height="5" rx="2.5" fill="var(--score)"/>'
    return (
        f'<svg class="scale" viewBox="-4 0 608 {68 + 12 * rows}" role="img" font-size="10" '
        f'font-family="system-ui, sans-serif">{bars}<line x1="0" x2="600" y1="61.5" y2="61.5" stroke="var(--line)" '
        f'stroke-width="2"/>{lines}</svg>'
    )


def _render_card(rank: int, path: str, score: UnitScore, panel: ScorePanel) -> str:
    facts = {name: format_figure(value) for name, value in score.figures.items() if name != score.figure}
    facts |= {
        name: format_figure(figures[score.figure])
        for name, figures in (("floor", score.floor), ("ceiling", score.ceiling))
        if figures is not None
    }
    if score.share is not None and math.isfinite(score.share):
        facts["share"] = f"{score.share:.0%}"
    terms = "".join(f"<dt>{_text(name)}</dt><dd>{value}</dd>" for name, value in facts.items())
    images = [
        (panel.expected, "the map", "map"),
        (panel.image, "the image", "photo"),
        (panel.found, "the image's own map", "map"),
    ]
    if panel.difference is not None:
        images.append((panel.difference, "white: both; red: missed; blue: added", "map"))
    figures = "".join(
        f'<figure><img class="{kind}" src="{_encode_data(pixels, kind)}" alt="{words}"><figcaption>{words}</figcaption>'
        "</figure>"
        for pixels, words, kind in images
    )
    return (
        f'<div class="card"><div><div class="pale">{rank}.</div><b>{format_figure(score.score)}</b> '
        f'<span class="pale">{_text(score.figure)}</span><div class="name">{_text(path)}</div><dl>{terms}</dl></div>'
        f'<div class="panels">{figures}</div></div>'
    )


def _encode_data(pixels: np.ndarray, kind: str) -> str:
    suffix = {"map": "png", "photo": "jpeg"}[kind]
    return f"data:image/{suffix};base64,{base64.b64encode(encode_image(f'panel.{suffix}', pixels)).decode()}"


def _render_clip(results: Sequence[ScoreResult]) -> Iterator[str]:
    interval = summarize_clip(results)
    if interval is not None:
        yield f"<section>\n<h2>CLIP score</h2>\n<p>{format_interval(interval)} of 100: how well "
        yield f"{format_count(interval.used, 'image')} fit their prompts.</p>\n</section>"


def _render_failures(failures: Sequence[ScoreResult]) -> Iterator[str]:
    if not failures:
        return
    yield f"<section>\n<h2>{format_count(len(failures), 'image')} without a score</h2>\n<table class='failed'>"
    yield "<tr><th>image</th><th>reason</th></tr>"
    for result in failures[:MAX_TABLE_ROWS]:
        yield f"<tr><td>{_text(result.path)}</td><td>{_text(result.error)}</td></tr>"
    yield "</table>\n</section>"


def _render_table(results: Sequence[ScoreResult]) -> Iterator[str]:
    rows = [(result.path, score) for result in results for score in result.scores]
    more = "" if len(rows) <= MAX_TABLE_ROWS else f" (the first {MAX_TABLE_ROWS:,})"
    yield f"<details><summary>All {format_count(len(rows), 'score')}{more}</summary>\n<table>"
    heads = "".join(f'<th class="number">{name}</th>' for name in ("score", "floor", "ceiling", "share"))
    yield f"<tr><th>image</th><th>unit</th><th>figure</th>{heads}</tr>"
    for path, score in rows[:MAX_TABLE_ROWS]:
        values = (None if each is None else each[score.figure] for each in (score.floor, score.ceiling))
        cells = (score.score, *values, score.share)
        numbers = "".join(f'<td class="number">{format_figure(value)}</td>' for value in cells)
        unit = f"{score.number} {_text(score.preprocessor)}"
        yield f"<tr><td>{_text(path)}</td><td>{unit}</td><td>{_text(score.figure)}</td>{numbers}</tr>"
    yield "</table>\n</details>"
