"""An image with its places shuffled, for the shuffle model."""

from __future__ import annotations

from typing import Annotated

import cv2
import numpy as np

from ..parameters import Range
from ..registry import Traits, preprocessor

NOISE_CELL_SIZE = 256  # pixels between two points of the noise


@preprocessor("shuffle", makes="shuffle", traits=Traits(is_default_for_kind=True))
def shuffle(image: np.ndarray, seed: Annotated[int, Range(0, 2**32 - 1)] = 0) -> np.ndarray:
    """Shuffle the places of an image `(H, W, 3)` and keep its colors: each pixel is taken from where two smooth noises
    of `seed` point, one for x and one for y, each reaching from side to side.

    Bit-equal to controlnet_aux 0.0.10's ContentShuffleDetector after numpy.random.seed(seed), at the same size;
    sd-webui-controlnet's seed is seed + subseed.
    """
    height, width = image.shape[:2]
    numbers = np.random.RandomState(seed)
    x = _make_smooth_noise(numbers, height, width) * (width - 1)
    y = _make_smooth_noise(numbers, height, width) * (height - 1)
    return cv2.remap(image, x.astype(np.float32), y.astype(np.float32), cv2.INTER_LINEAR)


def _make_smooth_noise(generator: np.random.RandomState, height: int, width: int) -> np.ndarray:
    """Smooth noise (height, width) float64 from 0 to 1."""
    points = generator.uniform(size=(height // NOISE_CELL_SIZE + 2, width // NOISE_CELL_SIZE + 2))
    smooth = cv2.resize(
        points, (width + 2 * NOISE_CELL_SIZE, height + 2 * NOISE_CELL_SIZE), interpolation=cv2.INTER_CUBIC
    )
    smooth = smooth[NOISE_CELL_SIZE : NOISE_CELL_SIZE + height, NOISE_CELL_SIZE : NOISE_CELL_SIZE + width]
    smooth = smooth - smooth.min()
    return smooth / (smooth.max() or 1)  # of one pixel: 0
