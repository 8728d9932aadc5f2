"""Scribbles by a difference of two Gaussians, without a network."""

from __future__ import annotations

from typing import Annotated

import cv2
import numpy as np

from ..parameters import Range
from ..registry import preprocessor


@preprocessor("scribble_xdog", makes="scribble")
def scribble_xdog(image: np.ndarray, threshold: Annotated[float, Range(1, 64)] = 32) -> np.ndarray:
    """255 where the difference of two Gaussians (0.5 and 5 pixels; the channel where it is least) is above threshold
    / 2, 0 elsewhere, (H, W). After XDoG (Winnemoeller 2011).

    sd-webui-controlnet doubles the difference in uint8, where 128..143 wrap around to 0..30 and leave holes in strong
    lines at the default threshold; here they stay lines."""
    pixels = image.astype(np.float32)
    difference = cv2.GaussianBlur(pixels, (0, 0), 5.0) - cv2.GaussianBlur(pixels, (0, 0), 0.5)
    light = (255 - difference.min(axis=2)).clip(0, 255).astype(np.uint8)
    return np.where(2.0 * (255 - light) > threshold, np.uint8(255), np.uint8(0))
