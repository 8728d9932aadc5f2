from __future__ import annotations

from typing import Annotated

import numpy as np

from ..parameters import Range
from ..registry import preprocessor
from .normals_of_depth import coloured, normals


@preprocessor("normal_depth", makes="normals")
def normal_depth(
    image: np.ndarray,
    fov: Annotated[float, Range(1, 170)] = 60,
    far: Annotated[float, Range(1, 1000)] = 4,
    smooth: Annotated[float, Range(0, 20)] = 2,
) -> tuple[np.ndarray, np.ndarray]:
    """Normals for ControlNet 1.1 from a picture of depth, near white, linear in inverse depth as most preprocessors
    make it: of a camera whose longer side spans `fov` degrees, black `far` times as far as white. `smooth` is the
    window in pixels that hides the picture's 256 steps. The map's values are the unit normals (H, W, 3), left, up and
    to the viewer."""
    inverse = 1 / far + (1 - 1 / far) * image.mean(axis=2) / 255
    n = normals(inverse, fov, smooth)
    return coloured(n), n
