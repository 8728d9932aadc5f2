"""The size a detector works at, as sd-webui-controlnet does it, so that the same resolution gives the same map."""

from __future__ import annotations

import cv2
import numpy as np

from ..files.sizes import working_size


def resized(pixels: np.ndarray, resolution: int) -> tuple[np.ndarray, int, int]:
    """The picture with its short side at `resolution` pixels, cubic when enlarged, by area when shrunk; then extended
    on the right and below with its edge pixels to multiples of 64. Also height and width before that. Raises what
    working_size does."""
    height, width = working_size(pixels.shape[0], pixels.shape[1], resolution)
    enlarging = height * width > pixels.shape[0] * pixels.shape[1]
    if (height, width) != pixels.shape[:2]:
        way = cv2.INTER_CUBIC if enlarging else cv2.INTER_AREA
        pixels = cv2.resize(pixels, (width, height), interpolation=way)
    bottom, right = -height % 64, -width % 64
    return cv2.copyMakeBorder(pixels, 0, bottom, 0, right, cv2.BORDER_REPLICATE), height, width
