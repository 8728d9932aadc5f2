"""The demo's contact sheet: for each map a part with the map on the left, then a column for each prompt."""

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
JUMPS_LEGEND = (
    "The score: at how many of the depth map's jumps, the outlines of what stands before something else, the image has "
    "an edge within 1 px, 0 to 1."
)
FONT, FONT_SCALE, FONT_THICKNESS = cv2.FONT_HERSHEY_SIMPLEX, 0.46 * TEXT_SUPERSAMPLING, TEXT_SUPERSAMPLING + 1


@dataclass(frozen=True, eq=False)
class Column:
    """The results of one prompt: images (H, W, 3) RGB uint8 of the map's size, and how well each obeys the map: F1 of
    edges, or the share of a depth map's jumps that it has."""

    prompt: str
    unguided: np.ndarray
    guided: np.ndarray
    unguided_score: EdgeScore | float
    guided_score: EdgeScore | float


@dataclass(frozen=True, eq=False)
class Section:
    """A part of the sheet, of one map: on the left `panels` of an image, RGB uint8 of any size, and its caption, the
    map among them; then a column for each prompt. `edges` (H, W, 3) RGB uint8 is what is laid over the guided images,
    `overlay_caption` says so, and `legend` says what the score is."""

    panels: Sequence[tuple[np.ndarray, str]]
    edges: np.ndarray
    columns: Sequence[Column]
    overlay_caption: str
    legend: str


def make_edge_section(photo: np.ndarray, edge_map: np.ndarray, columns: Sequence[Column]) -> Section:
    """The part of a photo, any size, and its canny map, (h, w, 3), both RGB uint8."""
    panels = [(photo, "the photo"), (edge_map, "its canny map")]
    return Section(panels, edge_map, columns, "the map over the guided image", F1_LEGEND)


def make_depth_section(depth_map: np.ndarray, columns: Sequence[Column]) -> Section:
    """The part of a landscape's depth map (h, w, 3) RGB uint8."""
    jumps = find_depth_jumps(depth_map)
    panels = [(depth_map, "the depth of a landscape, near is white"), (jumps, "where depth jumps")]
    return Section(panels, jumps, columns, "the jumps over the guided image", JUMPS_LEGEND)


def render_sheet(
    photo: np.ndarray, edge_map: np.ndarray, columns: Sequence[Column], footer: str, more: Sequence[Section] = ()
) -> np.ndarray:
    """The sheet (H, W, 3) RGB uint8 of a photo, any size, and its canny map, (h, w, 3), both RGB uint8; below them
    `more` parts and a footer."""
    parts = [_render_section(section) for section in (make_edge_section(photo, edge_map, columns), *more)]
    across = max(part.shape[1] for part in parts)
    end = np.full((2 * LINE_HEIGHT + MARGIN, across, 3), PAPER_COLOR, np.uint8)
    for k, line in enumerate(wrap_text(footer, across - 2 * MARGIN)):
        draw_text(end, line, MARGIN, k * LINE_HEIGHT, PALE_TEXT_COLOR)
    pieces = [
        cv2.copyMakeBorder(part, 0, 0, 0, across - part.shape[1], cv2.BORDER_CONSTANT, value=PAPER_COLOR)
        for part in parts
    ]
    return np.concatenate([*pieces, end])


