"""A blurred image, for tile and blur models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import cv2
import numpy as np

from ..parameters import Range
from ..registry import preprocessor


@preprocessor("blur_gaussian", makes="tile", aliases=("tile_gaussian",))
def blur_gaussian(image: np.ndarray, sigma: Annotated[float, Range(0.01, 64)] = 9) -> Callable[[int, int], np.ndarray]:
    """Blur an image `(H, W, 3)` by a Gaussian of `sigma` pixels, mirrored at its border: the map that tile and blur
    models read."""
    return lambda height, width: cv2.GaussianBlur(image[:height, :width], (0, 0), sigma)
