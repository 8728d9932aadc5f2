from __future__ import annotations

import numpy as np

from ..registry import preprocessor


@preprocessor("invert", makes="lines", label="invert (from white bg & black line)")
def invert(image: np.ndarray) -> np.ndarray:
    """The negative, 255 - image: makes a drawing in black on white what line models read, white on black."""
    return 255 - image
