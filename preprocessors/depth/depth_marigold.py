from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import numpy as np

from ..parameters import Range
from ..registry import preprocessor
from .marigold import marigold, marigold_files
from .shades import of_inverse
from .transformers_depth import Drawing

if TYPE_CHECKING:
    from ..backends.torch import Device
    from ..library import Library

DEPTH = marigold_files("prs-eth/marigold-depth-v1-1", "OpenRAIL++-M")


@preprocessor("depth_marigold", makes="depth", weights=DEPTH)
class DepthMarigold:
    """Depth by Marigold, drawn anew for each `seed`; the map's values (H, W), about 0..1, are more where it is farther,
    of unknown scale and offset. Of an `ensemble` of drawings it is the median. `steps` and `processing`, the longer
    side in pixels at which it works, a multiple of 8 (0: the picture's own), are by default the model's own."""

    def __init__(self, device: str | Device, library: Library):
        self.model = marigold(library, DEPTH, "MarigoldDepthPipeline", device)

    def __call__(
        self,
        image: np.ndarray,
        steps: Annotated[int, Range(1, 100)] | None = None,
        ensemble: Annotated[int, Range(1, 20)] = 1,
        seed: Annotated[int, Range(0, 2**32 - 1)] = 0,
        processing: Annotated[int, Range(0, 2048)] | None = None,
    ) -> Drawing:
        depth = self.model(image, steps, ensemble, seed, processing)[..., 0]
        sign = 1 if self.model.index.get("prediction_type") == "disparity" else -1

        def at(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
            kept = depth[:height, :width]
            return of_inverse(sign * kept), kept

        return at