def _render_section(section: Section) -> np.ndarray:
    scale = -(-MIN_PANEL_SIDE // min(section.edges.shape[:2]))
    height, width = section.edges.shape[0] * scale, section.edges.shape[1] * scale
    first, pitch = (
        MARGIN + 2 * LINE_HEIGHT + 4,
        height + 2 * LINE_HEIGHT + GAP,
    )  # where rows begin: above the first is the prompt
    across = 2 * MARGIN + (len(section.columns) + 1) * (width + GAP) - GAP
    paper = np.full((first + 3 * pitch, across, 3), PAPER_COLOR, np.uint8)

    def place(column: int, row: int, image: np.ndarray, *lines: str) -> None:
        x, y = MARGIN + column * (width + GAP), first + row * pitch
        paper[y : y + height, x : x + width] = image
        for i, line in enumerate(lines):
            draw_text(paper, line, x, y + height + 4 + i * LINE_HEIGHT, PALE_TEXT_COLOR if i else TEXT_COLOR)

    for row, (image, caption) in enumerate(section.panels):
        is_map = image.shape == section.edges.shape
        panel = enlarge(image, scale, cv2.INTER_NEAREST) if is_map else fit(image, height, width)
        place(0, row, panel, caption)
    _draw_legend(paper, MARGIN, first + 2 * pitch, width, section.legend)
    for i, column in enumerate(section.columns, 1):
        lines = wrap_text(column.prompt, width)
        for k, line in enumerate(lines, 2 - len(lines)):
            draw_text(paper, line, MARGIN + i * (width + GAP), MARGIN + k * LINE_HEIGHT, TEXT_COLOR)
        plain, result = (enlarge(image, scale, cv2.INTER_CUBIC) for image in (column.unguided, column.guided))
        place(i, 0, plain, "without guidance", _format_score(column.unguided_score))
        place(i, 1, result, "guided, from the same noise", _format_score(column.guided_score))
        overlay = enlarge(overlay_edges(section.edges, column.guided), scale, cv2.INTER_NEAREST)
        place(i, 2, overlay, section.overlay_caption)
    return paper


def find_depth_jumps(depth_map: np.ndarray) -> np.ndarray:
    """Return where a depth map (H, W, 3) RGB uint8 jumps, white on black: the outlines of what stands before
    something else."""
    return cv2.cvtColor(cv2.Canny(np.ascontiguousarray(depth_map[..., 0]), 60, 120), cv2.COLOR_GRAY2RGB)


def compute_jump_share(jumps: np.ndarray, image: np.ndarray) -> float:
    """Return the share of a depth map's jumps (H, W, 3) at which an image (H, W, 3) RGB uint8 has an edge within a
    pixel; 1 where there are none."""
    edges = jumps.max(2) > 127
    return float((edges & _find_near_edges(image)).sum() / edges.sum()) if edges.any() else 1.0


def overlay_edges(edge_map: np.ndarray, image: np.ndarray) -> np.ndarray:
    """The image (H, W, 3) RGB uint8, darkened, and on it the edges of the map in `HIT_COLOR` or `MISS_COLOR`."""
    near = cv2.dilate(cv2.Canny(np.ascontiguousarray(image), 100, 200), np.ones((3, 3), np.uint8)) > 0
    edges, overlay = edge_map.max(2) > 127, image // 2
    overlay[edges & near], overlay[edges & ~near] = HIT_COLOR, MISS_COLOR
    return overlay


def _find_near_edges(image: np.ndarray) -> np.ndarray:
    """(H, W) bool: an edge of the image (H, W, 3) is here or on a pixel beside."""
    return cv2.dilate(cv2.Canny(np.ascontiguousarray(image), 100, 200), np.ones((3, 3), np.uint8)) > 0


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


def _format_score(score: EdgeScore | float) -> str:
    if isinstance(score, float):
        return f"{score:.2f} of the jumps within 1 px"
    return f"F1 {score.within_1px:.2f} within 1 px, {score.exact:.2f} exact"


def _draw_legend(paper: np.ndarray, x: int, y: int, width: int, text: str) -> None:
    """Draw the legend of the last row and, as `text`, that of the scores."""
    meanings = (HIT_COLOR, "edges that the image has"), (MISS_COLOR, "edges that it misses")
    for i, (color, meaning) in enumerate(meanings):
        cv2.line(paper, (x, y + 10 + i * LINE_HEIGHT), (x + 24, y + 10 + i * LINE_HEIGHT), color, 3)
        draw_text(paper, meaning, x + 36, y + i * LINE_HEIGHT, TEXT_COLOR)
    for i, line in enumerate(wrap_text(text, width, 5), 3):
        draw_text(paper, line, x, y + i * LINE_HEIGHT, PALE_TEXT_COLOR)
