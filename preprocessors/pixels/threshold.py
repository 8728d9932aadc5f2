"""An image in black and white, by a threshold."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from ..parameters import Range
from ..registry import preprocessor


@preprocessor("threshold", makes="other", fidelity="segmentation")
def threshold(image: np.ndarray, threshold: Annotated[float, Range(0, 255)] = 127) -> np.ndarray:
    """255 where the darkest channel of the image (H, W, 3) is above the threshold, 0 elsewhere, (H, W)."""
    return np.where(image.min(axis=2) > threshold, np.uint8(255), np.uint8(0))
