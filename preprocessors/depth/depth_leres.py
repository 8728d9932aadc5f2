from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import cv2
import numpy as np

from ...files.weights_file import HORDE, WeightsFile
from ..backends.imagenet import normalised
from ..edges.soft_edges import extended
from ..parameters import Range
from ..registry import preprocessor
from .leres import boosted
from .shades import shades
from .transformers_depth import Drawing

if TYPE_CHECKING:
    from ..backends.torch import Device
    from ..library import Library

LERES = WeightsFile(
    "lllyasviel/Annotators",
    "res101.pth",
    folder="leres",
    licence="Adobe Research, non-commercial",
    size=530760553,
    sha256="1d696b2ef3e8336b057d0c15bc82d2fecef821bfebe5ef9d7671a5ec5dde520b",
    source=f"{HORDE}; lllyasviel/Annotators @ 5bc80eec2b4f",
)
MERGE = WeightsFile(
    "lllyasviel/Annotators",
    "latest_net_G.pth",
    folder="leres",
    licence="academic use only, non-commercial",
    size=318268048,
    sha256="50ec735d74ed6499562d898f41b49343e521808b8dae589aa3c2f5c9ac9f7462",
    source=f"{HORDE}; lllyasviel/Annotators @ 5bc80eec2b4f",
)


@preprocessor("depth_leres", makes="depth", weights=LERES, stacks=True)
class DepthLeres:
    """Depth up to scale and offset; the map's values (H, W) are more where it is farther.

    The network is fed as ControlNet 1.1 feeds it, whose depth models have seen maps made so: BGR, 0..255 where its
    authors' code has RGB in 0..1. Of the way from the nearest to the farthest, the first `remove_near` percent become
    white, the last `remove_background` percent black."""

    def __init__(self, device: str | Device, library: Library):
        from ...annotators import leres

        self.network = library.network(LERES, leres.load, device)

    def __call__(
        self,
        images: np.ndarray,
        remove_near: Annotated[float, Range(0, 100)] = 0,
        remove_background: Annotated[float, Range(0, 100)] = 0,
    ) -> list[Drawing]:
        height, width = images.shape[1:3]
        depth = self.network(normalised(extended(images, 32)[..., ::-1]))[:, 0, :height, :width].numpy()
        return [_drawing(one, remove_near, remove_background) for one in depth]


@preprocessor("depth_leres++", makes="depth", weights=(LERES, MERGE))
class DepthLeresBoosted:
    """The same in more detail, merged from several sizes: for pictures from some 500 pixels on, and slow. Its values
    are in 0..1, more where it is farther."""

    def __init__(self, device: str | Device, library: Library):
        from ...annotators import depth_merge, leres

        self.network = library.network(LERES, leres.load, device)
        self.merge = library.network(MERGE, depth_merge.load, device)

    def __call__(
        self,
        image: np.ndarray,
        remove_near: Annotated[float, Range(0, 100)] = 0,
        remove_background: Annotated[float, Range(0, 100)] = 0,
    ) -> Drawing:
        return _drawing(boosted(image, self._estimate, self._merged), remove_near, remove_background)

    def _estimate(self, image: np.ndarray, size: int) -> np.ndarray:
        small = cv2.resize(np.ascontiguousarray(image[..., ::-1]), (size, size))
        depth = self.network(normalised(small[None]))[0, 0].numpy()
        return cv2.resize(depth, image.shape[1::-1], interpolation=cv2.INTER_CUBIC)

    def _merged(self, coarse: np.ndarray, fine: np.ndarray) -> np.ndarray:
        import torch

        both = torch.from_numpy(np.stack([coarse, fine])[None]).float() * 2 - 1
        return (self.merge(both)[0, 0].numpy() + 1) / 2


def _drawing(depth: np.ndarray, near: float, background: float) -> Drawing:
    def at(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        kept = depth[:height, :width]
        return _cut(shades(kept, kept.min(), kept.max()), near, background), kept

    return at


def _cut(distance: np.ndarray, near: float, background: float) -> np.ndarray:
    """Distance (H, W) uint16 as a picture, near white, without so many percent of the nearest and farthest."""
    white = np.where(distance > near / 100 * 65535, 65535 - distance, np.uint16(65535))
    return np.where(white > background / 100 * 65535, white, np.uint16(0))
