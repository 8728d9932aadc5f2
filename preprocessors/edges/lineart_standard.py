from __future__ import annotations

from typing import Annotated

import cv2
import numpy as np

from ..parameters import Range
from ..registry import preprocessor


@preprocessor("lineart_standard", makes="lines", label="lineart_standard (from white bg & black line)")
def lineart_standard(
    image: np.ndarray,
    *,  # webui has no sliders for these two, so they are no threshold_a and threshold_b
    sigma: Annotated[float, Range(0.1, 100)] = 6.0,
    intensity_threshold: Annotated[float, Range(0, 255)] = 8,
) -> np.ndarray:
    """How much darker each pixel is than its surroundings (a Gaussian of `sigma` pixels) in the channel where it is
    so least; scaled so that the median of what exceeds `intensity_threshold` becomes 127. (H, W), white lines on
    black.

    Bit-equal to controlnet_aux 0.0.10's LineartStandardDetector at the same size."""
    pixels = image.astype(np.float32)
    darker = (cv2.GaussianBlur(pixels, (0, 0), sigma) - pixels).min(axis=2).clip(0, 255)
    lines = darker[darker > intensity_threshold]
    middle = np.median(lines) if lines.size else 0
    return (darker / np.float32(max(16, middle)) * 127).clip(0, 255).astype(np.uint8)
