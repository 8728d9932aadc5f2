"""Parts of anime faces, by the network in annotators/anime_face.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...files.hub import HUB_COMMIT_PAGE, WeightsFile
from ...files.image_formats import check_pixels
from ..backends.transformers import preprocess_images
from ..registry import preprocessor
from .palettes import Palette
from .transformers_segmentation import SegmentationRenderer, make_segmentation_renderer, upsample_argmax

if TYPE_CHECKING:
    from ..backends.torch import Device
    from ..library import Library

ANIME_FACE_WEIGHTS = WeightsFile(
    "bdsqlsz/qinglong_controlnet-lllite",
    "Annotators/UNet.pth",
    webui_folder="anime_face_segment",
    license="CC-BY-NC-SA-4.0, non-commercial",
    size=6428741,
    sha256="96c2a509b3eb1b2083b5384bbc30808dc205f370c513ee930e644edc0ea4688d",
    source=f"{HUB_COMMIT_PAGE} 82d2c5f",
)
# sd-webui-controlnet @ 56cec5b, annotator/anime_face_segment/__init__.py
ANIME_FACE_PALETTE = Palette(
    ("background", "hair", "eye", "mouth", "face", "skin", "clothes"),
    ((255, 255, 0), (0, 0, 255), (255, 0, 0), (255, 255, 255), (0, 255, 0), (0, 255, 255), (255, 0, 255)),
)
_INPUT_SETTINGS = {"resample": 3, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]}  # PIL's cubic, 0..1
_SHORT_SIDE = 512  # pixels of the short side that the network sees


@preprocessor(
    "anime_face_segment", makes="segmentation", label="seg_anime_face", weights=ANIME_FACE_WEIGHTS, batched=True
)
class AnimeFaceSegment:
    """The parts of an anime face in seven colours, seen at a short side of 512 pixels.

    Maps are as large as the image; sd-webui-controlnet leaves them at 512 pixels."""

    def __init__(self, device: str | Device, library: Library):
        from ...annotators import anime_face

        self.network = library.load_network(ANIME_FACE_WEIGHTS, anime_face.load, device)

    def __call__(self, images: np.ndarray) -> list[SegmentationRenderer]:
        return [make_segmentation_renderer(labels, ANIME_FACE_PALETTE) for labels in self.classify_pixels(images)]

    def classify_pixels(self, images: np.ndarray) -> np.ndarray:
        """Numbers of classes (B, H, W) uint8 of images (B, H, W, 3) uint8, RGB. Raises ValueError when the network's
        scores are no numbers, as where float16 overflows, and when a strip would need over 64 megapixels."""
        height, width = images.shape[1:3]
        short = min(height, width)
        h, w = (_SHORT_SIDE if side == short else int(_SHORT_SIDE * side / short) for side in (height, width))
        check_pixels(h, w, f"an image of {width}x{height} at {_SHORT_SIDE} pixels")
        scores = self.network(preprocess_images(_INPUT_SETTINGS | {"size": {"height": h, "width": w}}, images))
        if not scores.isfinite().all():
            raise ValueError("the network's scores are no numbers: compute in float32 or bfloat16")
        return upsample_argmax(scores[..., :h, :w].to(self.network.device), height, width)
