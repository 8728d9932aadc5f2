from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import numpy as np

from ..parameters import Range
from ..registry import preprocessor
from .marigold import marigold, marigold_files
from .normals_of_depth import coloured

if TYPE_CHECKING:
    from ..backends.torch import Device
    from ..library import Library

NORMALS = marigold_files("prs-eth/marigold-normals-v1-1", "OpenRAIL++-M")
_LEFT = np.array([-1, 1, 1], np.float32)  # Marigold's x is to the right


@preprocessor("normal_marigold", makes="normals", weights=NORMALS)
class NormalMarigold:
    """Normals by Marigold for ControlNet 1.1, drawn anew for each `seed`; the map's values are the unit normals
    (H, W, 3), left, up and to the viewer. Of an `ensemble` of drawings it is, at each pixel, the one nearest to their
    mean. `steps` and `processing` as for depth_marigold."""

    def __init__(self, device: str | Device, library: Library):
        self.model = marigold(library, NORMALS, "MarigoldNormalsPipeline", device)

    def __call__(
        self,
        image: np.ndarray,
        steps: Annotated[int, Range(1, 100)] | None = None,
        ensemble: Annotated[int, Range(1, 20)] = 1,
        seed: Annotated[int, Range(0, 2**32 - 1)] = 0,
        processing: Annotated[int, Range(0, 2048)] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        n = self.model(image, steps, ensemble, seed, processing) * _LEFT
        return coloured(n), n
