"""A coarse grid of colors, for T2I-Adapter's color model."""

from __future__ import annotations

import cv2
import numpy as np

from ..backends.tensors import pad_to_multiple
from ..registry import Traits, preprocessor

COLOR_CELL_SIZE = 64  # pixels


@preprocessor("color", makes="color", label="t2ia_color_grid", traits=Traits(is_default_for_kind=True))
def color(image: np.ndarray) -> np.ndarray:
    """Reduce an image `(H, W, 3)` to squares of 64x64 pixels of one color each, which T2I-Adapter's color model reads.
    Each color is OpenCV's cubic sample at the square's middle. Squares at the right and lower border are cut;
    sd-webui-controlnet stretches all of them instead, at sizes that are no multiples of 64."""
    height, width = image.shape[:2]
    whole = pad_to_multiple(image[None], COLOR_CELL_SIZE)[0]
    cells = cv2.resize(
        whole, (whole.shape[1] // COLOR_CELL_SIZE, whole.shape[0] // COLOR_CELL_SIZE), interpolation=cv2.INTER_CUBIC
    )
    return cells.repeat(COLOR_CELL_SIZE, axis=0).repeat(COLOR_CELL_SIZE, axis=1)[:height, :width]
