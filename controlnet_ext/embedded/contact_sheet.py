"""The demo's contact sheet: a photo and its map on the left, then a column for each prompt."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from ..maps.fidelity import EdgeScore
from ..maps.resize import fit

Colour = tuple[int, int, int]
PAPER, INK, PALE = (250, 249, 246), (38, 38, 42), (105, 105, 112)
HIT, MISSED = (40, 230, 120), (255, 70, 60)  # an asked edge that the picture has within a pixel, and one it has not
PANEL = 256  # pixels a side, at least
MARGIN, GAP, LINE = 28, 20, 20
FINE = 4  # text is drawn this much larger, then averaged: smooth letters
F1 = "F1: how far the edges of a picture are those of the map, 0 to 1. Within 1 px: the next pixel counts too."
FONT, SIZE, STROKE = cv2.FONT_HERSHEY_SIMPLEX, 0.46 * FINE, FINE + 1


@dataclass(frozen=True, eq=False)
class Column:
    """What one prompt gave: pictures (H, W, 3) RGB uint8 of the map's size, and how well each obeys the map."""

    prompt: str
    unguided: np.ndarray
    guided: np.ndarray
    unguided_score: EdgeScore
    guided_score: EdgeScore


def sheet(photo: np.ndarray, asked: np.ndarray, columns: Sequence[Column], footer: str) -> np.ndarray:
    """The sheet (H, W, 3) RGB uint8 of a photo, any size, and its canny map, (h, w, 3), both RGB uint8."""
    scale = -(-PANEL // min(asked.shape[:2]))
    height, width = asked.shape[0] * scale, asked.shape[1] * scale
    first, pitch = MARGIN + 2 * LINE + 4, height + 2 * LINE + GAP  # where rows begin: above the first is the prompt
    across = 2 * MARGIN + (len(columns) + 1) * (width + GAP) - GAP
    paper = np.full((first + 3 * pitch + 2 * LINE + MARGIN, across, 3), PAPER, np.uint8)

    def place(column: int, row: int, picture: np.ndarray, *lines: str) -> None:
        x, y = MARGIN + column * (width + GAP), first + row * pitch
        paper[y : y + height, x : x + width] = picture
        for i, line in enumerate(lines):
            _write(paper, line, x, y + height + 4 + i * LINE, PALE if i else INK)

    place(0, 0, fit(photo, height, width), "the photo")
    place(0, 1, enlarged(asked, scale, cv2.INTER_NEAREST), "its canny map")
    _legend(paper, MARGIN, first + 2 * pitch, width)
    for i, column in enumerate(columns, 1):
        lines = wrapped(column.prompt, width)
        for k, line in enumerate(lines, 2 - len(lines)):
            _write(paper, line, MARGIN + i * (width + GAP), MARGIN + k * LINE, INK)
        unguided, guided = (enlarged(picture, scale, cv2.INTER_CUBIC) for picture in (column.unguided, column.guided))
        place(i, 0, unguided, "without guidance", _told(column.unguided_score))
        place(i, 1, guided, "guided, from the same noise", _told(column.guided_score))
        place(
            i, 2, enlarged(laid_over(asked, column.guided), scale, cv2.INTER_NEAREST), "the map over the guided picture"
        )
    for k, line in enumerate(wrapped(footer, across - 2 * MARGIN)):
        _write(paper, line, MARGIN, first + 3 * pitch + k * LINE, PALE)
    return paper


def laid_over(asked: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """The picture (H, W, 3) RGB uint8, darkened, and on it the edges asked for in `HIT` or `MISSED`."""
    near = cv2.dilate(cv2.Canny(np.ascontiguousarray(picture), 100, 200), np.ones((3, 3), np.uint8)) > 0
    edges, shown = asked.max(2) > 127, picture // 2
    shown[edges & near], shown[edges & ~near] = HIT, MISSED
    return shown


def enlarged(picture: np.ndarray, scale: int, way: int) -> np.ndarray:
    return cv2.resize(picture, None, fx=scale, fy=scale, interpolation=way)


def wrapped(text: str, width: int, most: int = 2) -> list[str]:
    """The text in at most so many lines of `width` pixels; what does not fit is dots."""
    for letters in range(width // 4, 5, -1):
        lines = textwrap.wrap(text, letters, max_lines=most, placeholder=" ...")
        if all(_width(line) <= width for line in lines):
            break
    return lines


def _write(paper: np.ndarray, text: str, x: int, y: int, colour: Colour) -> None:
    """Draw one line of text with its upper left corner at x, y, as far as it fits; letters beyond ASCII become
    question marks."""
    height, width = LINE, min(_width(text) + 4, paper.shape[1] - x)
    ink = np.zeros((height * FINE, width * FINE), np.uint8)
    text = text.encode("ascii", "replace").decode()
    cv2.putText(ink, text, (0, int(0.72 * height * FINE)), FONT, SIZE, 255, STROKE, cv2.LINE_AA)
    alpha = cv2.resize(ink, (width, height), interpolation=cv2.INTER_AREA)[..., None] / 255
    below = paper[y : y + height, x : x + width]
    below[:] = np.rint(below + alpha * (np.array(colour) - below))


def _width(text: str) -> int:
    return -(-cv2.getTextSize(text, FONT, SIZE, STROKE)[0][0] // FINE)


def _told(score: EdgeScore) -> str:
    return f"F1 {score.within_1px:.2f} within 1 px, {score.exact:.2f} exact"


def _legend(paper: np.ndarray, x: int, y: int, width: int) -> None:
    """How to read the last row, and the scores."""
    for i, (colour, text) in enumerate(((HIT, "edges that the picture has"), (MISSED, "edges that it misses"))):
        cv2.line(paper, (x, y + 10 + i * LINE), (x + 24, y + 10 + i * LINE), colour, 3)
        _write(paper, text, x + 36, y + i * LINE, INK)
    for i, line in enumerate(wrapped(F1, width, 4), 3):
        _write(paper, line, x, y + i * LINE, PALE)
