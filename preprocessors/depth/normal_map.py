from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import numpy as np

from ..parameters import Range
from ..registry import preprocessor
from .depth_midas import MIDAS
from .normals_of_depth import midas_normals
from .transformers_depth import TransformersDepth

if TYPE_CHECKING:
    from ..backends.torch import Device
    from ..library import Library


@preprocessor("normal_map", makes="normals", label="normal_midas", weights=MIDAS, stacks=True)
class NormalMap:
    """Normals for ControlNet 1.0, from MiDaS's depth; those of NormalBae, and of ControlNet 1.1, have red and blue
    exchanged. Depth below `background_threshold`, 0 the farthest and 1 the nearest, becomes flat."""

    def __init__(self, device: str | Device, library: Library):
        self.depth = TransformersDepth(device, library, MIDAS)

    def __call__(
        self, images: np.ndarray, background_threshold: Annotated[float, Range(0, 1)] = 0.4
    ) -> list[np.ndarray]:
        return [midas_normals(inverse, background_threshold) for inverse in self.depth(images)]
