from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import cv2
import numpy as np

from ...files.hub import ADDED, LIST, WeightsFile
from ..backends.transformers import prepared
from ..edges.soft_edges import tensor
from ..parameters import Range
from ..registry import preprocessor

if TYPE_CHECKING:
    from torch import Tensor

    from ..backends.torch import Device, Network
    from ..library import Library

ISNET = WeightsFile(
    "NimaBoscarino/IS-Net_DIS-general-use",
    "isnet-general-use.pth",
    folder="isnet",
    licence="Apache-2.0",
    size=176579397,
    sha256="9e1aafea58f0b55d0c35077e0ceade6ba1ba2bce372fd4f8f77215391f3fac13",
    source=f"{ADDED} 72cb986",
)
RMBG = WeightsFile(
    "briaai/RMBG-1.4",
    "model.safetensors",
    folder="briaai/RMBG-1.4",
    licence="bria-rmbg-1.4, non-commercial",
    about=176_000_000,
    source=f"{LIST} 184e3b6",
)
ANIME = WeightsFile(
    "skytnt/anime-seg",
    "isnetis.ckpt",
    folder="anime_seg",
    licence="Apache-2.0",
    about=204_000_000,
    source=f"{LIST} 976cbb9",
)


def _birefnet(repo: str, licence: str, about: int | None = None, source: str = "") -> WeightsFile:
    return WeightsFile(repo, "model.safetensors", folder=repo, licence=licence, about=about, source=source)


BIREFNET = _birefnet("ZhengPeng7/BiRefNet", "MIT")
BIREFNET_LITE = _birefnet("ZhengPeng7/BiRefNet_lite", "MIT", 178_000_000, f"{LIST} aa5bf0a")
# The Hub asks for a login
RMBG_2 = _birefnet("briaai/RMBG-2.0", "CC-BY-NC-4.0, non-commercial", 885_000_000, f"{LIST} 3c83d25")
SIDE = 1024  # pixels of the networks' input

Mattes = Callable[["Network", np.ndarray], np.ndarray]


def stretched(network: Network, images: np.ndarray) -> np.ndarray:
    """How much of each pixel is not background, (B, H, W) float32 in 0..1, of pictures (B, H, W, 3) uint8, RGB: seen as
    squares, the least of a picture taken as 0 and the most as 1 (xuebinqin/DIS, Inference.py; briaai/RMBG-1.4)."""
    small = np.stack([cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR) for image in images])
    mattes = _mattes(network, tensor(small.astype(np.float32) / 255 - 0.5), *images.shape[1:3])
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
    return _mattes(network, tensor(squares), height, width, (slice(top, top + h), slice(left, left + w)))


def normalised(network: Network, images: np.ndarray) -> np.ndarray:
    """As `stretched`, but by ImageNet's mean and deviation, and as the network says it (ZhengPeng7/BiRefNet,
    tutorials/BiRefNet_inference.ipynb)."""
    square = {"height": SIDE, "width": SIDE}
    settings = {"size": square, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    return _mattes(network, prepared(settings, images), *images.shape[1:3])


def _mattes(network: Network, x: Tensor, height: int, width: int, part: tuple[slice, ...] = ()) -> np.ndarray:
    mattes = network(x).sigmoid()[:, 0].numpy()
    if not np.isfinite(mattes).all():
        raise ValueError("the network's mattes are no numbers: compute in float32 or bfloat16")
    return np.stack([cv2.resize(matte[part], (width, height), interpolation=cv2.INTER_LINEAR) for matte in mattes])


def background_by(file: WeightsFile, mattes: Mattes, network: str = "isnet") -> type:
    """A class for `preprocessor` that takes the background away, by the network of that name in annotators, of this
    file."""

    class Background:
        """The picture on an even grey `ground`, or with `matte` what of it is not background, as white. Values: that,
        (H, W) float32 in 0..1."""

        def __init__(self, device: str | Device, library: Library):
            self.network = library.network(
                file, importlib.import_module(f"...annotators.{network}", __package__).load, device
            )

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
preprocessor("remove_background_birefnet", makes="other", weights=BIREFNET, stacks=True)(
    background_by(BIREFNET, normalised, "birefnet")
)
preprocessor("remove_background_birefnet_lite", makes="other", weights=BIREFNET_LITE, stacks=True)(
    background_by(BIREFNET_LITE, normalised, "birefnet")
)
preprocessor("remove_background_rmbg2", makes="other", weights=RMBG_2, stacks=True)(
    background_by(RMBG_2, normalised, "birefnet")
)
