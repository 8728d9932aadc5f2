"""The negative of an image, for drawings in black on white."""

from __future__ import annotations

import numpy as np

from ...maps.fidelity import NoMeasure
from ..registry import Traits, preprocessor


@preprocessor(
    "invert",
    makes="lines",
    label="invert (from white bg & black line)",
    traits=Traits(has_resolution_slider=False),
    fidelity=NoMeasure(
        "invert turns a drawing into a map and finds no lines in an image: measure by lineart, with the inverted "
        "drawing as the expected map"
    ),
)
def invert(image: np.ndarray) -> np.ndarray:
    """Return the negative `(H, W, 3)`, 255 - image: a drawing in black on white becomes what line models read, white on
    black."""
    return 255 - image
