"""Canny's edges, by OpenCV."""

from __future__ import annotations

from typing import Annotated

import cv2
import numpy as np

from ..parameters import Range
from ..registry import Traits, preprocessor

STRIP_PIXELS = 2**15  # pixels


@preprocessor("canny", makes="edges", traits=Traits(is_default_for_kind=True))
def canny(
    image: np.ndarray, low: Annotated[int, Range(0, 255)] = 100, high: Annotated[int, Range(0, 255)] = 200
) -> np.ndarray:
    """Canny's edges (H, W), 0 or 255, of an RGB image (H, W, 3) uint8.

    The gradient is that of the strongest of the three channels, not of their grey: aperture 3, L1 norm, as
    ControlNet's canny model was trained (lllyasviel/ControlNet @ ed85cd1e25a5, annotator/canny)."""
    return cv2.Canny(*_compute_gradient(image), low, high)


def _compute_gradient(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The derivatives (H, W) int16 of each pixel's strongest channel, the first of equals, as cv2.Canny takes them of a
    colour image itself, to the bit, in 2.4 ms of 512x512 pixels where this way takes 1.3. In strips: memory of that
    size is taken again, that of whole images cleared anew by the system, which takes longer than all the rest."""
    height, width = image.shape[:2]
    dx, dy = np.empty((2, height, width), np.int16)
    rows = max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):
        begin, end = max(top - 1, 0), min(top + rows, height)
        strip = _select_strongest_gradient(image[begin : end + 1])
        for whole, part in zip((dx, dy), strip, strict=True):
            whole[top:end] = part[top - begin : end - begin]
    return dx, dy


def _select_strongest_gradient(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, *others = (_compute_channel_gradient(channel) for channel in cv2.split(image))
    norm, dx, dy = first
    for its, its_dx, its_dy in others:
        stronger = cv2.compare(its, norm, cv2.CMP_GT)
        cv2.copyTo(its_dx, stronger, dx)
        cv2.copyTo(its_dy, stronger, dy)
        norm = np.maximum(norm, its)
    return dx, dy


def _compute_channel_gradient(channel: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    dx, dy = cv2.spatialGradient(channel, ksize=3, borderType=cv2.BORDER_REPLICATE)
    return np.abs(dx) + np.abs(dy), dx, dy
