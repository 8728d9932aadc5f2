"""What the maps of edge networks go through: images in, soft edges in steps or as a scribble out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from ..backends.torch import Device
    from ..library import Library

    LoadFunction = Callable[[str | Device, Library], Callable[[np.ndarray], np.ndarray]]
    RenderFunction = Callable[[np.ndarray], np.ndarray | Sequence[np.ndarray]]

_DIAGONAL = np.eye(3, dtype=np.uint8)
_DIRECTIONS = [_DIAGONAL, np.fliplr(_DIAGONAL), np.ones((1, 3), np.uint8), np.ones((3, 1), np.uint8)]


def to_uint8(edges: np.ndarray) -> np.ndarray:
    """Convert edges in 0..1, of any shape, to 0..255, truncated to whole numbers as in ControlNet."""
    return (edges * 255).clip(0, 255).astype(np.uint8)


def quantize_edges(edges: np.ndarray, steps: int = 2) -> np.ndarray:
    """Quantize edges in 0..1, of any shape, to `steps` steps, trunc((steps + 1) x) / steps, which hide what a map says
    beyond its lines. Values above 1 are left for `to_uint8` to clip (lllyasviel/ControlNet-v1-1-nightly,
    annotator/util.py, safe_step)."""
    return np.trunc(edges.astype(np.float32) * np.float32(steps + 1)) / np.float32(steps)


def scribble_from_edges(edges: np.ndarray) -> np.ndarray:
    """A drawing, 0 or 255, along the ridges of soft edges (H, W) uint8: where these, blurred (3 pixels), are highest
    in one of four directions and over 127, blurred once more and kept from 5 on (ControlNet's nms and what follows
    it)."""
    smooth = cv2.GaussianBlur(edges.astype(np.float32), (0, 0), 3.0)
    highest = np.logical_or.reduce([cv2.dilate(smooth, line) == smooth for line in _DIRECTIONS])
    ridges = np.where(highest & (smooth > 127), np.uint8(255), np.uint8(0))
    return np.where(cv2.GaussianBlur(ridges, (0, 0), 3.0) > 4, np.uint8(255), np.uint8(0))


def make_edge_preprocessor(
    load: LoadFunction, render: Callable[[np.ndarray], np.ndarray | Sequence[np.ndarray]]
) -> type:
    """Make a class for `preprocessor`: `load` loads a network, whose edges `(B, H, W)` in 0..1 of images `(B, H, W, 3)`
    uint8 `render` turns into maps uint8."""

    class EdgePreprocessor:
        def __init__(self, device: str | Device, library: Library):
            self.detect_edges = load(device, library)

        def __call__(self, images: np.ndarray) -> np.ndarray | Sequence[np.ndarray]:
            return render(self.detect_edges(images))

    return EdgePreprocessor


def render_safe_edges(edges: np.ndarray) -> np.ndarray:
    """Render edges `(B, H, W)` in 0..1 in the steps 0, 127 and 255."""
    return to_uint8(quantize_edges(edges))


def render_scribbles(edges: np.ndarray) -> list[np.ndarray]:
    """Render edges `(B, H, W)` in 0..1 as drawings along them, 0 or 255."""
    return [scribble_from_edges(each) for each in to_uint8(edges)]
