"""Things in an image as masks that may overlap: which are duplicates, and their image in colours."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True, eq=False)
class ObjectMask:
    """A thing's pixels: in `inside` (h, w) bool those of the box that begins at `left` and `top`. `score` is how well
    the network thinks that it fits, `stability` how little it changes with the threshold."""

    left: int
    top: int
    segmentation: np.ndarray
    score: float
    stability: float

    @property
    def area(self) -> int:
        """The number of its pixels."""
        return int(self.segmentation.sum())

    def crop(self, height: int, width: int) -> ObjectMask:
        """Return its part in the image's upper left `height` x `width` pixels."""
        return replace(self, segmentation=self.segmentation[: max(height - self.top, 0), : max(width - self.left, 0)])


def mask_from_logits(logits: np.ndarray, score: float, stability: float) -> ObjectMask:
    """The mask where logits (H, W) are over 0; they are somewhere."""
    inside = logits > 0
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    box = inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return ObjectMask(int(columns[0]), int(rows[0]), box.copy(), score, stability)


def non_max_suppression(boxes: np.ndarray, scores: np.ndarray, max_iou: float) -> list[int]:
    """Which boxes (N, 4), left, top, right, bottom, are kept, the best score first: none shares over `overlap`
    (intersection over union) with a better one."""
    left, top, right, bottom = boxes.astype(np.float64).T
    areas = (right - left) * (bottom - top)
    waiting, indices = np.argsort(-scores, kind="stable"), []
    while len(waiting):
        best, waiting = waiting[0], waiting[1:]
        indices.append(int(best))
        width = np.minimum(right[best], right[waiting]) - np.maximum(left[best], left[waiting])
        height = np.minimum(bottom[best], bottom[waiting]) - np.maximum(top[best], top[waiting])
        common = width.clip(0) * height.clip(0)
        waiting = waiting[common <= max_iou * (areas[best] + areas[waiting] - common)]
    return indices


def render_masks(masks: list[ObjectMask], height: int, width: int, seed: int) -> np.ndarray:
    """The masks' image (H, W, 3) uint8 on black, the largest first, so that small ones lie on it. The n-th has the
    n-th colour of the seed, 0 to 254 per channel as controlnet_aux draws them, however many there are."""
    colors = np.random.default_rng(seed).integers(0, 255, (len(masks), 3))
    canvas = np.zeros((height, width, 3), np.uint8)
    for mask, color in zip(sorted(masks, key=lambda mask: -mask.area), colors, strict=True):
        h, w = mask.segmentation.shape
        canvas[mask.top : mask.top + h, mask.left : mask.left + w][mask.segmentation] = color
    return canvas
