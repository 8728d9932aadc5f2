"""Random masks on which networks for inpainting models learn."""

from __future__ import annotations

import cv2
import numpy as np

WHOLE_SHARE = (
    0.25  # of the masks, that cover the image, so that it also learns to draw all of it (as SD's own training)
)
MAX_STROKES, MAX_BENDS = 4, 6


def draw_mask(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return a mask (height, width) bool, True where to repaint: all of the image, a rectangle, or thick strokes."""
    kind = rng.random()
    if kind < WHOLE_SHARE:
        return np.ones((height, width), bool)
    if kind < (1 + WHOLE_SHARE) / 2:
        return _draw_rectangle(rng, height, width)
    mask = np.zeros((height, width), np.uint8)
    short = min(height, width)
    for _ in range(rng.integers(1, MAX_STROKES + 1)):
        bends = rng.integers(2, MAX_BENDS + 1)
        points = np.stack([rng.integers(0, width, bends), rng.integers(0, height, bends)], axis=1)
        thickness = int(rng.integers(max(short // 16, 1), max(short // 4, 2)))
        cv2.polylines(mask, [points.astype(np.int32)], False, 1, thickness)
    return mask.astype(bool)


def _draw_rectangle(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return a mask (height, width) of a rectangle whose sides are a quarter to all of the image's."""
    mask = np.zeros((height, width), bool)
    rows, columns = (int(rng.integers(max(side // 4, 1), side + 1)) for side in (height, width))
    top, left = (int(rng.integers(0, height - rows + 1)), int(rng.integers(0, width - columns + 1)))
    mask[top : top + rows, left : left + columns] = True
    return mask
