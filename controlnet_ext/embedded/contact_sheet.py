"""The demo's contact sheet: a photo and its map on the left, then a column for each prompt."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from ..maps.fidelity import EdgeScore
from ..maps.resize import fit

Color = tuple[int, int, int]
PAPER_COLOR, TEXT_COLOR, PALE_TEXT_COLOR = (250, 249, 246), (38, 38, 42), (105, 105, 112)
HIT_COLOR, MISS_COLOR = (
    (40, 230, 120),
    (255, 70, 60),
)  # an asked edge that the image has within a pixel, and one it has not
MIN_PANEL_SIDE = 256  # pixels a side, at least
MARGIN, GAP, LINE_HEIGHT = 28, 20, 20
TEXT_SUPERSAMPLING = 4  # text is drawn this much larger, then averaged: smooth letters
F1_LEGEND = "F1: how far the edges of an image are those of the map, 0 to 1. Within 1 px: the next pixel counts too."
FONT, FONT_SCALE, FONT_THICKNESS = cv2.FONT_HERSHEY_SIMPLEX, 0.46 * TEXT_SUPERSAMPLING, TEXT_SUPERSAMPLING + 1


@dataclass(frozen=True, eq=False)
class Column:
    """The results of one prompt: images (H, W, 3) RGB uint8 of the map's size, and how well each obeys the map."""

    prompt: str
    unguided_image: np.ndarray
    guided_image: np.ndarray
    unguided_score: EdgeScore
    guided_score: EdgeScore


def render_sheet(photo: np.ndarray, edge_map: np.ndarray, columns: Sequence[Column], footer: str) -> np.ndarray:
    """The sheet (H, W, 3) RGB uint8 of a photo, any size, and its canny map, (h, w, 3), both RGB uint8."""
    scale = -(-MIN_PANEL_SIDE // min(edge_map.shape[:2]))
    height, width = edge_map.shape[0] * scale, edge_map.shape[1] * scale
    first, pitch = (
        MARGIN + 2 * LINE_HEIGHT + 4,
        height + 2 * LINE_HEIGHT + GAP,
    )  # where rows begin: above the first is the prompt
    across = 2 * MARGIN + (len(columns) + 1) * (width + GAP) - GAP
    paper = np.full((first + 3 * pitch + 2 * LINE_HEIGHT + MARGIN, across, 3), PAPER_COLOR, np.uint8)

    def place(column: int, row: int, image: np.ndarray, *lines: str) -> None:
        x, y = MARGIN + column * (width + GAP), first + row * pitch
        paper[y : y + height, x : x + width] = image
        for i, line in enumerate(lines):
            draw_text(paper, line, x, y + height + 4 + i * LINE_HEIGHT, PALE_TEXT_COLOR if i else TEXT_COLOR)

    place(0, 0, fit(photo, height, width), "the photo")
    place(0, 1, enlarge(edge_map, scale, cv2.INTER_NEAREST), "its canny map")
    _draw_legend(paper, MARGIN, first + 2 * pitch, width)
    for i, column in enumerate(columns, 1):
        lines = wrap_text(column.prompt, width)
        for k, line in enumerate(lines, 2 - len(lines)):
            draw_text(paper, line, MARGIN + i * (width + GAP), MARGIN + k * LINE_HEIGHT, TEXT_COLOR)
        images = column.unguided_image, column.guided_image
        unguided_image, guided_image = (enlarge(image, scale, cv2.INTER_CUBIC) for image in images)
        place(i, 0, unguided_image, "without guidance", _format_score(column.unguided_score))
        place(i, 1, guided_image, "guided, from the same noise", _format_score(column.guided_score))
        place(
            i,
            2,
            enlarge(overlay_edges(edge_map, column.guided_image), scale, cv2.INTER_NEAREST),
            "the map over the guided image",
        )
    for k, line in enumerate(wrap_text(footer, across - 2 * MARGIN)):
        draw_text(paper, line, MARGIN, first + 3 * pitch + k * LINE_HEIGHT, PALE_TEXT_COLOR)
    return paper


def overlay_edges(edge_map: np.ndarray, image: np.ndarray) -> np.ndarray:
    """The image (H, W, 3) RGB uint8, darkened, and on it the edges of the map in `HIT_COLOR` or `MISS_COLOR`."""
    near = cv2.dilate(cv2.Canny(np.ascontiguousarray(image), 100, 200), np.ones((3, 3), np.uint8)) > 0
    edges, overlay = edge_map.max(2) > 127, image // 2
    overlay[edges & near], overlay[edges & ~near] = HIT_COLOR, MISS_COLOR
    return overlay


def enlarge(image: np.ndarray, scale: int, interpolation: int) -> np.ndarray:
    """Return an image (H, W, 3) uint8 `scale` times as large; `interpolation` is one of cv2."""
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=interpolation)


def wrap_text(text: str, width: int, max_lines: int = 2) -> list[str]:
    """The text in at most so many lines of `width` pixels; what does not fit is dots."""
    for letters in range(width // 4, 5, -1):
        lines = textwrap.wrap(text, letters, max_lines=max_lines, placeholder=" ...")
        if all(_measure_text(line) <= width for line in lines):
            break
    return lines


def draw_text(paper: np.ndarray, text: str, x: int, y: int, color: Color) -> None:
    """Draw one line of text onto `paper` (H, W, 3) uint8, its upper left corner at x, y, as far as it fits; letters
    beyond ASCII become question marks."""
    height, width = LINE_HEIGHT, min(_measure_text(text) + 4, paper.shape[1] - x)
    ink = np.zeros((height * TEXT_SUPERSAMPLING, width * TEXT_SUPERSAMPLING), np.uint8)
    text = text.encode("ascii", "replace").decode()
    cv2.putText(
        ink, text, (0, int(0.72 * height * TEXT_SUPERSAMPLING)), FONT, FONT_SCALE, 255, FONT_THICKNESS, cv2.LINE_AA
    )
    alpha = cv2.resize(ink, (width, height), interpolation=cv2.INTER_AREA)[..., None] / 255
    below = paper[y : y + height, x : x + width]
    below[:] = np.rint(below + alpha * (np.array(color) - below))


def _measure_text(text: str) -> int:
    return -(-cv2.getTextSize(text, FONT, FONT_SCALE, FONT_THICKNESS)[0][0] // TEXT_SUPERSAMPLING)


def _format_score(score: EdgeScore) -> str:
    return f"F1 {score.within_1px:.2f} within 1 px, {score.exact:.2f} exact"


def _draw_legend(paper: np.ndarray, x: int, y: int, width: int) -> None:
    """Draw the legend of the last row and of the scores."""
    for i, (colour, text) in enumerate(((HIT_COLOR, "edges that the image has"), (MISS_COLOR, "edges that it misses"))):
        cv2.line(paper, (x, y + 10 + i * LINE_HEIGHT), (x + 24, y + 10 + i * LINE_HEIGHT), colour, 3)
        draw_text(paper, text, x + 36, y + i * LINE_HEIGHT, TEXT_COLOR)
    for i, line in enumerate(wrap_text(F1_LEGEND, width, 4), 3):
        draw_text(paper, line, x, y + i * LINE_HEIGHT, PALE_TEXT_COLOR)
