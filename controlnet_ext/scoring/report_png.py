"""A report of scores as one image: the means, and the worst images beside their maps."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from ..embedded.contact_sheet import (
    LINE_HEIGHT,
    MARGIN,
    PALE_TEXT_COLOR,
    PAPER_COLOR,
    TEXT_COLOR,
    draw_text,
    enlarge,
    wrap_text,
)
from .results import (
    PANEL_SIDE,
    ScorePanel,
    ScorePanels,
    ScoreResult,
    format_summary,
    summarize_scores,
)
from .scores import UnitScore, format_score

MAX_ROWS = 20  # of a preprocessor, so that a viewer shows the whole
GAP = 12  # pixels between two images
WIDTH = 2 * MARGIN + 4 * PANEL_SIDE + 3 * GAP
CAPTIONS = ("the map", "the image", "the image's own map", "red: missed, blue: added")


def render_report_image(results: Sequence[ScoreResult], panels: ScorePanels) -> np.ndarray:
    """Return the report of results as an image (H, W, 3) uint8 RGB, with up to `MAX_ROWS` of the worst scores of each
    preprocessor."""
    scores = [score for result in results for score in result.scores]
    parts = []
    for summary in summarize_scores(scores):
        parts.append(_render_lines(wrap_text(format_summary(summary), WIDTH - 2 * MARGIN, 3), CAPTIONS))
        parts += [_render_row(path, score, panel) for path, score, panel in panels.list_worst(summary.group)[:MAX_ROWS]]
    failures = [result for result in results if result.error is not None]
    if failures:
        parts.append(_render_lines([f"{len(failures)} of {len(results)} images have no score"], ()))
    border = np.full((MARGIN, WIDTH, 3), PAPER_COLOR, np.uint8)
    return np.concatenate([border, *parts, border])


def _render_lines(lines: Sequence[str], captions: Sequence[str]) -> np.ndarray:
    paper = np.full((LINE_HEIGHT * (len(lines) + 1 + bool(captions)) + GAP, WIDTH, 3), PAPER_COLOR, np.uint8)
    for i, line in enumerate(lines):
        draw_text(paper, line, MARGIN, i * LINE_HEIGHT, TEXT_COLOR)
    y = (len(lines) + 1) * LINE_HEIGHT
    for i, caption in enumerate(captions):
        draw_text(paper, caption, MARGIN + i * (PANEL_SIDE + GAP), y, PALE_TEXT_COLOR)
    return paper


def _render_row(path: str, score: UnitScore, panel: ScorePanel) -> np.ndarray:
    panels = (panel.expected, panel.image, panel.found, panel.difference)
    scale = max(PANEL_SIDE // max(panel.image.shape[:2]), 1)
    images = [enlarge(each, scale, cv2.INTER_NEAREST) for each in panels if each is not None]
    height = max(image.shape[0] for image in images)
    paper = np.full((height + LINE_HEIGHT + GAP, WIDTH, 3), PAPER_COLOR, np.uint8)
    for i, image in enumerate(images):
        x = MARGIN + i * (PANEL_SIDE + GAP)
        paper[: image.shape[0], x : x + image.shape[1]] = image
    draw_text(paper, f"{format_score(score)}   {path}", MARGIN, height, TEXT_COLOR)
    return paper
