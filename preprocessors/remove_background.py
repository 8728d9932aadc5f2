from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import cv2
import numpy as np

from preprocessors.parameters import Range
from preprocessors.registry import preprocessor
from preprocessors.soft_edges import tensor
from preprocessors.weights_file import WeightsFile

if TYPE_CHECKING:
    from preprocessors.library import Library
    from preprocessors.network import Device, Network

ISNET = WeightsFile("bes-dev/DIS", "isnet-general-use.pth", folder="isnet", licence="Apache-2.0")
RMBG = WeightsFile(
    "briaai/RMBG-1.4", "model.safetensors", folder="briaai/RMBG-1.4", licence="bria-rmbg-1.4, non-commercial"
)
ANIME = WeightsFile("skytnt/anime-seg", "isnetis.ckpt", folder="anime_seg", licence="Apache-2.0")
SIDE = 1024  # pixels of the networks' input

Mattes = Callable[["Network", np.ndarray], np.ndarray]


def stretched(network: Network, images: np.ndarray) -> np.ndarray:
    """How much of each pixel is not background, (B, H, W) float32 in 0..1, of pictures (B, H, W, 3) uint8, RGB: seen as
    squares, the least of a picture taken as 0 and the most as 1 (xuebinqin/DIS, Inference.py; briaai/RMBG-1.4)."""
    small = np.stack([cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR) for image in images])
    mattes = _mattes(network, small.astype(np.float32) / 255 - 0.5, *images.shape[1:3])
    least, most = (side(mattes, axis=(1, 2), keepdims=True) for side in (np.min, np.max))
    return (mattes - least) / np.maximum(most - least, 1e-6)


def framed(network: Network, images: np.ndarray) -> np.ndarray:
    """As `stretched`, but in the middle of black squares, and as the network says it (SkyTNT/anime-segmentation,
    inference.py)."""
    height, width = images.shape[1:3]
    scale = SIDE / max(height, width)
    h, w = (max(int(side * scale), 1) for side in (height, width))
    top, left = (SIDE - h) // 2, (SIDE - w) // 2
    squares = np.zeros((len(images), SIDE, SIDE, 3), np.float32)
    for square, image in zip(squares, images, strict=True):
        square[top : top + h, left : left + w] = cv2.resize(image.astype(np.float32) / 255, (w, h))
    return _mattes(network, squares, height, width, (slice(top, top + h), slice(left, left + w)))


def _mattes(network: Network, x: np.ndarray, height: int, width: int, part: tuple[slice, ...] = ()) -> np.ndarray:
    mattes = network(tensor(x)).sigmoid()[:, 0].numpy()
    if not np.isfinite(mattes).all():
        raise ValueError("the network's mattes are no numbers: compute in float32 or bfloat16")
    return np.stack([cv2.resize(matte[part], (width, height), interpolation=cv2.INTER_LINEAR) for matte in mattes])


def background_by(file: WeightsFile, mattes: Mattes) -> type:
    """A class for `preprocessor` that takes the background away, by an IS-Net of this file."""

    class Background:
        """The picture on an even grey `ground`, or with `matte` what of it is not background, as white. Values: that,
        (H, W) float32 in 0..1."""

        def __init__(self, device: str | Device, library: Library):
            from annotators import isnet

            self.network = library.network(file, isnet.load, device)

        def __call__(
            self, images: np.ndarray, *, ground: Annotated[int, Range(0, 255)] = 255, matte: bool = False
        ) -> list[tuple[np.ndarray, np.ndarray]]:
            found = []
            for image, part in zip(images, mattes(self.network, images), strict=True):
                part = part[..., None]
                seen = part * 255 if matte else image * part + np.float32(ground) * (1 - part)
                pixels = (seen + 0.5).astype(np.uint8)
                found.append((pixels[..., 0] if matte else pixels, part[..., 0]))
            return found

    return Background


preprocessor("remove_background", makes="other", weights=ISNET, stacks=True)(background_by(ISNET, stretched))
preprocessor("remove_background_rmbg", makes="other", weights=RMBG, stacks=True)(background_by(RMBG, stretched))
preprocessor("remove_background_anime", makes="other", weights=ANIME, stacks=True)(background_by(ANIME, framed))
