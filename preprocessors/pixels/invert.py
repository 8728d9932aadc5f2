"""The negative of an image, for drawings in black on white."""

from __future__ import annotations

import numpy as np

from ..registry import Traits, preprocessor


@preprocessor(
    "invert", makes="lines", label="invert (from white bg & black line)", traits=Traits(has_resolution_slider=False)
)
def invert(image: np.ndarray) -> np.ndarray:
    """Return the negative `(H, W, 3)`, 255 - image: a drawing in black on white becomes what line models read, white on
    black."""
    return 255 - image
