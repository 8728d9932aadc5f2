from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...files.hub import ADDED, WeightsFile
from ...files.image_formats import check_pixels
from ..backends.transformers import prepared
from ..registry import preprocessor
from .palettes import Palette
from .transformers_segmentation import Drawing, drawing, highest

if TYPE_CHECKING:
    from ..backends.torch import Device
    from ..library import Library

UNET = WeightsFile(
    "bdsqlsz/qinglong_controlnet-lllite",
    "Annotators/UNet.pth",
    folder="anime_face_segment",
    licence="CC-BY-NC-SA-4.0, non-commercial",
    size=6428741,
    sha256="96c2a509b3eb1b2083b5384bbc30808dc205f370c513ee930e644edc0ea4688d",
    source=f"{ADDED} 82d2c5f",
)
# sd-webui-controlnet @ 56cec5b, annotator/anime_face_segment/__init__.py
ANIME_FACE = Palette(
    ("background", "hair", "eye", "mouth", "face", "skin", "clothes"),
    ((255, 255, 0), (0, 0, 255), (255, 0, 0), (255, 255, 255), (0, 255, 0), (0, 255, 255), (255, 0, 255)),
)
_PLAIN = {"resample": 3, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]}  # PIL's cubic, 0..1
_SHORT = 512  # pixels of the short side that the network sees


@preprocessor("anime_face_segment", makes="segmentation", label="seg_anime_face", weights=UNET, stacks=True)
class AnimeFaceSegment:
    """The parts of an anime face in seven colours, seen at a short side of 512 pixels.

    Maps are as large as the picture; sd-webui-controlnet leaves them at 512 pixels."""

    def __init__(self, device: str | Device, library: Library):
        from ...annotators import anime_face

        self.network = library.network(UNET, anime_face.load, device)

    def __call__(self, images: np.ndarray) -> list[Drawing]:
        return [drawing(labels, ANIME_FACE) for labels in self.classes(images)]

    def classes(self, images: np.ndarray) -> np.ndarray:
        """Numbers of classes (B, H, W) uint8 of pictures (B, H, W, 3) uint8, RGB. Raises ValueError when the network's
        scores are no numbers, as where float16 overflows, and when a strip would need over 64 megapixels."""
        height, width = images.shape[1:3]
        short = min(height, width)
        h, w = (_SHORT if side == short else int(_SHORT * side / short) for side in (height, width))
        check_pixels(h, w, f"a picture of {width}x{height} at {_SHORT} pixels")
        scores = self.network(prepared(_PLAIN | {"size": {"height": h, "width": w}}, images))
        if not scores.isfinite().all():
            raise ValueError("the network's scores are no numbers: compute in float32 or bfloat16")
        return highest(scores[..., :h, :w].to(self.network.device), height, width)
