"""Maps for inpainting are the picture itself. Where to repaint is the unit's `inpaint` mask: the hint is -1 there, as
the inpainting ControlNet was trained."""

from __future__ import annotations

import numpy as np

from ..registry import preprocessor


@preprocessor("inpaint", makes="inpaint", label="inpaint_global_harmonious")
def inpaint(image: np.ndarray) -> np.ndarray:
    """The picture as it is; the whole of it may change."""
    return image


@preprocessor("inpaint_only", makes="inpaint")
def inpaint_only(image: np.ndarray) -> np.ndarray:
    """The picture as it is. That nothing changes outside of the mask is for the pipeline to see to."""
    return image
