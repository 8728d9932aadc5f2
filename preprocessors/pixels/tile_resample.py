from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import cv2
import numpy as np

from ..parameters import Range
from ..registry import preprocessor


@preprocessor("tile_resample", makes="tile")
def tile_resample(
    image: np.ndarray, down_sampling_rate: Annotated[float, Range(1, 8)] = 1
) -> Callable[[int, int], np.ndarray]:
    """The picture, made smaller by the rate if that is 1.1 or more, each pixel the mean of the area it covers."""

    def smaller(height: int, width: int) -> np.ndarray:
        kept = image[:height, :width]
        if down_sampling_rate < 1.1:
            return kept
        size = (max(1, int(side / down_sampling_rate)) for side in (width, height))
        return cv2.resize(kept, tuple(size), interpolation=cv2.INTER_AREA)

    return smaller
