"""Segment Anything (Kirillov et al., arXiv 2304.02643) by transformers 4.30 or later, and SAM2 (Ravi et al., arXiv
2408.00714) by 4.56 or later."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import numpy as np

from ...files.weights_file import LIST
from ..backends.transformers import Files, model_files
from ..parameters import Range
from ..registry import preprocessor
from .masks import Mask, coloured
from .transformers_sam import TransformersSam

if TYPE_CHECKING:
    from ..backends.torch import Device
    from ..library import Library

_MODELS = {
    "sam": ("facebook/sam-vit-huge", 2_560_000_000, f"{LIST} 87aecf0"),
    "sam_large": ("facebook/sam-vit-large", 1_250_000_000, f"{LIST} 6851e04"),
    "sam_base": ("facebook/sam-vit-base", 375_000_000, f"{LIST} 70c1a07"),
    "sam2": ("facebook/sam2.1-hiera-large", 898_000_000, f"the same in another format, {LIST} 227a114"),
    "sam2_small": ("facebook/sam2.1-hiera-small", 184_000_000, "46.1M parameters on the Hub's list of models"),
}


def masks_by(files: Files) -> type:
    """A class for `preprocessor` whose maps are the masks of everything, by the network of these files."""

    class Masks:
        """Everything in its own colour, the small on the large, on black. Values: a tuple of Mask, the largest first,
        which may overlap."""

        def __init__(self, device: str | Device, library: Library):
            self.masks = TransformersSam(device, library, files)

        def __call__(
            self,
            image: np.ndarray,
            points: Annotated[int, Range(1, 64)] = 32,
            least_score: Annotated[float, Range(0, 1)] = 0.88,
            least_stability: Annotated[float, Range(0, 1)] = 0.95,
            *,
            seed: Annotated[int, Range(0, 2**32 - 1)] = 0,
        ) -> Callable[[int, int], tuple[np.ndarray, tuple[Mask, ...]]]:
            found = self.masks(image, points, least_score, least_stability)

            def result(height: int, width: int) -> tuple[np.ndarray, tuple[Mask, ...]]:
                kept = [mask for mask in (mask.cut(height, width) for mask in found) if mask.area]
                kept.sort(key=lambda mask: -mask.area)
                return coloured(kept, height, width, seed), tuple(kept)

            return result

    return Masks


for _name, (_repo, _about, _source) in _MODELS.items():
    _config, _, _weights = model_files(_repo, "Apache-2.0", about=_about, source=_source)
    preprocessor(_name, makes="segmentation", weights=(_config, _weights))(masks_by((_config, _weights)))
