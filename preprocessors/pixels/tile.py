"""Maps of tile_colorfix are the image itself. What its parameters say is done to the latents after each step
(guidance/after_steps.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import cv2
import numpy as np

from ..parameters import Range
from ..registry import Traits, preprocessor

VariationParameter = Annotated[int, Range(3, 32)]


@preprocessor("tile_colorfix", makes="tile", traits=Traits(fixes_colors=True, has_resolution_slider=False))
def tile_colorfix(image: np.ndarray, variation: VariationParameter = 8) -> np.ndarray:
    """Return the image `(H, W, 3)` as it is; the result keeps its colors over boxes of 2 `variation` + 1 latents."""
    return image


@preprocessor("tile_colorfix+sharp", makes="tile", traits=Traits(fixes_colors=True, has_resolution_slider=False))
def tile_colorfix_sharp(
    image: np.ndarray, variation: VariationParameter = 8, sharpness: Annotated[float, Range(0, 2)] = 1.0
) -> np.ndarray:
    """Return the image `(H, W, 3)` as it is, for `tile_colorfix` with sharpening: guidance leads away from what is
    blurred by `sharpness` hundredths."""
    return image


@preprocessor("tile_resample", makes="tile", traits=Traits(has_resolution_slider=False, is_default_for_kind=True))
def tile_resample(
    image: np.ndarray, down_sampling_rate: Annotated[float, Range(1, 8)] = 1
) -> Callable[[int, int], np.ndarray]:
    """Shrink an image `(H, W, 3)` by the rate if that is 1.1 or more; each pixel becomes the mean of the area that it
    covers."""

    def smaller(height: int, width: int) -> np.ndarray:
        inside = image[:height, :width]
        if down_sampling_rate < 1.1:
            return inside
        size = (max(1, int(side / down_sampling_rate)) for side in (width, height))
        return cv2.resize(inside, tuple(size), interpolation=cv2.INTER_AREA)

    return smaller
