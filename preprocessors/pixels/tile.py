"""Maps of tile_colorfix are the picture itself. What its parameters say is done to the latents after each step
(guidance/after_steps.py)."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from ..parameters import Range
from ..registry import preprocessor

Variation = Annotated[int, Range(3, 32)]


@preprocessor("tile_colorfix", makes="tile")
def tile_colorfix(image: np.ndarray, variation: Variation = 8) -> np.ndarray:
    """The picture as it is, whose colours the result keeps over boxes of 2 `variation` + 1 latents."""
    return image


@preprocessor("tile_colorfix+sharp", makes="tile")
def tile_colorfix_sharp(
    image: np.ndarray, variation: Variation = 8, sharpness: Annotated[float, Range(0, 2)] = 1.0
) -> np.ndarray:
    """As tile_colorfix; guidance leads away from what is blurred by `sharpness` hundredths."""
    return image
