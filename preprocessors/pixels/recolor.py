"""Maps for coloring an image: its lightness or its intensity.

The colors that a network gives are put under the image's own lightness in generation/inpainting.py.
"""

from __future__ import annotations

from typing import Annotated

import cv2
import numpy as np

from ..parameters import Range
from ..registry import Traits, preprocessor


@preprocessor(
    "recolor_luminance",
    makes="luminance",
    traits=Traits(recolors="lightness", has_resolution_slider=False, is_default_for_kind=True),
)
def recolor_luminance(image: np.ndarray, gamma_correction: Annotated[float, Range(0.1, 2)] = 1) -> np.ndarray:
    """The lightness L of CIE Lab, 0..255 for 0..100, to the power of gamma, (H, W).

    sd-webui-controlnet reads RGB as BGR, so that pure red becomes 82 (blue's), not 136."""
    return _correct_gamma(cv2.cvtColor(image, cv2.COLOR_RGB2LAB)[..., 0], gamma_correction)


@preprocessor("recolor_intensity", makes="luminance", traits=Traits(recolors="value", has_resolution_slider=False))
def recolor_intensity(image: np.ndarray, gamma_correction: Annotated[float, Range(0.1, 2)] = 1) -> np.ndarray:
    """The strongest of the three channels (HSV's V) to the power of gamma, (H, W)."""
    return _correct_gamma(image.max(axis=2), gamma_correction)


def _correct_gamma(gray: np.ndarray, gamma: float) -> np.ndarray:
    """Rounded, so that a gamma of 1 changes nothing; sd-webui-controlnet cuts."""
    return np.rint(255 * (np.arange(256) / 255) ** gamma).astype(np.uint8)[gray]
