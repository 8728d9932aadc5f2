from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from ...files.hub import HORDE, WeightsFile
from ..backends.transformers import normalised
from ..edges.soft_edges import extended
from ..registry import preprocessor
from .palettes import ADE20K
from .transformers_segmentation import Drawing, drawing, highest

if TYPE_CHECKING:
    from ..backends.torch import Device
    from ..library import Library

UNIFORMER = WeightsFile(
    "lllyasviel/Annotators",
    "upernet_global_small.pth",
    folder="uniformer",
    licence="MIT",  # Sense-X/UniFormer @ 11f3f6d, LICENSE
    size=206313115,
    sha256="bebfa1264c10381e389d8065056baaadbdadee8ddc6e36770d1ec339dc84d970",
    source=f"{HORDE}; Andy1621/uniformer @ 375d5e867daa",
)
_LEAST = 32  # pixels of a side, that the network's deepest features have one
_SHORT, _LONG = 512, 2048


@preprocessor("segmentation", makes="segmentation", label="seg_ufade20k", weights=UNIFORMER, stacks=True)
class Segmentation:
    """The classes of ADE20K in their colours, by UniFormer and UPerNet, seen at a short side of 512 pixels.

    sd-webui-controlnet swaps red and blue before the network; this gives it what its authors do, RGB."""

    def __init__(self, device: str | Device, library: Library):
        from ...annotators import uniformer

        self.network = library.network(UNIFORMER, uniformer.load, device)

    def __call__(self, images: np.ndarray) -> list[Drawing]:
        return [drawing(labels, ADE20K) for labels in self.classes(images)]

    def classes(self, images: np.ndarray) -> np.ndarray:
        """Numbers of classes (B, H, W) uint8 of pictures (B, H, W, 3) uint8, RGB. Raises ValueError when the network's
        scores are no numbers, as where float16 overflows."""
        from torch.nn.functional import interpolate

        height, width = images.shape[1:3]
        scale = min(_SHORT / min(height, width), _LONG / max(height, width))
        h, w = (int(side * scale + 0.5) for side in (height, width))
        seen = extended(np.stack([cv2.resize(image, (w, h)) for image in images]), 1, least=_LEAST)
        scores = self.network(normalised(seen.astype(np.float32) / 255))
        if not scores.isfinite().all():
            raise ValueError("the network's scores are no numbers: compute in float32 or bfloat16")
        scores = interpolate(scores.to(self.network.device), seen.shape[1:3], mode="bilinear", align_corners=False)
        return highest(scores[..., :h, :w], height, width)
