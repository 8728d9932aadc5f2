from __future__ import annotations

from typing import Annotated

import cv2
import numpy as np

from preprocessors.parameters import Range
from preprocessors.registry import preprocessor


@preprocessor("canny", makes="edges")
def canny(
    image: np.ndarray, low: Annotated[int, Range(0, 255)] = 100, high: Annotated[int, Range(0, 255)] = 200
) -> np.ndarray:
    """Canny's edges (H, W), 0 or 255, of an RGB image (H, W, 3) uint8.

    The gradient is that of the strongest of the three channels, not of their grey: aperture 3, L1 norm, as
    ControlNet's canny model was trained (lllyasviel/ControlNet @ ed85cd1e25a5, annotator/canny). Thresholds given in
    the wrong order are swapped by OpenCV."""
    return cv2.Canny(image, low, high)
