"""Classes of ADE20K by UniFormer, whose network is in annotators/uniformer.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from ...files.hub import HORDE_CATALOG, WeightsFile
from ..backends.tensors import pad_to_multiple
from ..backends.transformers import normalize_imagenet
from ..registry import preprocessor
from .palettes import ADE20K_PALETTE
from .transformers_segmentation import SegmentationRenderer, make_segmentation_renderer, upsample_argmax

if TYPE_CHECKING:
    from ..backends.torch import Device
    from ..library import Library

UNIFORMER_WEIGHTS = WeightsFile(
    "lllyasviel/Annotators",
    "upernet_global_small.pth",
    webui_folder="uniformer",
    license="MIT",  # Sense-X/UniFormer @ 11f3f6d, LICENSE
    size=206313115,
    sha256="bebfa1264c10381e389d8065056baaadbdadee8ddc6e36770d1ec339dc84d970",
    source=f"{HORDE_CATALOG}; Andy1621/uniformer @ 375d5e867daa",
)
_MIN_SIDE = 32  # pixels of a side, that the network's deepest features have one
_SHORT_SIDE, _MAX_LONG_SIDE = 512, 2048


@preprocessor("segmentation", makes="segmentation", label="seg_ufade20k", weights=UNIFORMER_WEIGHTS, batched=True)
class Segmentation:
    """The classes of ADE20K in their colours, by UniFormer and UPerNet, seen at a short side of 512 pixels.

    sd-webui-controlnet swaps red and blue before the network; this gives it what its authors do, RGB."""

    def __init__(self, device: str | Device, library: Library):
        from ...annotators import uniformer

        self.network = library.load_network(UNIFORMER_WEIGHTS, uniformer.load, device)

    def __call__(self, images: np.ndarray) -> list[SegmentationRenderer]:
        return [make_segmentation_renderer(labels, ADE20K_PALETTE) for labels in self.classify_pixels(images)]

    def classify_pixels(self, images: np.ndarray) -> np.ndarray:
        """Numbers of classes (B, H, W) uint8 of images (B, H, W, 3) uint8, RGB. Raises ValueError when the network's
        scores are no numbers, as where float16 overflows."""
        from torch.nn.functional import interpolate

        height, width = images.shape[1:3]
        scale = min(_SHORT_SIDE / min(height, width), _MAX_LONG_SIDE / max(height, width))
        h, w = (int(side * scale + 0.5) for side in (height, width))
        batch = pad_to_multiple(np.stack([cv2.resize(image, (w, h)) for image in images]), 1, min_size=_MIN_SIDE)
        scores = self.network(normalize_imagenet(batch.astype(np.float32) / 255))
        if not scores.isfinite().all():
            raise ValueError("the network's scores are no numbers: compute in float32 or bfloat16")
        scores = interpolate(scores.to(self.network.device), batch.shape[1:3], mode="bilinear", align_corners=False)
        return upsample_argmax(scores[..., :h, :w], height, width)
